"""Metrics of one optimizer step, summed over its pairs and over all ranks."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dpo_cli.compute.device import DTYPES, Device
from dpo_cli.compute.memory import process_bytes
from dpo_cli.data.batching import Batch
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.models.loading import without_tied_copies
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.models.trainable import Trainable
from dpo_cli.objective.logps import to_float64_device
from dpo_cli.objective.losses import PAIR_METRICS, PairScores, drop_undefined_accuracy
from dpo_cli.training.inputs import RunInputs


class StepMetrics:
    """Collects the metrics of one optimizer step on the device, and reads them once.

    Args:
        micro_batches: pair indices of each micro-batch of the step, those of all ranks.
    """

    def __init__(self, micro_batches: Sequence[Sequence[int]]) -> None:
        self.pairs = 0
        self.tokens = 0
        self.padding_tokens = 0
        self.micro_batch_losses: tuple[float, ...] = ()
        """Mean loss of the pairs of each micro-batch, without aux_loss; set by `reduce`."""
        self.aux_losses: tuple[float, ...] = ()
        """The aux_loss of each micro-batch, 0 without experts; set by `reduce`."""
        self._micro_batches = micro_batches
        self._indices: list[int] = []
        self._losses: list[Tensor] = []
        self._aux_indices: list[int] = []
        self._aux_losses: list[Tensor] = []
        self._sums: dict[str, Tensor] = {}

    def add(
        self, indices: Sequence[int], scores: PairScores, aux_loss: Tensor | None, batch: Batch
    ) -> None:
        """Add one forward. Reads nothing from the device, so it does not wait for it.

        Args:
            indices: the pairs of the forward.
            scores: their losses and rewards.
            aux_loss: scalar, None without experts.
            batch: their tokens.
        """
        self.pairs += batch.pairs
        self.tokens += batch.computed_tokens
        self.padding_tokens += batch.padding_tokens
        self._indices += indices
        self._losses.append(scores.losses.detach())
        if aux_loss is not None:
            # With experts a forward is a micro-batch, so its first pair identifies it.
            self._aux_indices.append(indices[0])
            self._aux_losses.append(aux_loss.detach().to(scores.losses.device).double())
        for name, total in scores.metric_sums().items():
            self._sums[name] = self._sums.get(name, 0.0) + total

    def reduce(self, group: ProcessGroup, grad_norm: Tensor) -> dict[str, float]:
        """Return the mean of each metric over the pairs of all ranks, and the gradient norm.

        All values leave the device in one transfer: each `item()` would wait for the device again.
        They travel in float64, which holds counts and float32 losses exactly. Collective.
        """
        names = list(self._sums)
        grad_norm = to_float64_device(grad_norm)
        local = _unpack(
            torch.cat(
                [total.double()[None] for total in (*self._sums.values(), grad_norm)]
                + self._losses
                + [aux_loss[None] for aux_loss in self._aux_losses]
            ).tolist(),
            {"sums": len(names), "grad_norm": 1, "losses": len(self._indices)}
            | {"aux_losses": len(self._aux_losses)},
        )
        sums = dict(zip(names, local["sums"], strict=True))
        losses = dict(zip(self._indices, local["losses"], strict=True))
        aux_losses = dict(zip(self._aux_indices, local["aux_losses"], strict=True))

        # Each pair belongs to one rank; the other ranks add 0, which changes no bit.
        segments: dict[str, list[float]] = {
            "counts": [self.pairs, self.tokens, self.padding_tokens, len(aux_losses)],
            # A rank without a forward does not know which metrics the loss has.
            "is_present": [float(name in sums) for name in PAIR_METRICS],
            "sums": [sums.get(name, 0.0) for name in PAIR_METRICS],
            "losses": [losses.get(i, 0.0) for indices in self._micro_batches for i in indices],
            "aux_losses": [aux_losses.get(indices[0], 0.0) for indices in self._micro_batches],
        }
        packed = [value for segment in segments.values() for value in segment]
        lengths = {name: len(segment) for name, segment in segments.items()}
        total = _unpack(group.all_reduce_sum(packed), lengths)

        self.pairs, self.tokens, self.padding_tokens, aux_count = map(int, total["counts"])
        self.micro_batch_losses = tuple(_means(total["losses"], map(len, self._micro_batches)))
        self.aux_losses = tuple(total["aux_losses"])
        means = {
            name: value / self.pairs
            for name, is_present, value in zip(
                PAIR_METRICS, total["is_present"], total["sums"], strict=True
            )
            if is_present
        }
        drop_undefined_accuracy(means)
        if aux_count:
            means["aux_loss"] = sum(self.aux_losses) / aux_count
        return means | {"grad_norm": local["grad_norm"][0]}

    def losses(self, aux_loss_coef: float) -> tuple[float, ...]:
        """Return the loss of each micro-batch with its aux_loss, after `reduce`."""
        return tuple(
            loss + aux_loss_coef * aux_loss
            for loss, aux_loss in zip(self.micro_batch_losses, self.aux_losses, strict=True)
        )


def rank_figures(group: ProcessGroup, device: Device, busy_seconds: float) -> dict[str, Any]:
    """Return seconds of work and bytes of memory of each rank; empty for a single rank."""
    if group.world_size == 1:
        return {}
    held_bytes = device.peak_bytes() or process_bytes()
    own = torch.tensor([busy_seconds, held_bytes], dtype=torch.float64)
    rows = [row.tolist() for row in group.all_gather(own)]
    seconds, memory = zip(*rows, strict=True)
    return {"rank_seconds": seconds, "rank_bytes": tuple(map(int, memory))}


def weights_moved(
    inputs: RunInputs, policy: ResponseScorer, group: ProcessGroup
) -> dict[str, float]:
    """Return the share of weights that differ from the starting weights in the export dtype.

    Counts the weights that training can change. Only the main rank has the result; with shards this
    is collective.
    """
    if not (group.is_main or group.is_sharded):
        return {}
    own = inputs.weights.architecture.own_dtypes(inputs.export_dtype)
    start = inputs.weights.state
    # Summed on the device and read once, because each read would wait for a GPU.
    moved, count = [], 0
    for name, tensor in _changed_weights(inputs.trainable, policy.model, group):
        dtype = DTYPES[own.get(name, inputs.export_dtype)]
        before = start[name].to(tensor.device, dtype, non_blocking=True)
        moved.append((tensor.to(dtype) != before).sum())
        count += tensor.numel()
    return {"weights_moved": int(torch.stack(moved).sum()) / count} if moved else {}


def _changed_weights(
    trainable: Trainable, model: PreTrainedModel, group: ProcessGroup
) -> Iterable[tuple[str, Tensor]]:
    if not group.is_sharded:
        yield from trainable.changed_weights(model)
        return
    # Shards are gathered, renamed and compared one at a time.
    for name, tensor in group.gather(without_tied_copies(model)):
        yield from trainable.to_disk_names(model, {name: tensor}).items()


def _unpack(packed: Sequence[float], lengths: Mapping[str, int]) -> dict[str, Sequence[float]]:
    """Split a flat sequence into named segments of these lengths."""
    segments, start = {}, 0
    for name, length in lengths.items():
        segments[name] = packed[start : start + length]
        start += length
    assert start == len(packed)
    return segments


def _means(values: Sequence[float], lengths: Iterable[int]) -> Iterator[float]:
    start = 0
    for length in lengths:
        yield sum(values[start : start + length]) / length
        start += length
