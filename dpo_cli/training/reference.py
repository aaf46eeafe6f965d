"""The frozen reference: what each response token was worth before training.

In the packed layout each of its log-probs is computed once, when it is first asked for, and kept:
beside the run, for its resumes, and in the cache, for other runs; then the model is freed. Of
held-out pairs entropies are kept, too: before its first step the policy says the same. In the
reference layout it is run again on every batch, as the reference script does. A loss that needs no
reference costs none.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.files import cache_directory, remove_unused, write_atomically
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.training.device import Compute
from dpo_cli.training.matmul import processor
from dpo_cli.training.plan import Prepared, environment
from dpo_cli.training.ranks import Ranks

REFERENCE_FILE = "reference_logps.safetensors"
HELD_OUT_REFERENCE_FILE = "held_out_reference_logps.safetensors"
FORMAT = 2
"""Counts up when a log-prob's bits change: by attention, the head, the packing of rows, or how
torch is set up (2: no first call of a function is one by many threads)."""
UNKNOWN = float("nan")
_LOGPS, _ENTROPIES = "token_logps", "entropies"


class Reference(Protocol):
    """Gives the reference's log-probs of a batch."""

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """(2P, time), like the policy's, of the pairs `indices`, which `batch` holds."""
        ...

    def exchange(self, ranks: Ranks) -> None:
        """Learn what other ranks have computed."""
        ...


class LiveReference:
    """Runs the frozen model on every batch."""

    def __init__(self, scorer: ResponseScorer, compute: Compute) -> None:
        self._scorer = scorer.eval().requires_grad_(False)
        self._compute = compute

    @torch.no_grad()
    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        with self._compute.autocast():
            scores: Scores = self._scorer(batch)
        return scores.token_logps

    def exchange(self, ranks: Ranks) -> None:
        """See `Reference`: nothing is kept."""


class NoReference:
    """Stands where no loss asks for a reference: all log-probs are 0, and no model is loaded."""

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        return torch.zeros(batch.mask.shape, device=batch.mask.device)

    def exchange(self, ranks: Ranks) -> None:
        """See `Reference`: there is nothing to know."""


def open_references(
    prepared: Prepared, load: Callable[[], ResponseScorer], directory: Path
) -> tuple[Reference, Reference]:
    """The references of the training pairs and of the held-out ones.

    Args:
        prepared: the run's inputs.
        load: gives the frozen model, on the run's device.
        directory: the run's, where log-probs are kept.
    """
    compute = prepared.compute
    if not prepared.profile.dpo.needs_reference:
        return NoReference(), NoReference()
    if prepared.profile.train.layout == "reference":
        live = LiveReference(load(), compute)
        return live, live
    train = prepared.profile.train
    architecture = prepared.reference.architecture
    # Whether other models are computed packed may depend on the longest sequence.
    longest = None if architecture.is_known_to_pack else prepared.longest
    model = prepared.fingerprints["reference"], architecture.to_dict(), longest
    # Weighting reads more off the logits, by other operations.
    weighted = prepared.profile.dpo.use_weighting
    arithmetic = torch.get_float32_matmul_precision(), train.compile, weighted, FORMAT

    def kept(
        name: str, pairs: TokenizedPairs, rows: list[tuple[int, ...]], *, with_entropies: bool
    ) -> Reference:
        facts = (model, compute.device, compute.dtype, arithmetic, pairs.fingerprint(), rows)
        key = hashlib.sha256(str(facts).encode()).hexdigest()
        places = [directory / name]
        if (cache := cache_directory()) is not None:
            # Another run's are taken only where they have the very bits of this run's own.
            here = environment(), compute.device_name, processor(), train.deterministic
            elsewhere = hashlib.sha256(f"{key} {here}".encode()).hexdigest()
            places.append(cache / "reference" / f"{elsewhere}.safetensors")
        return KeptReference(pairs, rows, compute, load, places, key, with_entropies=with_entropies)

    return (
        kept(REFERENCE_FILE, prepared.pairs, prepared.reference_rows, with_entropies=False),
        kept(
            HELD_OUT_REFERENCE_FILE, prepared.held_out, prepared.held_out_rows, with_entropies=True
        ),
    )


class KeptReference:
    """Computes each log-prob once, and keeps it.

    A pair is always computed together with the same others, whatever asks for it first: the same
    matrix shapes give the same bits, however often a run was interrupted. With the policy's own
    first batches as these rows the loss begins at ln 2 exactly.

    Args:
        pairs: whose log-probs are asked for.
        rows: which of them are computed together, each pair exactly once.
        compute: device and autocast.
        load: the frozen model, on that device; called when it is first needed.
        places: files where what is known is found and kept; the first, beside the run, also while
            some is unknown.
        key: everything the log-probs follow from; what is found under another is not believed.
        with_entropies: keep those of the distributions as well, for `scores`.
    """

    def __init__(
        self,
        pairs: TokenizedPairs,
        rows: Sequence[Sequence[int]],
        compute: Compute,
        load: Callable[[], ResponseScorer],
        places: Sequence[Path] = (),
        key: str = "",
        *,
        with_entropies: bool = False,
    ) -> None:
        self._pairs, self._rows, self._compute, self._load = pairs, rows, compute, load
        self._row_of = {index: row for row, indices in enumerate(rows) for index in indices}
        lengths = pairs.response_tokens.flatten().tolist()
        self._ends = list(itertools.accumulate(lengths, initial=0))
        self._places, self._key = places, key
        self._names = (_LOGPS, _ENTROPIES) if with_entropies else (_LOGPS,)
        self._has_news = bool(pairs)
        found = self._find()
        if found is None:
            dtype = torch.promote_types(compute.dtype, torch.float32)
            unknown = torch.full((self._ends[-1],), UNKNOWN, dtype=dtype)
            found = {name: unknown.clone() for name in self._names}
        # Of each row, so that no step asks the device what it knows.
        self._is_known = [not found[_LOGPS][self._ends[2 * row[0]]].isnan() for row in rows]
        self._values = {name: found[name].to(compute.device) for name in self._names}
        self._scorer: ResponseScorer | None = None

    @property
    def is_complete(self) -> bool:
        """Whether every log-prob is known."""
        return all(self._is_known)

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`; for a packed batch, whose rows are response tokens and nothing else."""
        return self._values_of(_LOGPS, indices)

    def scores(self, indices: Sequence[int], batch: Batch) -> Scores:
        """What a policy of the same weights says of pairs; where entropies are kept."""
        logps, entropies = (self._values_of(name, indices) for name in (_LOGPS, _ENTROPIES))
        return Scores(logps, batch.mask, balance=None, entropies=entropies)

    def exchange(self, ranks: Ranks) -> None:
        """See `Reference`. Collective: all ranks call it at the same moment."""
        if ranks.size == 1 or not self._pairs:
            return
        rows_before = sum(self._is_known)
        known = ranks.largest(torch.tensor(self._is_known, dtype=torch.uint8))
        if min(ranks.collect(torch.tensor(rows_before))) == int(known.sum()):
            return
        for name, own in self._values.items():
            values = ranks.largest(own.nan_to_num(nan=-torch.inf, neginf=-torch.inf))
            self._values[name] = torch.where(values.isneginf(), UNKNOWN, values)
        self._is_known = known.bool().tolist()
        self._has_news |= sum(self._is_known) > rows_before
        if self.is_complete:
            self._scorer = None

    def keep(self) -> None:
        """Write down what was not yet; a cache that cannot be written is gone without."""
        if not self._has_news or not self._places:
            return
        beside, *shared = self._places
        values = {name: its.cpu() for name, its in self._values.items()}
        keep(beside, self._key, values)
        if self.is_complete:
            for place in shared:
                with contextlib.suppress(OSError, SafetensorError):
                    place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    remove_unused(place.parent)
                    keep(place, self._key, values)
        self._has_news = False

    def _find(self) -> Mapping[str, Tensor] | None:
        for place in self._places:
            values = load_kept(place, self._key)
            if values is not None and self._fits(values):
                self._has_news = place != self._places[0]
                with contextlib.suppress(OSError):
                    os.utime(place)  # used, and therefore not to be removed
                return values
        return None

    def _fits(self, values: Mapping[str, Tensor]) -> bool:
        return all(name in values and len(values[name]) == self._ends[-1] for name in self._names)

    def _values_of(self, name: str, indices: Sequence[int]) -> Tensor:
        """(2P, time), of the chosen sides of some pairs, then of the rejected."""
        for index in indices:
            if not self._is_known[row := self._row_of[index]]:
                self._compute_row(row)
        sides = [2 * index for index in indices] + [2 * index + 1 for index in indices]
        return pad_sequence([self._side(name, side) for side in sides], batch_first=True)

    @torch.no_grad()
    def _compute_row(self, row: int) -> None:
        if self._scorer is None:
            self._scorer = self._load().eval()
        indices = self._rows[row]
        batch = make_batch([self._pairs[i] for i in indices], "packed", max_seq_len=0)
        with self._compute.autocast():
            scores: Scores = self._scorer(
                batch.to(self._compute.device), with_entropies=_ENTROPIES in self._names
            )
        sides = [2 * index for index in indices] + [2 * index + 1 for index in indices]
        for name in self._names:
            for side, values in zip(sides, getattr(scores, name), strict=True):
                kept = self._side(name, side)
                kept.copy_(values[: len(kept)])
        self._is_known[row] = self._has_news = True
        if self.is_complete:
            self._scorer = None

    def _side(self, name: str, side: int) -> Tensor:
        return self._values[name][self._ends[side] : self._ends[side + 1]]


def load_kept(path: Path, key: str) -> dict[str, Tensor] | None:
    """What is kept, by its name in `Scores`, if `path` holds it for `key` and unharmed."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            # Copies, since what is mapped would change with its file.
            values = {name: file.get_tensor(name).clone() for name in sorted(file.keys())}
    except (OSError, SafetensorError):
        return None
    is_ours = all(its.dtype == torch.float32 and its.ndim == 1 for its in values.values())
    if not is_ours or metadata.get("key") != key or metadata.get("digest") != _digest(values):
        return None
    return values


def keep(path: Path, key: str, values: Mapping[str, Tensor]) -> None:
    """Write values of response tokens where `load_kept` finds them."""
    metadata = {"key": key, "digest": _digest(values)}
    write_atomically(path, lambda temporary: save_file(dict(values), temporary, metadata))


def _digest(values: Mapping[str, Tensor]) -> str:
    digest = hashlib.sha256()
    for name, its in sorted(values.items()):
        digest.update(name.encode())
        digest.update(its.contiguous().numpy().data)
    return digest.hexdigest()
