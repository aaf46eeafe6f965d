"""From tokenized pairs to the tensors of one forward, in two layouts that mean the same.

`reference` pads every sequence to `max_seq_len`, as the reference script does: our oracle.
`packed` lays each pair out as prompt, chosen, rejected in one row without padding, so that each
token is computed once; the two continuations restart at the prompt's last position.

Shape legend: P pairs, S = 2P sequences (chosen first, then rejected), T time, N targets.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from dpo_cli.data.chat import Tokenized, TokenizedPair

Layout = Literal["packed", "padded"]


@dataclass(frozen=True)
class PaddedBatch:
    """input_ids, labels: (S, T) int64; mask: (S, T) bool, true where the label is of a response.

    lengths: (S,), inputs of each sequence that are not padding.
    """

    input_ids: Tensor
    labels: Tensor
    mask: Tensor
    lengths: Tensor

    @property
    def pairs(self) -> int:
        """P."""
        return len(self.input_ids) // 2

    @property
    def computed_tokens(self) -> int:
        """Positions the model computes, padding included."""
        return self.input_ids.numel()

    @property
    def padding_tokens(self) -> int:
        """Positions that stand for nothing."""
        return self.computed_tokens - int(self.lengths.sum())

    def to(self, device: torch.device) -> PaddedBatch:
        """The same on another device."""
        tensors = (self.input_ids, self.labels, self.mask, self.lengths)
        return PaddedBatch(*(to_device(tensor, device) for tensor in tensors))


@dataclass(frozen=True)
class PairSegments:
    """How many tokens of the packed row are a pair's shared prompt, chosen and rejected parts."""

    prompt: int
    chosen: int
    rejected: int

    @property
    def total(self) -> int:
        """Tokens of the pair."""
        return self.prompt + self.chosen + self.rejected


@dataclass(frozen=True)
class PackedBatch:
    """One row of T tokens, and where its responses lie.

    input_ids, position_ids: (1, T) int64. segments: P of them, in the order of the row.
    target_positions: (N,), where in the row to predict; target_labels: (N,), the token to predict.
    targets: (S, time), index into the N targets; mask: (S, time), false where that is padding.
    A target that both sides share stands once among the N and in both rows of `targets`.
    """

    input_ids: Tensor
    position_ids: Tensor
    segments: tuple[PairSegments, ...]
    target_positions: Tensor
    target_labels: Tensor
    targets: Tensor
    mask: Tensor

    @property
    def pairs(self) -> int:
        """P."""
        return len(self.segments)

    @property
    def computed_tokens(self) -> int:
        """Positions the model computes."""
        return self.input_ids.numel()

    @property
    def padding_tokens(self) -> int:
        """Positions that stand for nothing: there are none."""
        return 0

    def to(self, device: torch.device) -> PackedBatch:
        """The same on another device."""
        return PackedBatch(
            to_device(self.input_ids, device),
            to_device(self.position_ids, device),
            self.segments,
            to_device(self.target_positions, device),
            to_device(self.target_labels, device),
            to_device(self.targets, device),
            to_device(self.mask, device),
        )


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """The same elsewhere; to a card from pinned memory, so that nobody waits for the copy."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


Batch: TypeAlias = PaddedBatch | PackedBatch


def make_batch(
    pairs: Sequence[TokenizedPair],
    layout: Layout,
    *,
    max_seq_len: int,
    pad_id: int = 0,
    share_prompts: bool = True,
) -> Batch:
    """The tensors of one micro-batch.

    Args:
        pairs: P of them, each with a response token on both sides.
        layout: see the module's docstring.
        max_seq_len: `reference` pads to this many tokens less one, since labels are shifted.
        pad_id: token id of the padding; it never influences a response.
        share_prompts: `packed` computes a common prompt once. Not with dropout, under which the
            two sides must draw for themselves.
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
    lengths = torch.tensor([len(sequence.ids) - 1 for sequence in sequences])
    return PaddedBatch(ids[:, :-1].contiguous(), ids[:, 1:].contiguous(), response[:, 1:], lengths)


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

        # Input t predicts token t + 1. Up to the last shared input both sides predict the same
        # token; that input itself predicts each side's first own token.
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
    """Inputs both sides have in common: their longest common prefix of token ids.

    A sequence's last token is never an input, so a side that the other one continues shares all
    of its inputs but no more.
    """
    chosen, rejected = pair.chosen.ids, pair.rejected.ids
    length = min(len(chosen), len(rejected))
    different = (chosen[:length] != rejected[:length]).nonzero()
    common = int(different[0]) if len(different) else length
    return min(common, length - 1)


def _response_inputs(side: Tokenized, start: int, end: int | None) -> Tensor:
    """The inputs t, start <= t < end, whose next token belongs to a response."""
    stop = len(side.ids) - 1 if end is None else max(end, 0)
    return start + side.response[start + 1 : stop + 1].nonzero().squeeze(-1)
