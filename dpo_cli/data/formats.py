"""What the columns of a row mean: the formats of preference pairs, and which one a file has.

Each becomes two whole conversations of MiniMind's messages, so that the same pair has the same
tokens whatever it was written in.
"""

from __future__ import annotations

import json
import os
import re
import reprlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dpo_cli.data.rows import MalformedError, kind_of_value
from dpo_cli.errors import DpoError

SIDES = ("chosen", "rejected")
ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]
Row = Mapping[str, Any]
Sides = tuple[list[Message], list[Message]]

_SPEAKERS = {
    "human": "user",
    "gpt": "assistant",
    "observation": "tool",
    "function_call": "assistant",
    **{role: role for role in ROLES},
}
"""ShareGPT's names, and who that is."""
_HUMAN, _ASSISTANT = "\n\nHuman:", "\n\nAssistant:"
_WORD = re.compile(r"[^\W\u3040-\u30ff\u3400-\u9fff\uac00-\ud7a3]")
_LAST_WORD = re.compile(f"{_WORD.pattern}+\\Z")
"""Of a script that puts something between words."""
_PROMPTS = ("question", "instruction", "input", "query", "problem")
"""Names of columns that are probably the prompt of two texts that state none."""


@dataclass(frozen=True)
class Format:
    """A way to write preference pairs down.

    Attributes:
        name: `data.format` states it.
        title: what it is, in words.
        fits: whether a row looks like it.
        sides: both conversations of a row; raises `MalformedError`.
    """

    name: str
    title: str
    fits: Callable[[Row], bool]
    sides: Callable[[Row], Sides]


def formats_of(row: Row) -> list[str]:
    """The names of the formats that a row looks like: one, or none."""
    return [name for name, format in FORMATS.items() if format.fits(row)]


def renamed(row: Row, columns: Mapping[str, str]) -> Row:
    """The row with the columns that `data.columns` maps under the names that formats know.

    Raises:
        MalformedError: it has no such column.
    """
    if not columns:
        return row
    if missing := [column for column in columns.values() if column not in row]:
        raise MalformedError(f"no {missing[0]!r}")
    return {**row, **{name: row[column] for name, column in columns.items()}}


def unknown_columns(path: object, names: Sequence[str], columns: Mapping[str, str]) -> DpoError:
    """The error for a file whose columns are those of no format: what there is, what to state."""
    shown = ", ".join(reprlib.repr(name) for name in names[:20]) or "none"
    wanted = {name: column for name, column in columns.items() if column not in names}
    if wanted:
        name, column = next(iter(wanted.items()))
        return DpoError(
            f"{path}: no column {column!r}, which data.columns.{name} names",
            f"name one of the columns that there are: {shown}",
        )
    prompt = next((name for name in names if name in _PROMPTS), "question")
    return DpoError(
        f"{path}: the columns are those of no known format: {shown}",
        "say which columns are meant, as in data.columns ="
        f' {{ prompt = "{prompt}", chosen = "...", rejected = "..." }}, or state data.format',
    )


def _whole_conversations(row: Row) -> Sides:
    """MiniMind's own: messages are taken as they stand."""
    _require(row, *SIDES)
    chosen, rejected = (_answered(_list(row, side, _message), side) for side in SIDES)
    return chosen, rejected


def _prompt_and_messages(row: Row) -> Sides:
    _require(row, "prompt", *SIDES)
    prompt = _turns(row, "prompt")
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    return [*prompt, *chosen], [*prompt, *rejected]


def _texts(row: Row) -> Sides:
    _require(row, "prompt", *SIDES)
    prompt = [*_system(row), {"role": "user", "content": _text(row, "prompt")}]
    chosen, rejected = ({"role": "assistant", "content": _text(row, side)} for side in SIDES)
    return [*prompt, chosen], [*prompt, rejected]


def _texts_with_prompt(row: Row) -> Sides:
    """Both texts begin with the prompt; in HH-RLHF's, speakers are named."""
    _require(row, *SIDES)
    chosen, rejected = (_text(row, side) for side in SIDES)
    if chosen.startswith(_HUMAN) and rejected.startswith(_HUMAN):
        return _spoken(chosen, "chosen"), _spoken(rejected, "rejected")
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - of characters is meant
    rests = chosen[len(common) :], rejected[len(common) :]
    if not all(rests) or any(map(_WORD.match, rests)):  # no word is divided
        common = _LAST_WORD.sub("", common)
    prompt = common.rstrip()
    answers = chosen[len(common) :].lstrip(), rejected[len(common) :].lstrip()
    if not prompt.strip() or not all(answers):
        raise MalformedError("'chosen' and 'rejected' do not begin alike and go on apart")
    turns = [*_system(row), {"role": "user", "content": prompt}]
    first, second = ({"role": "assistant", "content": answer} for answer in answers)
    return [*turns, first], [*turns, second]


def _spoken(text: str, side: str) -> list[Message]:
    """Turns after "Human:" and "Assistant:", each on a paragraph of its own."""
    turns: list[Message] = []
    for part in text.split(_HUMAN)[1:]:
        question, *answers = part.split(_ASSISTANT)
        turns.append({"role": "user", "content": question.strip()})
        turns += ({"role": "assistant", "content": answer.strip()} for answer in answers)
    if turns[-1]["role"] != "assistant":
        raise MalformedError(f"{side!r} holds no assistant's answer at its end")
    return turns


def _conversations_and_answers(row: Row) -> Sides:
    _require(row, "conversations", *SIDES)
    turns = _turns(row, "conversations")
    prompt = turns if turns[0]["role"] == "system" else [*_system(row), *turns]
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    return [*prompt, *chosen], [*prompt, *rejected]


def _prompt_and_conversations(row: Row) -> Sides:
    """The prompt stands in both conversations, too; where it does not, it begins them."""
    _require(row, "prompt", *SIDES)
    chosen, rejected = (_answered(_turns(row, side), side) for side in SIDES)
    question = {"role": "user", "content": _text(row, "prompt")}

    def whole(side: list[Message]) -> list[Message]:
        is_answer = side[0]["role"] == "assistant"
        turns = [question, *side] if is_answer else side
        return turns if turns[0]["role"] == "system" else [*_system(row), *turns]

    return whole(chosen), whole(rejected)


def _require(row: Row, *columns: str) -> None:
    if missing := [column for column in columns if column not in row]:
        raise MalformedError(f"no {missing[0]!r}")
    if row.get("tools"):
        raise MalformedError("definitions of tools ('tools') cannot be rendered")


def _text(row: Row, column: str) -> str:
    if not isinstance(row[column], str):
        raise MalformedError(f"{column!r} must be a text, not {kind_of_value(row[column])}")
    return str(row[column])


def _system(row: Row) -> list[Message]:
    """What a column of its own says to begin with."""
    if not row.get("system"):
        return []
    return [{"role": "system", "content": _text(row, "system")}]


def _turns(row: Row, column: str) -> list[Message]:
    """Messages of role and content, or of from and value; one alone is a list of one."""
    stated = row[column]
    return _list({column: [stated]} if isinstance(stated, dict) else row, column, _turn)


def _list(row: Row, column: str, read: Callable[[dict[str, Any], str], Message]) -> list[Message]:
    messages = row[column]
    if not isinstance(messages, list) or not messages:
        what = kind_of_value(messages)
        raise MalformedError(f"{column!r} must be a list of messages, not {what}")
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"{column!r}, message {number}"
        if not isinstance(message, dict):
            raise MalformedError(f"{where}: an object was expected, not {kind_of_value(message)}")
        turns.append(read(message, where))
    return turns


def _answered(messages: list[Message], side: str) -> list[Message]:
    if all(message["role"] != "assistant" for message in messages):
        raise MalformedError(f"{side!r} holds no assistant's answer")
    return messages


def _message(message: dict[str, Any], where: str) -> Message:
    """One of role and content."""
    if message.get("role") not in ROLES:
        raise MalformedError(
            # A short text, however long or deep the role is.
            f"{where}: role {reprlib.repr(message.get('role'))} is none of {', '.join(ROLES)}"
        )
    if isinstance(calls := message.get("tool_calls"), str) and calls:
        message = {**message, "tool_calls": _calls(calls, where)}
    if message.get("content") is None and message.get("tool_calls"):
        return {**message, "content": ""}
    if not isinstance(message.get("content"), str):
        raise MalformedError(f"{where}: 'content' must be a text")
    return message


def _turn(message: dict[str, Any], where: str) -> Message:
    """One of role and content, or of from and value."""
    if "from" not in message:
        return _message(message, where)
    speaker, value = message["from"], message.get("value")
    if not isinstance(speaker, str) or speaker not in _SPEAKERS:
        named = ", ".join(_SPEAKERS)
        raise MalformedError(f"{where}: 'from' {reprlib.repr(speaker)} is none of {named}")
    if not isinstance(value, str):
        raise MalformedError(f"{where}: 'value' must be a text")
    if speaker == "function_call":
        return {"role": "assistant", "content": "", "tool_calls": _calls(value, where)}
    return {"role": _SPEAKERS[speaker], "content": value}


def _calls(value: str, where: str) -> list[dict[str, Any]]:
    """What an assistant calls, as transformers hands it to chat templates."""
    try:
        stated = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: a function call must be JSON") from error
    calls = stated if isinstance(stated, list) else [stated]
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
    """Whether a value is messages, or one."""
    first = value[0] if isinstance(value, list) and value else value
    return isinstance(first, dict) and ("role" in first or "from" in first)


def _looks(prompt: Callable[[Any], bool] | None, side: Callable[[Any], bool]) -> Any:
    """Whether a row has a prompt of this kind (None: has none), and sides of that."""

    def fits(row: Row) -> bool:
        if row.get("conversations") is not None or not all(side(row.get(name)) for name in SIDES):
            return False
        return row.get("prompt") is None if prompt is None else prompt(row.get("prompt"))

    return fits


def _looks_like_sharegpt(row: Row) -> bool:
    return _is_turns(row.get("conversations")) and all(_is_turns(row.get(side)) for side in SIDES)


def _looks_like_whole_texts(row: Row) -> bool:
    """Two texts that share a beginning; not where another column is probably their prompt."""
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
"""Every format by its name."""
