"""Batches of tensors in two equivalent layouts.

`padded` pads every sequence to `max_seq_len`, as MiniMind's script does. It is slow and serves as
the oracle of the other one. `packed` stores each pair as prompt, chosen, rejected in one row
without padding, so that each token is computed once. The rejected part restarts at the position
after the prompt.

Shape legend: P pairs, S = 2P sequences (chosen first, then rejected), T time, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.sequences import PairSegments, Sequences, locate_sequences
from dpo_cli.data.staging import stage

Layout = Literal["packed", "padded"]


@dataclass(frozen=True)
class PaddedBatch:
    """Sequences padded to one length.

    input_ids, labels: (S, T) int64. mask: (S, T) bool, true where the label is a response token.
    lengths: (S,) int64, inputs of each sequence without padding. padding_tokens: positions that are
    padding; counted on the CPU, because reading a sum from a GPU would wait for the GPU. host: the
    same batch on the CPU; None if this batch is on the CPU.
    """

    input_ids: Tensor
    labels: Tensor
    mask: Tensor
    lengths: Tensor
    padding_tokens: int
    host: PaddedBatch | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs, P."""
        return len(self.input_ids) // 2

    @property
    def computed_tokens(self) -> int:
        """Positions that the model computes, with padding."""
        return self.input_ids.numel()

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of `with_tensors`."""
        return self.input_ids, self.labels, self.mask, self.lengths

    def with_tensors(self, tensors: Sequence[Tensor]) -> PaddedBatch:
        """Return a copy of this CPU batch that consists of `tensors`, its copies on a device."""
        input_ids, labels, mask, lengths = tensors
        return PaddedBatch(input_ids, labels, mask, lengths, self.padding_tokens, self)

    def for_device(self, device: torch.device) -> PaddedBatch:
        """Return the batch with the tensors that a forward on `device` needs, on the CPU."""
        return self

    def to(self, device: torch.device) -> PaddedBatch:
        """Copy the batch from the CPU to a device, without waiting for the copy."""
        return self if device.type == "cpu" else self.with_tensors(stage(self.tensors).to(device))


@dataclass(frozen=True)
class PackedBatch:
    """All pairs in one row of T tokens, with the positions of their response tokens.

    input_ids, position_ids: (1, T) int64. segments: P entries, in the order of the row.
    target_positions: (N,) int64, positions in the row whose next token is a response token.
    target_labels: (N,) int64, those next tokens.
    targets: (S, time) int64, indices into the N targets. mask: (S, time) bool, false at padding.
    A target that both sides share is stored once among the N and indexed by both rows of `targets`.
    sequences: arguments of the attention kernels of accelerators; None on a CPU. host: the same
    batch on the CPU, to read values without waiting; None if this batch is on the CPU.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[PairSegments, ...]
    target_positions: Tensor
    target_labels: Tensor
    targets: Tensor
    mask: Tensor
    sequences: Sequences | None = None
    host: PackedBatch | None = None

    @property
    def pairs(self) -> int:
        """Number of pairs, P."""
        return len(self.segments)

    @property
    def computed_tokens(self) -> int:
        """Positions that the model computes."""
        return self.input_ids.numel()

    @property
    def padding_tokens(self) -> int:
        """Zero: a packed row has no padding."""
        return 0

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All tensors, in the order of `with_tensors`."""
        own = self.input_ids, self.position_ids, self.target_positions, self.target_labels
        found = self.sequences
        located = (found.key_index, found.cu_seqlens_q, found.cu_seqlens_k) if found else ()
        return *own, self.targets, self.mask, *located

    def with_tensors(self, tensors: Sequence[Tensor]) -> PackedBatch:
        """Return a copy of this CPU batch that consists of `tensors`, its copies on a device."""
        ids, positions, target_positions, labels, targets, mask, *located = tensors
        found = self.sequences
        if found is not None:
            index, queries, keys = located
            found = Sequences(index, queries, keys, found.max_seqlen_q, found.max_seqlen_k)
        return PackedBatch(
            *(ids, positions, self.segments, target_positions, labels, targets, mask, found),
            host=self,
        )

    def for_device(self, device: torch.device) -> PackedBatch:
        """Return the batch with the tensors that a forward on `device` needs, on the CPU."""
        if device.type == "cpu" or self.sequences is not None:
            return self
        return replace(self, sequences=locate_sequences(self.segments))

    def to(self, device: torch.device) -> PackedBatch:
        """Copy the batch from the CPU to a device, without waiting for the copy."""
        if device.type == "cpu":
            return self
        ready = self.for_device(device)
        return ready.with_tensors(stage(ready.tensors).to(device))


Batch: TypeAlias = PaddedBatch | PackedBatch


def make_batch(
    pairs: Sequence[TokenizedPair],
    layout: Layout,
    *,
    max_seq_len: int,
    pad_id: int = 0,
    share_prompts: bool = True,
) -> Batch:
    """Build the tensors of one micro-batch.

    Args:
        pairs: P pairs, each with a response token on both sides.
        layout: "padded" or "packed"; see the module docstring.
        max_seq_len: the padded layout pads to `max_seq_len - 1`, because labels are shifted by one.
        pad_id: token id of the padding. Causal attention keeps it from influencing a response.
        share_prompts: compute a common prompt once in the packed layout. Must be False with
            dropout, where the two sides draw independent masks.
    """
    if layout == "padded":
        return _padded(pairs, max_seq_len, pad_id)
    return _packed(pairs, share_prompts)


def _padded(pairs: Sequence[TokenizedPair], max_seq_len: int, pad_id: int) -> PaddedBatch:
    sequences = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
    ids = torch.full((len(sequences), max_seq_len), pad_id)
    response = torch.zeros((len(sequences), max_seq_len), dtype=torch.bool)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence.ids)] = sequence.ids
        response[row, : len(sequence.ids)] = sequence.response
    lengths = [len(sequence.ids) - 1 for sequence in sequences]
    return PaddedBatch(
        ids[:, :-1].contiguous(),
        ids[:, 1:].contiguous(),
        response[:, 1:],
        torch.tensor(lengths),
        padding_tokens=len(sequences) * (max_seq_len - 1) - sum(lengths),
    )


def _packed(pairs: Sequence[TokenizedPair], share_prompts: bool) -> PackedBatch:
    segments: list[PairSegments] = []
    inputs: list[Tensor] = []
    positions: list[Tensor] = []
    target_positions: list[Tensor] = []
    target_labels: list[Tensor] = []
    chosen_targets: list[Tensor] = []
    rejected_targets: list[Tensor] = []
    start = targets = 0
    for pair in pairs:
        shared = shared_inputs(pair) if share_prompts else 0
        chosen, rejected = len(pair.chosen.ids) - 1, len(pair.rejected.ids) - 1
        parts = PairSegments(shared, chosen - shared, rejected - shared)
        segments.append(parts)
        inputs += pair.chosen.ids[:-1], pair.rejected.ids[shared:-1]
        positions += torch.arange(chosen), torch.arange(shared, rejected)

        # Input t predicts token t + 1. Before the last shared input both sides predict the same
        # token. The last shared input predicts the first token of each side, so it belongs to both.
        common = _response_inputs(pair.chosen, 0, shared - 1)
        own_chosen = _response_inputs(pair.chosen, max(shared - 1, 0), None)
        own_rejected = _response_inputs(pair.rejected, max(shared - 1, 0), None)
        after_chosen = torch.where(own_rejected < shared, 0, parts.chosen)
        target_positions += start + common, start + own_chosen, start + own_rejected + after_chosen
        target_labels += (
            pair.chosen.ids[common + 1],
            pair.chosen.ids[own_chosen + 1],
            pair.rejected.ids[own_rejected + 1],
        )
        first_chosen = targets + len(common)
        first_rejected = first_chosen + len(own_chosen)
        end = first_rejected + len(own_rejected)
        chosen_targets.append(torch.arange(targets, first_rejected))
        rejected_targets.append(
            torch.cat([torch.arange(targets, first_chosen), torch.arange(first_rejected, end)])
        )
        start, targets = start + parts.total, end

    rows = chosen_targets + rejected_targets
    return PackedBatch(
        input_ids=torch.cat(inputs).unsqueeze(0),
        position_ids=torch.cat(positions).unsqueeze(0),
        segments=tuple(segments),
        target_positions=torch.cat(target_positions),
        target_labels=torch.cat(target_labels),
        targets=pad_sequence(rows, batch_first=True),
        mask=pad_sequence([torch.ones_like(row) for row in rows], batch_first=True).bool(),
    )


def shared_inputs(pair: TokenizedPair) -> int:
    """Count the inputs that both sides share: their longest common prefix of token ids.

    The last token of a sequence is never an input. If one side is a prefix of the other, all of its
    inputs are shared and nothing more.
    """
    chosen, rejected = pair.chosen.ids, pair.rejected.ids
    length = min(len(chosen), len(rejected))
    different = (chosen[:length] != rejected[:length]).nonzero()
    common = int(different[0]) if len(different) else length
    return min(common, length - 1)


def _response_inputs(side: Tokenized, start: int, end: int | None) -> Tensor:
    """Return the inputs t, start <= t < end, whose next token is a response token."""
    stop = len(side.ids) - 1 if end is None else max(end, 0)
    return start + side.response[start + 1 : stop + 1].nonzero().squeeze(-1)
