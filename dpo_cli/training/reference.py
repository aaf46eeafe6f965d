"""The frozen reference: what each response was worth before training.

In the packed layout its log-probs are computed once, kept beside the run, and the model is freed;
in the reference layout it is run again on every batch, as the reference script does.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.chat import TokenizedPair
from dpo_cli.files import write_atomically
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.objective.logps import Reduction, sequence_logps
from dpo_cli.training.device import Compute


class Reference(Protocol):
    """Gives the reference's log-probs of a batch."""

    def logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """(2P,) float64: of the pairs `indices`, which `batch` holds; chosen first."""
        ...


class LiveReference:
    """Runs the frozen model on every batch."""

    def __init__(self, scorer: ResponseScorer, compute: Compute, reduction: Reduction) -> None:
        self._scorer = scorer.eval().requires_grad_(False)
        self._compute = compute
        self._reduction = reduction

    @torch.no_grad()
    def logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        with self._compute.autocast():
            scores = self._scorer(batch)
        return sequence_logps(scores.token_logps, scores.mask, self._reduction)


class KeptReference:
    """Looks up what was computed once.

    Args:
        sums: (pairs, 2) float64, log-probs summed over each response, chosen and rejected.
        pairs: the pairs, for the lengths of their responses.
        reduction: how the policy's log-probs are reduced.
        device: where the answers are wanted.
    """

    def __init__(
        self,
        sums: Tensor,
        pairs: Sequence[TokenizedPair],
        reduction: Reduction,
        device: torch.device,
    ) -> None:
        if reduction == "mean":
            lengths = [[p.chosen.response_tokens, p.rejected.response_tokens] for p in pairs]
            sums = sums / torch.tensor(lengths, dtype=torch.int64).reshape(-1, 2)
        self._logps = sums.to(device)

    def logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`."""
        return self._logps[list(indices)].T.reshape(-1)


@torch.no_grad()
def sum_response_logps(
    scorer: ResponseScorer,
    pairs: Sequence[TokenizedPair],
    micro_batches: Sequence[Sequence[int]],
    compute: Compute,
    on_progress: Callable[[int], None],
) -> Tensor:
    """The log-prob sums of every pair's responses under a model in evaluation mode.

    Args:
        scorer: the model, on `compute.device`.
        pairs: what `micro_batches` index.
        micro_batches: every pair exactly once. Give the first epoch's own: then the same matrix
            shapes give the same bits as the policy's first forward, and the loss begins at ln 2.
        compute: device and autocast.
        on_progress: called with the number of pairs done so far.

    Returns:
        (pairs, 2) float64 on the CPU, chosen and rejected.
    """
    scorer.eval()
    sums = torch.zeros(len(pairs), 2, dtype=torch.float64)
    done = 0
    for indices in micro_batches:
        batch = make_batch([pairs[i] for i in indices], "packed", max_seq_len=0)
        with compute.autocast():
            scores = scorer(batch.to(compute.device))
        logps = sequence_logps(scores.token_logps, scores.mask, "sum")
        sums[list(indices)] = logps.reshape(2, -1).T.cpu()
        done += len(indices)
        on_progress(done)
    return sums


def fingerprint(*facts: str, pairs: Sequence[TokenizedPair]) -> str:
    """What kept log-probs belong to: the given facts, and every token and mask."""
    digest = hashlib.sha256("\n".join(facts).encode())
    for pair in pairs:
        for side in (pair.chosen, pair.rejected):
            digest.update(len(side.ids).to_bytes(8, "little"))
            digest.update(bytes(side.ids.numpy()))
            digest.update(bytes(side.response.numpy()))
    return digest.hexdigest()


def load_kept(path: Path, key: str) -> Tensor | None:
    """The kept sums, if `path` holds them for `key` and unharmed; else None."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            sums: Tensor = file.get_tensor("sums")
    except (OSError, SafetensorError):
        return None
    unharmed = metadata.get("digest") == _digest(sums)
    return sums if unharmed and metadata.get("key") == key else None


def keep(path: Path, key: str, sums: Tensor) -> None:
    """Write the sums where `load_kept` finds them."""
    metadata = {"key": key, "digest": _digest(sums)}
    write_atomically(path, lambda temporary: save_file({"sums": sums}, temporary, metadata))


def _digest(sums: Tensor) -> str:
    return hashlib.sha256(bytes(sums.contiguous().numpy())).hexdigest()
