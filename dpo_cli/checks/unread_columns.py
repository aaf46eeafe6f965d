"""Columns that a format does not read, and which of them probably belong to the pairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dpo_cli.checks.answer_words import words
from dpo_cli.data.columns import PROMPTS, QUESTIONS
from dpo_cli.data.pairs import PreferencePair

_CONTEXT = frozenset(
    (
        *(*PROMPTS, *QUESTIONS, "prompts", "questions", "instructions", "inputs"),
        *("system", "system_prompt", "system_message"),
        *("conversation", "dialog", "dialogue", "chat", "history"),
        *("context", "contexts", "document", "documents", "passage", "passages", "knowledge"),
        *("background", "tools", "functions", "reasoning", "thinking", "reasoning_content"),
    )
)
"""Names of columns whose words a model should see."""
_MEDIA = frozenset(("image", "images", "video", "videos", "audio", "audios"))


class UnreadColumns:
    """Columns whose values do not become part of a pair, collected row by row.

    Attributes:
        missed: first row in which a column has words, or media, that the pair lacks; only columns
            that are named like a part of a conversation.
    """

    def __init__(self) -> None:
        self.missed: dict[str, int] = {}

    def add(self, row: PreferencePair) -> None:
        """Add the columns of one row that were not read."""
        known: set[str] | None = None
        for name, value in row.unread.items():
            simple = name.rpartition(".")[2].lower()
            if name in self.missed or simple not in _CONTEXT | _MEDIA:
                continue
            if known is None:
                messages = (*row.chosen, *row.rejected)
                known = set(words(message["content"] for message in messages))
            if simple in _MEDIA or not known.issuperset(words(_texts(value))):
                self.missed[name] = row.line


def _texts(value: Any) -> Iterator[str]:
    """Iterate over the texts in a nested value, without keys and without roles of messages."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each)
    elif isinstance(value, dict):
        for key, each in value.items():
            if key not in ("role", "from", "type"):
                yield from _texts(each)
