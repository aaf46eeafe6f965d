"""Truncation of prompts from the left that keeps the text of the chat template complete."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

Truncation = Literal["end", "prompt_start", "drop"]


def find_holes(
    longest: Tensor,
    prompts: Tensor,
    cuts: Tensor,
    cut_counts: Tensor,
    max_seq_len: int,
    max_prompt_len: int | None,
) -> Tensor:
    """Find the tokens to leave out of each prompt.

    The text before the first user text (system turn and header) is kept. Whole turns are removed
    first, from the first user text up to a later user text, which then follows the header of the
    first one. If the last user text alone is too long, its beginning is removed, but never all of
    it. A prompt keeps half of `max_seq_len`, or `max_prompt_len` if that is less; the end of the
    answers is cut if a side is still too long.

    Args:
        longest: (P,) int64, tokens of the longer side.
        prompts: (P,) int64, tokens of the prompt.
        cuts: (C,) int32, see `EncodedRows`.
        cut_counts: (P,) int32.
        max_seq_len: most tokens of a side.
        max_prompt_len: most tokens of a prompt; None for no limit.

    Returns:
        (P, 2) int32, first token of each hole, and number of its tokens.
    """
    kept = min(max_seq_len // 2, max_prompt_len or max_seq_len)
    excess = torch.minimum((longest - max_seq_len).clamp(min=0), (prompts - kept).clamp(min=0))
    if max_prompt_len is not None:
        excess = torch.maximum(excess, prompts - max_prompt_len)
    holes = torch.zeros(len(longest), 2, dtype=torch.int32)
    ends = cut_counts.cumsum(dim=0)
    for index in ((excess > 0) & (cut_counts > 1)).nonzero().flatten().tolist():
        first = int(ends[index] - cut_counts[index])
        *turns, end = cuts[first : int(ends[index])].tolist()
        target = turns[0] + int(excess[index])
        resume = next((turn for turn in turns if turn >= target), target)
        if resume < end:
            holes[index] = torch.tensor([turns[0], resume - turns[0]])
    return holes
