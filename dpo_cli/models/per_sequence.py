"""Packed batches for models that cannot compute packed rows: one padded row per sequence.

Each sequence gets its own copy of the prompt and is padded on the right to the longest sequence of
the batch; the model's own forward runs unchanged. Only unused logits are saved: the head receives
the hidden states at response positions only.

Shape legend: S = 2P sequences (chosen first, then rejected), T time, R response tokens,
V vocabulary.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from dpo_cli.data.batching import PackedBatch
from dpo_cli.data.sequences import causal_sequences
from dpo_cli.data.staging import stage


@dataclass(frozen=True)
class SequenceBatch:
    """Sequences of a packed batch as rows.

    Attributes:
        input_ids: (S, T) int64, padded on the right.
        lengths: (S,) int64, tokens of each row that are not padding.
        rows, times: (R,) int64, position of each response token's input, in the order of the packed
            batch's mask.
        labels: (R,) int64, the response tokens.
    """

    input_ids: Tensor
    lengths: Tensor
    rows: Tensor
    times: Tensor
    labels: Tensor

    @property
    def is_real(self) -> Tensor:
        """Attention mask: (S, T) bool, false for padding."""
        time = torch.arange(self.input_ids.shape[1], device=self.input_ids.device)
        return time < self.lengths.unsqueeze(1)


def split_sequences(batch: PackedBatch) -> SequenceBatch:
    """Split a packed row into one padded row per sequence, on the device of the batch."""
    device = batch.input_ids.device
    # Split on the CPU for every device: shapes depend on the number of response tokens, and reading
    # that number from a GPU would wait for the GPU.
    rows = _split_on_cpu(batch.host or batch)
    if device.type == "cpu":
        return rows
    tensors = (rows.input_ids, rows.lengths, rows.rows, rows.times, rows.labels)
    return SequenceBatch(*stage(tensors).to(device))


def _split_on_cpu(batch: PackedBatch) -> SequenceBatch:
    sequences = [
        torch.cat([torch.arange(part.start, part.stop) for part in key_slices])
        for _, key_slices in causal_sequences(batch.segments)
    ]
    positions = sequences[::2] + sequences[1::2]  # chosen and rejected alternate in a packed row
    ids = batch.input_ids[0, pad_sequence(positions, batch_first=True)]

    # From the position of a target in the packed row to its time in its own row: subtract the start
    # of the pair, and for tokens of a rejected part the chosen part that lies before it.
    pair_starts = accumulate((pair.total for pair in batch.segments), initial=0)
    offsets = [
        (start, pair.prompt, pair.chosen)
        for start, pair in zip(pair_starts, batch.segments, strict=False)
    ]
    starts, prompts, chosen_lengths = torch.tensor(offsets).repeat(2, 1).T
    skipped = chosen_lengths.clone()
    skipped[: batch.pairs] = 0
    rows = batch.mask.nonzero()[:, 0]
    targets = batch.targets[batch.mask]
    times = batch.target_positions[targets] - starts[rows]
    times = times - torch.where(times >= prompts[rows], skipped[rows], 0)
    lengths = torch.tensor([len(row_positions) for row_positions in positions])
    return SequenceBatch(ids, lengths, rows, times, batch.target_labels[targets])


def sequence_logits(model: PreTrainedModel, batch: SequenceBatch) -> Tensor:
    """Return the logits that predict the response tokens, (R, V), from the model's own forward.

    A hook before the head selects the response positions, so whatever the model does to its logits
    afterwards (scaling, softcap) applies without being repeated here.
    """

    def select_responses(head: nn.Module, arguments: tuple[Tensor, ...]) -> tuple[Any, ...]:
        hidden, *others = arguments
        return hidden[batch.rows, batch.times].unsqueeze(0), *others

    hook = model.get_output_embeddings().register_forward_pre_hook(select_responses)
    try:
        output = model(
            input_ids=batch.input_ids, attention_mask=batch.is_real.long(), use_cache=False
        )
    finally:
        hook.remove()
    logits: Tensor = output.logits[0]
    return logits
