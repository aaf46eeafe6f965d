"""Log-probs of the frozen reference.

In the packed layout each log-prob is computed once, when it is first needed, and cached: beside the
run for its resumes, and in the cache directory for other runs. Once all are known, the model is
freed. For held-out pairs the entropies are cached too, because at step 0 the policy has the same.
In the padded layout the model runs on every batch, as in MiniMind's script. A loss without a
reference loads no model.
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
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from dpo_cli import integrity
from dpo_cli.compute.device import Device
from dpo_cli.compute.matmul import processor
from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.staging import to_device
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.files import cache_directory, remove_unused, write_atomically
from dpo_cli.models.frozen import Frozen
from dpo_cli.models.quantized import quantizer_version
from dpo_cli.models.scoring import Scores
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.plan import environment
from dpo_cli.training.sources import OnProgress

REFERENCE_FILE = "reference_logps.safetensors"
HELD_OUT_REFERENCE_FILE = "held_out_reference_logps.safetensors"
FORMAT = 4
"""Increased when a change of attention, head, packing or torch's setup changes the last bits of a
log-prob (2: no two threads make the first call of an elementary function; 3: the products of the
head are float32 also under autocast; 4: torch's attention on a CPU)."""
UNKNOWN = float("nan")
_LOGPS, _ENTROPIES = "token_logps", "entropies"


class Reference(Protocol):
    """Source of the reference's log-probs."""

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """Return the token log-probs of the pairs `indices`, whose tokens `batch` holds.

        Returns:
            (2P, time), in the same order as the policy's.
        """
        ...

    def exchange(self, group: ProcessGroup) -> None:
        """Receive what other ranks have computed. Collective."""
        ...

    def complete(self, group: ProcessGroup, on_progress: OnProgress) -> None:
        """Compute all values now, each rank its share, if they are kept. Collective.

        With shards a model that is needed by one rank alone could not be computed later.
        """
        ...


class LiveReference:
    """Reference that runs the frozen model on every batch."""

    def __init__(self, model: Frozen, device: Device) -> None:
        self._model, self._device = model, device

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        with self._model.active() as scorer, self._device.autocast():
            scores: Scores = scorer(batch)
        return scores.token_logps

    def exchange(self, group: ProcessGroup) -> None:
        """Do nothing: this reference keeps no values."""

    def complete(self, group: ProcessGroup, on_progress: OnProgress) -> None:
        """Do nothing: this reference keeps no values."""


class NoReference:
    """Placeholder for losses without a reference: all log-probs are 0, and no model is loaded."""

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        return torch.zeros(batch.mask.shape, device=batch.mask.device)

    def exchange(self, group: ProcessGroup) -> None:
        """Do nothing: this reference keeps no values."""

    def complete(self, group: ProcessGroup, on_progress: OnProgress) -> None:
        """Do nothing: this reference keeps no values."""


def open_references(
    inputs: RunInputs, load: Callable[[], Frozen], directory: Path
) -> tuple[Reference, Reference]:
    """Return the references of the training pairs and of the held-out pairs.

    Args:
        inputs: inputs of the run.
        load: loads the frozen model onto the run's device.
        directory: directory of the run, in which log-probs are cached.
    """
    device, profile = inputs.device, inputs.profile
    if not profile.dpo.needs_reference:
        return NoReference(), NoReference()
    if profile.train.layout == "padded":
        live = LiveReference(load(), device)
        return live, live
    architecture = inputs.reference_weights.architecture
    # For models that are not known to pack, the longest sequence may decide whether they do.
    longest = None if architecture.supports_packing else inputs.longest_sequence
    model = inputs.fingerprints["reference"], architecture.to_dict(), longest
    # Weighting (WPO) reads more off the logits, by other operations, with other last bits.
    arithmetic = (
        torch.get_float32_matmul_precision(),
        profile.train.compile,
        profile.dpo.use_weighting,
        profile.model.weights_dtype,
        FORMAT,
    )

    def cached(
        name: str, pairs: TokenizedPairs, batches: list[tuple[int, ...]], *, with_entropies: bool
    ) -> Reference:
        # The last bits depend on the model of a GPU, not on its index.
        place = device.type, device.versions
        facts = (model, place, device.dtype, arithmetic, pairs.fingerprint(), batches)
        key = hashlib.sha256(str(facts).encode()).hexdigest()
        paths = [directory / name]
        if (cache := cache_directory()) is not None:
            # The values of another run are used only if this run would compute the same bits. Its
            # own values are used in any case: a resume must continue with what it began with.
            versions = environment() | quantizer_version(inputs.reference_weights.quantization)
            here = versions, device.name, processor(), profile.train.deterministic
            shared_key = hashlib.sha256(f"{key} {here}".encode()).hexdigest()
            paths.append(cache / "reference" / f"{shared_key}.safetensors")
        return CachedReference(
            pairs,
            batches,
            device,
            load,
            paths,
            key,
            with_entropies=with_entropies,
            # With dropout the policy's batches hold each prompt twice.
            can_reuse_batches=not profile.has_dropout,
        )

    batches = inputs.batches
    return (
        cached(REFERENCE_FILE, inputs.pairs, batches.reference_batches, with_entropies=False),
        cached(
            HELD_OUT_REFERENCE_FILE,
            inputs.held_out,
            batches.held_out_batches,
            with_entropies=True,
        ),
    )


class CachedReference:
    """Reference that computes each log-prob once, and caches it.

    A pair is always computed in the same batch, whatever batch asks for it first: the same matrix
    shapes give the same bits, however often a run is interrupted.

    Args:
        pairs: the pairs whose log-probs are needed.
        batches: indices of the pairs that are computed together; each pair is in exactly one.
        device: device and dtype.
        load: loads the frozen model onto that device; called when it is first needed.
        paths: cache files. The first, beside the run, is written also while values are missing.
        key: hash of everything that decides the values; a file with another key is not used.
        with_entropies: cache the entropies of the distributions too, for `scores`.
        can_reuse_batches: a batch that is handed in has the tensors that this class would build.
    """

    def __init__(
        self,
        pairs: TokenizedPairs,
        batches: Sequence[Sequence[int]],
        device: Device,
        load: Callable[[], Frozen],
        paths: Sequence[Path] = (),
        key: str = "",
        *,
        with_entropies: bool = False,
        can_reuse_batches: bool = False,
    ) -> None:
        self._pairs, self._batches, self._device, self._load = pairs, batches, device, load
        self._batch_of = {i: number for number, indices in enumerate(batches) for i in indices}
        # The values of all responses lie in one flat tensor: side 2i is the chosen response of pair
        # i, side 2i + 1 the rejected one, each from _offsets[side] to _offsets[side + 1]. One more
        # value at the end is 0, for padding.
        lengths = pairs.response_tokens.flatten().tolist()
        self._offsets = list(itertools.accumulate(lengths, initial=0))
        self._paths, self._key = paths, key
        self._unreadable: set[Path] = set()
        self._names = (_LOGPS, _ENTROPIES) if with_entropies else (_LOGPS,)
        self._can_reuse_batches = can_reuse_batches
        self._is_dirty = bool(pairs)
        values = self._read_cache()
        if values is None:
            dtype = torch.promote_types(device.dtype, torch.float32)
            unknown = torch.full((self._offsets[-1],), UNKNOWN, dtype=dtype)
            values = {name: unknown.clone() for name in self._names}
        # One flag per batch on the CPU: looking for NaN on a GPU would wait for it at each step.
        firsts = [values[_LOGPS][self._offsets[2 * indices[0]]] for indices in batches]
        self._is_known = [not first.isnan() for first in firsts]
        self._values = {
            name: F.pad(values[name], (0, 1)).to(device.torch_device) for name in self._names
        }
        self._model: Frozen | None = None

    @property
    def is_complete(self) -> bool:
        """Return True if every log-prob is known."""
        return all(self._is_known)

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`; `batch` must be packed, whose rows are response tokens only."""
        return self._values_of(_LOGPS, indices, batch)

    def scores(self, indices: Sequence[int], batch: Batch) -> Scores:
        """Return the scores of a policy with the same weights; needs `with_entropies`."""
        logps, entropies = (self._values_of(name, indices, batch) for name in self._names)
        return Scores(logps, batch.mask, aux_loss=None, entropies=entropies)

    def exchange(self, group: ProcessGroup) -> None:
        """See `Reference`."""
        if group.world_size == 1 or not self._pairs:
            return
        known_before = sum(self._is_known)
        known = group.all_reduce_max(torch.tensor(self._is_known, dtype=torch.uint8))
        # Nothing new for any rank: the values are large, so they are not sent.
        if min(group.all_gather(torch.tensor(known_before))) == int(known.sum()):
            return
        for name, own in self._values.items():
            # A maximum with NaN is NaN, so unknown values travel as -inf.
            values = group.all_reduce_max(own.nan_to_num(nan=-torch.inf, neginf=-torch.inf))
            self._values[name] = torch.where(values.isneginf(), UNKNOWN, values)
        self._is_known = known.bool().tolist()
        self._is_dirty |= sum(self._is_known) > known_before
        if self.is_complete:
            self._model = None

    def complete(self, group: ProcessGroup, on_progress: OnProgress) -> None:
        """See `Reference`; all ranks must know the same values, from `exchange`."""
        missing = [number for number, is_known in enumerate(self._is_known) if not is_known]
        for start in range(0, len(missing), group.world_size):
            turn = missing[start : start + group.world_size]
            on_progress("reference", start, len(missing), "batches")
            with group.computing():
                # In the last turn some ranks repeat a batch: all make the same number of forwards.
                self._compute_batch(turn[min(group.rank, len(turn) - 1)], None)
        self.exchange(group)

    def save(self) -> None:
        """Write new values to the cache files; the shared cache may fail, the run's may not."""
        if not self._is_dirty or not self._paths:
            return
        beside_run, *shared = self._paths
        values = {name: tensor[:-1].cpu() for name, tensor in self._values.items()}
        if beside_run not in self._unreadable:
            write_cached(beside_run, self._key, values)
        if self.is_complete:
            for path in (each for each in shared if each not in self._unreadable):
                with contextlib.suppress(OSError, SafetensorError):
                    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                    remove_unused(path.parent)
                    write_cached(path, self._key, values)
        self._is_dirty = False

    def _read_cache(self) -> Mapping[str, Tensor] | None:
        for path in self._paths:
            try:
                values = load_cached(path, self._key)
            except OSError:
                self._unreadable.add(path)
                continue
            if values is not None and self._fits(values):
                self._is_dirty = path != self._paths[0]
                # `remove_unused` keeps files that were used lately.
                for used in (path, path.with_name(manifest_name(path))):
                    with contextlib.suppress(OSError):
                        os.utime(used)
                return values
        return None

    def _fits(self, values: Mapping[str, Tensor]) -> bool:
        length = self._offsets[-1]
        return all(name in values and len(values[name]) == length for name in self._names)

    def _values_of(self, name: str, indices: Sequence[int], batch: Batch) -> Tensor:
        """Return (2P, time): the chosen sides of some pairs, then the rejected sides."""
        for index in indices:
            if not self._is_known[number := self._batch_of[index]]:
                is_same = self._can_reuse_batches and tuple(self._batches[number]) == tuple(indices)
                self._compute_batch(number, batch if is_same else None)
        return self._values[name][self._positions(indices)]

    def _compute_batch(self, number: int, batch: Batch | None) -> None:
        """Score the pairs of one batch; its tensors are built if they are not given."""
        if self._model is None:
            self._model = self._load()
        indices = self._batches[number]
        if batch is None:
            pairs = [self._pairs[i] for i in indices]
            batch = make_batch(pairs, "packed", max_seq_len=0).to(self._device.torch_device)
        with self._model.active() as scorer, self._device.autocast():
            scores: Scores = scorer(batch, with_entropies=_ENTROPIES in self._names)
        positions = self._positions(indices).flatten()
        for name in self._names:
            values: Tensor = getattr(scores, name)
            self._values[name].scatter_(0, positions, values.flatten().to(self._values[name].dtype))
            self._values[name][-1] = 0.0
        self._is_known[number] = self._is_dirty = True
        if self.is_complete:
            self._model = None

    def _positions(self, indices: Sequence[int]) -> Tensor:
        """Return the indices of the values of these pairs, (2P, time), on the device."""
        sides = [2 * index for index in indices] + [2 * index + 1 for index in indices]
        starts = torch.tensor([self._offsets[side] for side in sides]).unsqueeze(1)
        lengths = torch.tensor([self._offsets[side + 1] for side in sides]).unsqueeze(1) - starts
        time = torch.arange(int(lengths.max()))
        positions = torch.where(time < lengths, starts + time, self._offsets[-1])
        return to_device(positions, self._device.torch_device)


def load_cached(path: Path, key: str) -> dict[str, Tensor] | None:
    """Return the cached values by their name in `Scores`; None unless intact and of this key.

    Raises:
        OSError: the files cannot be read. They may be intact, so they must not be replaced.
    """
    try:
        contents = integrity.read_verified(path.parent, {"key": key}, name=manifest_name(path))
        values = load_tensors(bytes(contents[path.name]))
    except (integrity.DamageError, SafetensorError, LookupError, ValueError):
        return None
    is_valid = all(each.dtype == torch.float32 and each.ndim == 1 for each in values.values())
    return values if is_valid else None


def write_cached(path: Path, key: str, values: Mapping[str, Tensor]) -> None:
    """Write values of response tokens so that `load_cached` finds them under `key`.

    The manifest follows the values. A crash in between leaves a manifest of the old values, which
    does not fit the new ones: they are computed again, to the same bits.
    """
    write_atomically(path, lambda temporary: save_file(dict(values), temporary))

    def write_manifest(temporary: Path) -> None:
        integrity.write_manifest(path.parent, [path], {"key": key}, name=temporary.name)

    write_atomically(path.with_name(manifest_name(path)), write_manifest)


def manifest_name(path: Path) -> str:
    """Return the name of the manifest beside a cache file."""
    return f"{path.name}.json"
