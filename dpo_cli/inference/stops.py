"""Comparison of the tokens that end an answer: in training, and in generation."""

from __future__ import annotations

from collections.abc import Collection

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.rendered import Rendered


def stop_problem(tokenizer: ChatTokenizer, stop_ids: Collection[int]) -> str:
    """Explain why generation would not stop where the answers of the training end.

    Args:
        tokenizer: tokenizer and chat template of the training.
        stop_ids: tokens at which generation stops.

    Returns:
        A clause for the user; "" if a stop token ends every answer.
    """
    ending = tokenizer.template.ending
    [encoded] = tokenizer.encode([Rendered(ending)])
    if set(stop_ids) & set(encoded.ids):
        return ""
    names = ", ".join(repr(tokenizer.decode([id])) for id in sorted(stop_ids)) or "no token"
    return f"the chat template ends an answer with {ending!r}, but generation stops at {names}"
