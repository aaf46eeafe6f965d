"""A packed batch computed the plain way, for models whose attention packed rows cannot have.

Each sequence is a row of its own with its own copy of the prompt, padded on the right to the
longest of this batch, and the model's own forward runs from end to end. All it spares are the
logits that nobody reads: the head is given the hidden states at response positions alone.

Shape legend: S = 2P sequences (chosen first, then rejected), T time, R response tokens,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from dpo_cli.data.batching import PackedBatch


@dataclass(frozen=True)
class SequenceBatch:
    """input_ids: (S, T) int64; lengths: (S,), what is not padding of them.

    rows, times, labels: (R,), where the responses lie, in the order of the batch's mask, and the
    token to predict there.
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    times: Tensor
    labels: Tensor

    @property
    def is_real(self) -> Tensor:
        """(S, T) bool: not padding."""
        time = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return time < self.lengths.unsqueeze(1)


def split_sequences(batch: PackedBatch) -> SequenceBatch:
    """The same sequences, each in a row of its own."""
    chosen, rejected, shift = [], [], []
    start = 0
    for pair in batch.segments:
        row = torch.arange(start, start + pair.total)
        chosen.append(row[: pair.prompt + pair.chosen])
        rejected.append(torch.cat([row[: pair.prompt], row[pair.prompt + pair.chosen :]]))
        shift.append((start, pair.prompt, pair.chosen))
        start += pair.total
    places = chosen + rejected
    device = batch.input_ids.device
    ids = batch.input_ids[0, pad_sequence(places, batch_first=True).to(device)]
    starts, prompts, skipped = torch.tensor(shift, device=device).repeat(2, 1).T
    skipped = skipped.clone()
    skipped[: batch.pairs] = 0  # behind a chosen part nothing is left out

    rows = batch.mask.nonzero()[:, 0]
    targets = batch.targets[batch.mask]
    times = batch.target_positions[targets] - starts[rows]
    times = times - torch.where(times >= prompts[rows], skipped[rows], 0)
    lengths = torch.tensor([len(place) for place in places], device=device)
    return SequenceBatch(ids, lengths, rows, times, batch.target_labels[targets])


def sequence_logits(model: PreTrainedModel, batch: SequenceBatch) -> Tensor:
    """(R, V): the logits of the responses as the whole model gives them."""

    def only_responses(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        return hidden[batch.rows, batch.times].unsqueeze(0), *others

    hook = model.get_output_embeddings().register_forward_pre_hook(only_responses)
    try:
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.is_real.long(), use_cache=False
        )
    finally:
        hook.remove()
    logits: Tensor = output.logits[0]
    return logits
