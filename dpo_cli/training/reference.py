"""The frozen reference: what each response token was worth before training.

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
from torch.nn.utils.rnn import pad_sequence

from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.chat import TokenizedPair
from dpo_cli.files import write_atomically
from dpo_cli.models.scoring import ResponseScorer, Scores
from dpo_cli.training.device import Compute


class Reference(Protocol):
    """Gives the reference's log-probs of a batch."""

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """(2P, time), like the policy's, of the pairs `indices`, which `batch` holds."""
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


class KeptReference:
    """Looks up what was computed once.

    Args:
        token_logps: (N,), of every response token of every pair: pair by pair, chosen first.
        pairs: the pairs, which say whose token is whose.
        device: where the answers are wanted.
    """

    def __init__(
        self, token_logps: Tensor, pairs: Sequence[TokenizedPair], device: torch.device
    ) -> None:
        lengths = [side.response_tokens for pair in pairs for side in (pair.chosen, pair.rejected)]
        self._sides = torch.split(token_logps.to(device), lengths)

    def token_logps(self, indices: Sequence[int], batch: Batch) -> Tensor:
        """See `Reference`; for a packed batch, whose rows are response tokens and nothing else."""
        chosen = [self._sides[2 * index] for index in indices]
        rejected = [self._sides[2 * index + 1] for index in indices]
        return pad_sequence(chosen + rejected, batch_first=True)


@torch.no_grad()
def compute_token_logps(
    scorer: ResponseScorer,
    pairs: Sequence[TokenizedPair],
    micro_batches: Sequence[Sequence[int]],
    compute: Compute,
    on_progress: Callable[[int], None],
) -> Tensor:
    """The log-prob of every response token of every pair under a model in evaluation mode.

    Args:
        scorer: the model, on `compute.device`.
        pairs: what `micro_batches` index.
        micro_batches: every pair exactly once. Give the first epoch's own: then the same matrix
            shapes give the same bits as the policy's first forward, and the loss begins at ln 2.
        compute: device and autocast.
        on_progress: called with the number of pairs done so far.

    Returns:
        (N,) on the CPU, pair by pair, chosen first.
    """
    scorer.eval()
    sides: dict[int, Tensor] = {}
    for indices in micro_batches:
        batch = make_batch([pairs[i] for i in indices], "packed", max_seq_len=0)
        with compute.autocast():
            scores: Scores = scorer(batch.to(compute.device))
        rows = zip(scores.token_logps.cpu(), scores.mask.cpu(), strict=True)
        responses = [logps[mask] for logps, mask in rows]
        for position, index in enumerate(indices):
            sides[2 * index] = responses[position]
            sides[2 * index + 1] = responses[len(indices) + position]
        on_progress(len(sides) // 2)
    return torch.cat([sides[side] for side in sorted(sides)]) if sides else torch.empty(0)


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
    """The kept log-probs, if `path` holds them for `key` and unharmed; else None."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            logps: Tensor = file.get_tensor("token_logps")
    except (OSError, SafetensorError):
        return None
    if metadata.get("key") != key or logps.dtype != torch.float32:
        return None
    return logps if metadata.get("digest") == _digest(logps) else None


def keep(path: Path, key: str, logps: Tensor) -> None:
    """Write log-probs where `load_kept` finds them."""
    metadata = {"key": key, "digest": _digest(logps)}
    write_atomically(path, lambda temporary: save_file({"token_logps": logps}, temporary, metadata))


def _digest(logps: Tensor) -> str:
    return hashlib.sha256(bytes(logps.contiguous().numpy())).hexdigest()
