"""Held-out pairs by what they are: an average may hide that one kind of them got worse."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from dpo_cli.data.languages import LANGUAGES, language_of
from dpo_cli.data.tokens import TokenizedPairs

ALL = "all"
LIKE_LENGTH = 1.2
"""The longer of two answers has at most so many times the tokens of the shorter, and they still
count as equally long."""

_DECODED_TOKENS = 500
"""Of an answer: its language shows in its first characters."""


def groups_of(pairs: TokenizedPairs, decode: Callable[[Tensor], str]) -> dict[str, Tensor]:
    """Which of K pairs belong to which group; those without a pair are left out.

    By language the chosen answers are told apart, one without letters being "other"; by length
    both answers, by their response tokens at this `max_seq_len`.

    Args:
        pairs: K of them.
        decode: the text of token ids (T,).

    Returns:
        (K,) bool by name: `ALL`, then "language/..." and "length/...", each of which divides all.
    """
    if not pairs:
        return {}
    languages = [_language(pairs, index, decode) for index in range(len(pairs))]
    groups = {ALL: torch.ones(len(pairs), dtype=torch.bool)}
    for name in LANGUAGES:
        groups[f"language/{name}"] = torch.tensor([language == name for language in languages])
    chosen, rejected = pairs.response_tokens.double().unbind(dim=1)
    groups["length/chosen longer"] = chosen > LIKE_LENGTH * rejected
    groups["length/like length"] = (chosen <= LIKE_LENGTH * rejected) & (
        rejected <= LIKE_LENGTH * chosen
    )
    groups["length/rejected longer"] = rejected > LIKE_LENGTH * chosen
    return {name: members for name, members in groups.items() if members.any()}


def _language(pairs: TokenizedPairs, index: int, decode: Callable[[Tensor], str]) -> str:
    chosen = pairs[index].chosen
    return language_of(decode(chosen.ids[chosen.response][:_DECODED_TOKENS])) or "other"
