"""Groups of held-out pairs by language and by length, which an average would hide."""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import torch
from torch import Tensor

from dpo_cli.data.languages import LANGUAGES, language_of
from dpo_cli.data.tokens import TokenizedPairs

ALL = "all"
LIKE_LENGTH = 1.2
"""Largest ratio of response tokens at which two answers count as equally long."""

_DECODED_TOKENS = 500
"""Tokens of an answer that are decoded to detect its language."""


def groups_of(pairs: TokenizedPairs, decode: Callable[[Tensor], str]) -> dict[str, Tensor]:
    """Assign K pairs to groups; empty groups are left out.

    The language is that of the chosen answer; an answer without letters is "other". The length
    groups compare the response tokens of both answers at the current `max_seq_len`.

    Args:
        pairs: K pairs.
        decode: maps token ids (T,) to text.

    Returns:
        (K,) bool masks by name: `ALL`, then a partition "language/..." and one "length/...".
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


def prompt_labels(pairs: TokenizedPairs) -> list[int]:
    """Label K pairs so that pairs with the same prompt have the same label: 0, 1, 2 and so on.

    The prompt is everything before the first scored answer of chosen.
    """
    labels: dict[bytes, int] = {}
    numbers = []
    for prompt in pairs.prompts():
        # Digests: the prompts of a million pairs would take gigabytes.
        digest = hashlib.blake2b(prompt, digest_size=16).digest()
        numbers.append(labels.setdefault(digest, len(labels)))
    return numbers


def count_known_prompts(held_out: TokenizedPairs, pairs: TokenizedPairs) -> int:
    """Count the held-out pairs whose prompt is also that of a pair to train on."""
    asked = set(held_out.prompts())
    known = {prompt for prompt in pairs.prompts() if prompt in asked} if asked else set()
    return sum(prompt in known for prompt in held_out.prompts())


def _language(pairs: TokenizedPairs, index: int, decode: Callable[[Tensor], str]) -> str:
    chosen = pairs[index].chosen
    return language_of(decode(chosen.ids[chosen.response][:_DECODED_TOKENS])) or "other"
