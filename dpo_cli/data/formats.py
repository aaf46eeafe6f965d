"""Formats of preference pairs, their detection, and their conversion to conversations.

Every format becomes two whole conversations of messages, so the same pair has the same tokens in
every format.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from dpo_cli.data.rows import MalformedError, kind_of_value
from dpo_cli.errors import DpoError

SIDES = ("chosen", "rejected")
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
Row = Mapping[str, Any]


class Sides(NamedTuple):
    """Both conversations of a row, whole.

    prompt_turns: number of messages of the prompt, if the row tells it from the answers; None for
        two whole conversations.
    """

    chosen: list[Message]
    rejected: list[Message]
    prompt_turns: int | None = None


_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    **{role: role for role in ROLES},
}
"""Roles by the speaker names of ShareGPT."""
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LAST_WORD = re.compile(f"{_WORD.pattern}+\\Z")
"""Last word of a text, in scripts that separate words."""
_PROMPTS = ("question", "instruction", "input", "query", "problem")
"""Column names that are probably the prompt of a file without a prompt column."""


@dataclass(frozen=True)
class Format:
    """Format of preference pairs.

    Attributes:
        name: value of `data.format`.
        title: description for users.
        fits: returns True if a row looks like this format.
        sides: returns both conversations of a row; raises `MalformedError`.
    """

    name: str
    title: str
    fits: Callable[[Row], bool]
    sides: Callable[[Row], Sides]


def formats_of(row: Row) -> list[str]:
    """Return the names of the formats that a row looks like, at most one."""
    return [name for name, format in FORMATS.items() if format.fits(row)]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """Rename the columns of a row according to `data.columns`.

    Raises:
        MalformedError: the row has no such column.
    """
    if not columns:
        return row
    if missing := [column for column in columns.values() if column not in row]:
        raise MalformedError(f"no {missing[0]!r}")
    return {**row, **{name: row[column] for name, column in columns.items()}}


def unknown_columns(path: object, names: Sequence[str], columns: Mapping[str, str]) -> DpoError:
    """Build the error for a file whose columns match no format."""
    shown = ", ".join(reprlib.repr(name) for name in names[:20]) or "none"
    wanted = {name: column for name, column in columns.items() if column not in names}
    if wanted:
        name, column = next(iter(wanted.items()))
        return DpoError(
            f"{path}: no column {column!r}, which data.columns.{name} names",
            f"Set data.columns.{name} to one of the columns: {shown}.",
        )
    prompt = next((name for name in names if name in _PROMPTS), "question")
    return DpoError(
        f"{path}: the columns match no known format: {shown}",
        "Map the columns, for example data.columns ="
        f' {{ prompt = "{prompt}", chosen = "...", rejected = "..." }}, or set data.format.',
    )


def _whole_conversations(row: Row) -> Sides:
    _require(row, *SIDES)
    chosen, rejected = (_answered(_list(row, side, _message), side) for side in SIDES)
    return Sides(chosen, rejected)


def _prompt_and_messages(row: Row) -> Sides:
    _require(row, "prompt", *SIDES)
    prompt = _turns(row, "prompt")
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    return Sides([*prompt, *chosen], [*prompt, *rejected], len(prompt))


def _texts(row: Row) -> Sides:
    _require(row, "prompt", *SIDES)
    prompt = [*_system(row), {"role": "user", "content": _text(row, "prompt")}]
    chosen, rejected = ({"role": "assistant", "content": _text(row, side)} for side in SIDES)
    return Sides([*prompt, chosen], [*prompt, rejected], len(prompt))


def _texts_with_prompt(row: Row) -> Sides:
    """Split two texts into a common prompt and two answers; HH-RLHF's texts name the speakers."""
    _require(row, *SIDES)
    chosen, rejected = (_text(row, side) for side in SIDES)
    if chosen.startswith(_HUMAN) and rejected.startswith(_HUMAN):
        return _with_common_prompt(_spoken(chosen, "chosen"), _spoken(rejected, "rejected"))
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - a prefix of characters, not of path parts
    rests = chosen[len(common) :], rejected[len(common) :]
    if not all(rests) or any(map(_WORD.match, rests)):  # do not split a word
        common = _LAST_WORD.sub("", common)
    prompt = common.rstrip()
    answers = chosen[len(common) :].lstrip(), rejected[len(common) :].lstrip()
    if not prompt.strip() or not all(answers):
        raise MalformedError("'chosen' and 'rejected' need a common beginning and two endings")
    turns = [*_system(row), {"role": "user", "content": prompt}]
    first, second = ({"role": "assistant", "content": answer} for answer in answers)
    return Sides([*turns, first], [*turns, second], len(turns))


def _spoken(text: str, side: str) -> list[Message]:
    """Split a text at the paragraphs "Human:" and "Assistant:"."""
    turns: list[Message] = []
    for part in text.split(_HUMAN)[1:]:
        question, *answers = part.split(_ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns += ({"role": "assistant", "content": answer.strip()} for answer in answers)
    if turns[-1]["role"] != "assistant":
        raise MalformedError(f"{side!r} does not end with an assistant message")
    return turns


def _conversations_and_answers(row: Row) -> Sides:
    _require(row, "conversations", *SIDES)
    turns = _turns(row, "conversations")
    prompt = turns if turns[0]["role"] == "system" else [*_system(row), *turns]
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    return Sides([*prompt, *chosen], [*prompt, *rejected], len(prompt))


def _prompt_and_conversations(row: Row) -> Sides:
    """Read both conversations; put the prompt before a side that starts with the answer."""
    _require(row, "prompt", *SIDES)
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    question = {"role": "user", "content": _text(row, "prompt")}

    def whole(side: list[Message]) -> list[Message]:
        is_answer = side[0]["role"] == "assistant"
        turns = [question, *side] if is_answer else side
        return turns if turns[0]["role"] == "system" else [*_system(row), *turns]

    return _with_common_prompt(whole(chosen), whole(rejected))


def _with_common_prompt(chosen: list[Message], rejected: list[Message]) -> Sides:
    """Return both conversations; the prompt is the messages that both begin with."""
    return Sides(chosen, rejected, shared_turns(chosen, rejected))


def shared_turns(*conversations: Sequence[Message]) -> int:
    """Count the first messages that all conversations share."""
    shared = 0
    for messages in zip(*conversations, strict=False):
        try:
            if any(message != messages[0] for message in messages):
                break
        except RecursionError:  # nested so deeply that a comparison fails
            break
        shared += 1
    return shared


def _require(row: Row, *columns: str) -> None:
    if missing := [column for column in columns if column not in row]:
        raise MalformedError(f"no {missing[0]!r}")


def _text(row: Row, column: str) -> str:
    if not isinstance(row[column], str):
        raise MalformedError(f"{column!r} is {kind_of_value(row[column])}, expected a text")
    return str(row[column])


def _system(row: Row) -> list[Message]:
    if not row.get("system"):
        return []
    return [{"role": "system", "content": _text(row, "system")}]


def _turns(row: Row, column: str) -> list[Message]:
    """Read messages of role and content, or from and value; a single message is a list of one."""
    value = row[column]
    return _list({column: [value]} if isinstance(value, dict) else row, column, _turn)


def _list(row: Row, column: str, read: Callable[[dict[str, Any], str], Message]) -> list[Message]:
    messages = row[column]
    if not isinstance(messages, list) or not messages:
        kind = kind_of_value(messages)
        raise MalformedError(f"{column!r} is {kind}, expected a list of messages")
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"{column!r}, message {number}"
        if not isinstance(message, dict):
            raise MalformedError(f"{where}: expected an object, got {kind_of_value(message)}")
        turns.append(read(message, where))
    return turns


def _answered(messages: list[Message], side: str) -> list[Message]:
    if all(message["role"] != "assistant" for message in messages):
        raise MalformedError(f"{side!r} has no assistant message")
    return messages


def _message(message: dict[str, Any], where: str) -> Message:
    if message.get("role") not in ROLES:
        raise MalformedError(
            # reprlib shortens a role that is long or deeply nested.
            f"{where}: role {reprlib.repr(message.get('role'))} is not one of {', '.join(ROLES)}"
        )
    if isinstance(calls := message.get("tool_calls"), str) and calls:
        message = {**message, "tool_calls": _calls(calls, where)}
    if message.get("content") is None and message.get("tool_calls"):
        return {**message, "content": ""}
    if not isinstance(message.get("content"), str):
        raise MalformedError(f"{where}: 'content' must be a text")
    return message


def _turn(message: dict[str, Any], where: str) -> Message:
    if "from" not in message:
        return _message(message, where)
    speaker, value = message["from"], message.get("value")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        named = ", ".join(_SPEAKERS)
        raise MalformedError(f"{where}: 'from' {reprlib.repr(speaker)} is not one of {named}")
    if not isinstance(value, str):
        raise MalformedError(f"{where}: 'value' must be a text")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, where)}
    return {"role": _SPEAKERS[speaker], "content": value}


def _calls(value: str, where: str) -> list[dict[str, Any]]:
    """Parse tool calls into the form that transformers passes to chat templates."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: a function call must be JSON") from error
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) and isinstance(call.get("name"), str) for call in calls):
        raise MalformedError(f"{where}: a function call must have a 'name'")
    return [
        {
            "type": "function",
            "function": {"name": call["name"], "arguments": call.get("arguments", {})},
        }
        for call in calls
    ]


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_turns(value: Any) -> bool:
    """Return True for a list of messages or a single message."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _looks(prompt: Callable[[Any], bool] | None, side: Callable[[Any], bool]) -> Any:
    """Build a predicate for rows with this kind of prompt (None: no prompt) and of sides."""

    def fits(row: Row) -> bool:
        if row.get("conversations") is not None or not all(side(row.get(name)) for name in SIDES):
            return False
        return row.get("prompt") is None if prompt is None else prompt(row.get("prompt"))

    return fits


def _looks_like_sharegpt(row: Row) -> bool:
    return _is_turns(row.get("conversations")) and all(_is_turns(row.get(side)) for side in SIDES)


def _looks_like_whole_texts(row: Row) -> bool:
    """Return True for two texts with a common beginning and no other column for the prompt."""
    return _looks(None, _is_text)(row) and not row.keys() & set(_PROMPTS)


FORMATS: Mapping[str, Format] = {
    format.name: format
    for format in (
        Format(
            "minimind",
            "MiniMind (TRL's conversational, implicit prompt)",
            _looks(None, _is_turns),
            _whole_conversations,
        ),
        Format(
            "conversational",
            "conversational (TRL's, explicit prompt)",
            _looks(_is_turns, _is_turns),
            _prompt_and_messages,
        ),
        Format(
            "plain",
            "plain (TRL's standard, explicit prompt)",
            _looks(_is_text, _is_text),
            _texts,
        ),
        Format(
            "implicit",
            "implicit (TRL's standard, implicit prompt)",
            _looks_like_whole_texts,
            _texts_with_prompt,
        ),
        Format(
            "ultrafeedback",
            "UltraFeedback-binarized",
            _looks(_is_text, _is_turns),
            _prompt_and_conversations,
        ),
        Format("sharegpt", "ShareGPT", _looks_like_sharegpt, _conversations_and_answers),
    )
}
"""Formats by name."""
