"""Conversion of a pair to a row of JSONL, for other tools and for `dpo` itself.

Each row is read back before it is written: reading it gives the same messages, and thus the same
tokens.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

from dpo_cli.data.formats import FORMATS
from dpo_cli.data.messages import Message, shared_turns
from dpo_cli.data.pairs import PreferencePair, SkippedRow, to_pair
from dpo_cli.data.rows import MAX_ROW_BYTES, TOO_LONG, MalformedError, parse_line

_SPEAKERS = {"user": "human", "assistant": "gpt", "system": "system", "tool": "observation"}

Row = dict[str, Any]


class Layout(StrEnum):
    """Form in which rows are written."""

    MINIMIND = "minimind"
    TRL = "trl"
    SHAREGPT = "sharegpt"


@dataclass(frozen=True)
class RowWriter:
    """Writer of pairs in one format.

    Attributes:
        format: name of the format in which the rows are read.
        is_whole: both sides are whole conversations, without a prompt of their own.
        rows: returns the forms of a pair, the best first.
    """

    format: str
    is_whole: bool
    rows: Callable[[PreferencePair], Iterator[Row]]

    def line(self, pair: PreferencePair) -> str:
        """Return a pair as one line.

        Raises:
            MalformedError: no row of this format is read as this pair.
        """
        if self.is_whole:
            pair = replace(pair, prompt_turns=None)
        elif pair.prompt_turns is None:
            most = min(len(pair.chosen), len(pair.rejected)) - 1
            turns = min(shared_turns(pair.chosen, pair.rejected), most)
            pair = replace(pair, prompt_turns=turns)
        if pair.prompt_turns == 0:
            raise MalformedError("the two sides share no turn that could be the prompt")
        is_long = False
        try:
            for row in self.rows(pair):
                text = json.dumps(row, ensure_ascii=False, default=str)
                raw = text.encode()
                is_long = len(raw) >= MAX_ROW_BYTES
                if not is_long and self._reads_as(raw, pair):
                    return text
        except (UnicodeEncodeError, RecursionError) as error:
            raise MalformedError("cannot be written as JSON") from error
        raise MalformedError(TOO_LONG if is_long else "would be read differently in this format")

    def _reads_as(self, raw: bytes, pair: PreferencePair) -> bool:
        try:
            found = to_pair(pair.line, parse_line(raw), FORMATS[self.format], {})
        except MalformedError:
            return False
        return not isinstance(found, SkippedRow) and found == pair


def writer_of(layout: Layout, *, is_whole: bool) -> RowWriter:
    """Return the writer of a layout.

    Args:
        layout: name of the layout.
        is_whole: all pairs are whole conversations. TRL has a format for them, too.
    """
    match layout:
        case Layout.MINIMIND:
            return RowWriter("minimind", True, _whole)
        case Layout.TRL if is_whole:
            return RowWriter("minimind", True, _whole)
        case Layout.TRL:
            return RowWriter("conversational", False, _with_prompt)
        case _:
            return RowWriter("sharegpt", False, _sharegpt)


def _whole(pair: PreferencePair) -> Iterator[Row]:
    for form in _FORMS:
        sides = {"chosen": form(pair.chosen), "rejected": form(pair.rejected)}
        yield {**sides, **_tools(pair)}


def _with_prompt(pair: PreferencePair) -> Iterator[Row]:
    for form in _FORMS:
        prompt, chosen, rejected = map(form, _parts(pair))
        yield {"prompt": prompt, "chosen": chosen, "rejected": rejected, **_tools(pair)}
        # A side that begins like the prompt would be taken for one that repeats it.
        sides = {"chosen": form(pair.chosen), "rejected": form(pair.rejected)}
        yield {"prompt": prompt, **sides, **_tools(pair)}


def _sharegpt(pair: PreferencePair) -> Iterator[Row]:
    for form in _FORMS:
        prompt, *sides = ([_turn(each) for each in form(part)] for part in _parts(pair))
        chosen, rejected = (side[0] if len(side) == 1 else side for side in sides)
        # LLaMA-Factory reads the definitions of tools as text.
        tools = {
            name: json.dumps(tools, ensure_ascii=False) for name, tools in _tools(pair).items()
        }
        yield {"conversations": prompt, "chosen": chosen, "rejected": rejected, **tools}


def _parts(pair: PreferencePair) -> tuple[Sequence[Message], ...]:
    """Return the prompt and what follows it on both sides."""
    turns = pair.prompt_turns or 0
    return pair.chosen[:turns], pair.chosen[turns:], pair.rejected[turns:]


def _tools(pair: PreferencePair) -> Mapping[str, Any]:
    is_in_message = bool(pair.chosen[0].get("tools"))
    return {"tools": list(pair.tools)} if pair.tools and not is_in_message else {}


def _as_they_are(messages: Sequence[Message]) -> list[Message]:
    return [dict(message) for message in messages]


def _as_parts(messages: Sequence[Message]) -> list[Message]:
    """Write texts as content parts, because a text that is JSON of parts would be read as them."""
    return [
        {**message, "content": [{"type": "text", "text": message["content"]}]}
        for message in messages
    ]


_FORMS = (_as_they_are, _as_parts)


def _turn(message: Message) -> Row:
    rest = dict(message)
    role, content = rest.pop("role"), rest.pop("content")
    calls = _plain_calls(rest.get("tool_calls")) if rest.keys() == {"tool_calls"} else None
    if role == "assistant" and content == "" and calls:
        value = calls[0] if len(calls) == 1 else calls
        return {"from": "function_call", "value": json.dumps(value, ensure_ascii=False)}
    return {"from": _SPEAKERS[role], "value": content, **rest}


def _plain_calls(calls: Any) -> list[Any] | None:
    """Return tool calls without their wrapping; None if a call has more than name and arguments."""
    if not isinstance(calls, list):
        return None
    plain = []
    for call in calls:
        function = call.get("function") if isinstance(call, dict) else None
        is_plain = isinstance(function, dict) and function.keys() == {"name", "arguments"}
        if not is_plain or call.keys() != {"type", "function"}:
            return None
        plain.append(function)
    return plain
