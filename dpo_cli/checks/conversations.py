"""Issues of single conversations: turns and texts that are probably mistakes in the data."""

from __future__ import annotations

import contextlib
import itertools
import json
import re
import unicodedata
from collections.abc import Iterator, Sequence

from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import PreferencePair
from dpo_cli.findings import PairIssue

_NO_VALUES = frozenset({"nan", "NaN", "None", "null", "NULL", "<NA>", "NaT", "undefined"})
"""Texts that programs write for a missing value."""
_INVISIBLE = frozenset({"Cc", "Cf", "Zs", "Zl", "Zp"})
"""Unicode categories of characters without a glyph, for example the zero-width space."""
_FILLERS = "\u115f\u1160\u2800\u3164\uffa0"
"""Letters and symbols without a glyph."""
_COLON = r"[ \t]*[:\uff1a]"
_USER = re.compile(rf"^[ \t]*(?:human|user|用户|人类){_COLON}", re.MULTILINE | re.IGNORECASE)
_ASSISTANT = re.compile(
    rf"^[ \t]*(?:assistant|bot|ai|gpt|chatgpt|助手|助理|机器人){_COLON}",
    re.MULTILINE | re.IGNORECASE,
)
# Within a line only these spellings name a speaker, because "user:" is ordinary text. An assistant
# counts only if a user was named before.
_USER_INLINE = re.compile(rf"\b(?:Human|USER|[Pp]rompter){_COLON}")
_ASSISTANT_INLINE = re.compile(rf"\b(?:[Aa]ssistant|ASSISTANT){_COLON}")
_OWN_NAME = {
    "user": re.compile(rf"\s*(?:Human|USER){_COLON}"),
    "assistant": re.compile(rf"\s*(?:Assistant|ASSISTANT){_COLON}"),
}
_OTHER_TURN = {
    "user": re.compile(rf"\n[ \t]*(?:Assistant|ASSISTANT){_COLON}\s*\Z"),
    "assistant": re.compile(rf"\n[ \t]*(?:Human|USER){_COLON}"),
}
_PYTHON_LITERAL = re.compile(r"[\[({][\s\[({]*'")
_MIN_WORDS = 3
"""Fewest words of a question for which an answer that begins with the question is an issue."""


def issues_of(row: PreferencePair) -> dict[PairIssue, set[str]]:
    """Return the issues of the messages of a pair, each with the texts that show it."""
    found: dict[PairIssue, set[str]] = {}
    for messages in (row.chosen, row.rejected):
        for issue, shown in _issues(messages, row.prompt_turns):
            found.setdefault(issue, set()).update({shown} if shown else ())
    if all(_repeats_question(messages) for messages in (row.chosen, row.rejected)):
        found[PairIssue.QUESTION_IN_ANSWER] = set()
    return found


def _issues(
    messages: Sequence[Message], prompt_turns: int | None
) -> Iterator[tuple[PairIssue, str]]:
    if all(message["role"] != "user" for message in messages):
        yield PairIssue.NO_USER, ""
    for place, (before, message) in enumerate(itertools.pairwise(messages), start=1):
        roles = before["role"], message["role"]
        is_same = before["content"].strip() == message["content"].strip()
        # A call and its answer may be two assistant turns.
        is_twice = roles == ("assistant", "assistant") and not before.get("tool_calls")
        if roles[0] == roles[1] != "tool" and is_same:
            yield PairIssue.REPEATED_TURN, ""
        elif is_twice or (place == prompt_turns and roles[0] == "assistant"):
            yield PairIssue.ANSWERED_PROMPT, ""
    for message in messages:
        content = message["content"]
        if message["role"] == "tool":
            continue
        if content.strip() in _NO_VALUES:
            yield PairIssue.EMPTY_TEXT, content.strip()
        elif _is_empty(message):
            yield PairIssue.EMPTY_TEXT, "no text"
        elif is_literal(content):
            yield PairIssue.LITERAL, ""
        elif _names_speakers(message):
            yield PairIssue.SPEAKERS, ""


def is_literal(text: str) -> bool:
    """Return True if a text is a list or an object in JSON or Python syntax."""
    text = text.strip()
    if text[:1] not in "[{(" or text[-1:] not in "]})" or len(text) <= len("[]"):
        return False
    with contextlib.suppress(ValueError, RecursionError):
        return isinstance(json.loads(text), list | dict)
    return _PYTHON_LITERAL.match(text) is not None


def _is_empty(message: Message) -> bool:
    if message.get("tool_calls") or message.get("reasoning_content"):
        return False
    return all(
        character in _FILLERS or unicodedata.category(character) in _INVISIBLE
        for character in message["content"]
    )


def _names_speakers(message: Message) -> bool:
    """Return True if a message contains the names of speakers, as texts of whole dialogs do."""
    content, role = message["content"], message["role"]
    if role not in _OWN_NAME or (":" not in content and "\uff1a" not in content):
        return False
    if _OWN_NAME[role].match(content) or _OTHER_TURN[role].search(content):
        return True
    # Two searches: one expression for both names would try every end for every beginning.
    first = _USER_INLINE.search(content)
    if first and _ASSISTANT_INLINE.search(content, first.end()):
        return True
    return bool(_USER.search(content) and _ASSISTANT.search(content))


def _repeats_question(messages: Sequence[Message]) -> bool:
    questions = [message["content"].strip() for message in messages if message["role"] == "user"]
    answer = messages[-1]
    if not questions or answer["role"] != "assistant":
        return False
    question, text = questions[-1], answer["content"].strip()
    is_long = len(question.split()) >= _MIN_WORDS
    return is_long and len(text) > len(question) and text.startswith(question)
