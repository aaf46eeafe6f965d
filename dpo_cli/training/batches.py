"""Batch planner: from the order of the pairs to micro-batches, and from those to tensors."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import NamedTuple

import torch
from torch import Tensor

from dpo_cli.compute.accelerator import is_cuda
from dpo_cli.compute.device import Device
from dpo_cli.data.batching import Batch, make_batch
from dpo_cli.data.lookahead import ahead
from dpo_cli.data.microbatching import MicroBatch, make_micro_batches
from dpo_cli.data.sampler import BatchSampler, GlobalBatch
from dpo_cli.data.staging import stage
from dpo_cli.data.tokens import TokenizedPairs
from dpo_cli.models.forward_size import EVALUATION_FACTOR
from dpo_cli.objective.logps import has_float64
from dpo_cli.profile.schema import Profile

_EVALUATED_TOGETHER = 1024
"""Number of pairs that are regrouped into evaluation forwards on an accelerator."""


class Forward(NamedTuple):
    """Pairs that are computed at once.

    Attributes:
        indices: of the P training pairs.
        batch: their tensors, on the device.
        weights: (P,) float64, see `MicroBatch`; on the device on which the losses are computed.
        is_empty: the pairs belong to another forward and do not count here.
    """

    indices: tuple[int, ...]
    batch: Batch
    weights: Tensor
    is_empty: bool = False


@dataclass(frozen=True)
class BatchPlanner:
    """Groups pairs into micro-batches and builds their tensors.

    Attributes:
        profile: layout, limits and dropout.
        device: where the tensors go.
        pad_id: token id of padding.
        pairs, held_out: training and held-out pairs.
        order: which pairs form each optimizer step; it does not depend on the number of ranks.
        use_moe: the policy has experts.
        max_tokens_per_forward: limit of a forward, where the profile leaves it open.
        world_size: number of ranks that share each optimizer step.
        is_sharded: all ranks make the same number of forwards, some of them empty.
    """

    profile: Profile
    device: Device
    pad_id: int
    pairs: TokenizedPairs
    held_out: TokenizedPairs
    order: BatchSampler
    use_moe: bool
    max_tokens_per_forward: int
    world_size: int = 1
    is_sharded: bool = False

    def make_batch(self, pairs: TokenizedPairs, indices: Sequence[int]) -> Batch:
        """Return the tensors of these pairs, on the device."""
        return self._make_batch(pairs, indices).to(self.device.torch_device)

    def make_forward(self, micro_batch: MicroBatch) -> Forward:
        """Return a micro-batch of training pairs with its tensors, on the device."""
        # In float64: 1 / (pairs * accumulation_steps) has no exact float32 value.
        weights = torch.tensor(micro_batch.weights, dtype=torch.float64)
        device, is_empty = self.device.torch_device, not any(micro_batch.weights)
        if device.type == "cpu":
            batch_on_cpu = self.make_batch(self.pairs, micro_batch.indices)
            return Forward(micro_batch.indices, batch_on_cpu, weights, is_empty)
        batch = self._make_batch(self.pairs, micro_batch.indices).for_device(device)
        if has_float64(device):
            *tensors, weights = stage([*batch.tensors, weights]).to(device)
        else:
            tensors = stage(batch.tensors).to(device)
        return Forward(micro_batch.indices, batch.with_tensors(tensors), weights, is_empty)

    def forwards(
        self, global_batches: Iterable[GlobalBatch], rank: int = 0
    ) -> Iterator[tuple[GlobalBatch, Iterator[Forward]]]:
        """Yield optimizer steps, each with an iterator over the forwards of a rank.

        Consume each iterator before the next step. With CUDA the next forward is made while one is
        computed, also across steps.
        """

        def share(step: GlobalBatch) -> list[MicroBatch]:
            shares = self.micro_batches_by_rank(step.micro_batches)
            missing = max(map(len, shares)) - len(shares[rank]) if self.is_sharded else 0
            return shares[rank] + missing * [self._empty(step)] if missing else shares[rank]

        steps, again = itertools.tee((each, share(each)) for each in global_batches)
        stream = ahead(
            self.make_forward,
            (micro_batch for _, own in again for micro_batch in own),
            is_threaded=is_cuda(self.device.torch_device),
        )
        for global_batch, own in steps:
            yield global_batch, itertools.islice(stream, len(own))

    def _empty(self, step: GlobalBatch) -> MicroBatch:
        """Return a micro-batch without weight: the pair of the step with the fewest tokens."""
        indices = [index for micro_batch in step.micro_batches for index in micro_batch]
        tokens = self.pairs.computed_tokens[indices]
        return MicroBatch((indices[int(tokens.argmin())],), (0.0,))

    def _make_batch(self, pairs: TokenizedPairs, indices: Sequence[int]) -> Batch:
        return make_batch(
            [pairs[i] for i in indices],
            self.profile.train.layout,
            max_seq_len=self.profile.data.max_seq_len,
            pad_id=self.pad_id,
            # With dropout the two copies of a shared prompt would differ.
            share_prompts=not self.profile.has_dropout,
        )

    def micro_batches(self, global_batch: Sequence[Sequence[int]]) -> list[MicroBatch]:
        """Return the forwards of one optimizer step, those of all ranks."""
        return [each for share in self.micro_batches_by_rank(global_batch) for each in share]

    def micro_batches_by_rank(
        self, global_batch: Sequence[Sequence[int]]
    ) -> list[list[MicroBatch]]:
        """Return the forwards of one optimizer step, one list per rank.

        Args:
            global_batch: the pair indices of each micro-batch of the step, as the order has them.
        """
        return self._split(global_batch, self.pairs, self.world_size)

    @cached_property
    def reference_batches(self) -> list[tuple[int, ...]]:
        """Indices of the pairs that the reference scores together: the forwards of the first epoch.

        The same as the policy's, because the size of a matrix product decides its last bits: only
        so are equal weights compared with equal bits, and the loss begins at ln 2 exactly.
        """
        return [
            micro_batch.indices
            for global_batch in itertools.takewhile(
                lambda global_batch: global_batch.epoch == 0, self.order.global_batches()
            )
            for micro_batch in self.micro_batches(global_batch.micro_batches)
        ]

    @cached_property
    def held_out_batches(self) -> list[tuple[int, ...]]:
        """Indices of the held-out pairs that are scored together.

        On an accelerator the forwards are larger than in training, because nothing is kept for
        gradients.
        """
        count, size, factor = len(self.held_out), self.order.batch_size, 1
        if self.device.type != "cpu" and self.can_regroup:
            size, factor = max(size, _EVALUATED_TOGETHER), EVALUATION_FACTOR
        chunks = [range(start, min(start + size, count)) for start in range(0, count, size)]
        return [
            micro_batch.indices
            for chunk in chunks
            for micro_batch in self._split([chunk], self.held_out, world_size=1, factor=factor)[0]
        ]

    @property
    def can_regroup(self) -> bool:
        """Return True if the pairs of a step may be grouped otherwise, with the same gradient.

        Not with experts (the aux_loss is per micro-batch), not with losses that look at a whole
        batch, not with dropout (the random numbers would differ) and not in the padded layout.
        """
        is_independent = not self.use_moe and not self.profile.dpo.needs_whole_batch
        is_packed = self.profile.train.layout == "packed"
        return is_packed and not self.profile.has_dropout and is_independent

    def _split(
        self,
        global_batch: Sequence[Sequence[int]],
        pairs: TokenizedPairs,
        world_size: int,
        factor: int = 1,
    ) -> list[list[MicroBatch]]:
        indices = [index for micro_batch in global_batch for index in micro_batch]
        tokens = dict(zip(indices, pairs.computed_tokens[indices].tolist(), strict=True))
        limit = self.profile.train.max_tokens_per_forward or self.max_tokens_per_forward
        return make_micro_batches(
            global_batch,
            self.order.accumulation_steps,
            tokens,
            factor * limit if self.can_regroup else None,
            world_size,
        )
