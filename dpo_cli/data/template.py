"""Properties of a chat template, found by rendering a few conversations of markers once.

A template is a program of its own, and its text does not say what it leaves out. So every property
here is measured on what the template writes.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import cached_property
from typing import Any, Literal

from dpo_cli.data.messages import Message
from dpo_cli.data.rendered import common_length
from dpo_cli.data.tools import Tool

MARK, _VALUE = "aXbYc", "vXwYz"
SYSTEM, LATER_SYSTEM = "the system turn", "later system turns"
TOOL_TURN, TOOL_CALLS, TOOL_DEFINITIONS = "tool turns", "tool calls", "tool definitions"
Arguments = Literal["object", "text", "either"]

Apply = Callable[..., str]
"""Renders messages, with the options `tools` and `add_generation_prompt`; raises ValueError."""

_TOOL: Tool = {
    "type": "function",
    "function": {
        "name": MARK,
        "description": "d",
        "parameters": {"type": "object", "properties": {}},
    },
}
_ASK: Message = {"role": "user", "content": "aQb"}
_ANSWER: Message = {"role": "assistant", "content": MARK}


class ChatTemplate:
    """Measured properties of a chat template; each is measured when it is first needed."""

    def __init__(self, apply: Apply) -> None:
        self._apply = apply

    @cached_property
    def dropped_kinds(self) -> frozenset[str]:
        """Kinds of turns, and tool definitions, that the template silently leaves out."""
        system: Message = {"role": "system", "content": MARK}
        ask, answer = _ASK, {**_ANSWER, "content": "a"}
        tool: Message = {"role": "tool", "content": MARK}
        tried: dict[str, list[Message]] = {
            SYSTEM: [system, ask, answer],
            LATER_SYSTEM: [ask, answer, system, ask, answer],
            TOOL_TURN: [ask, answer, tool, answer],
            TOOL_CALLS: [ask, _calling({})],
        }
        dropped = {kind for kind, turns in tried.items() if not self._writes(turns)}
        if not self._writes([ask, answer], tools=[_TOOL]):
            dropped.add(TOOL_DEFINITIONS)
        return frozenset(dropped)

    @cached_property
    def calls_need_tools(self) -> bool:
        """True if the template writes tool calls only when tool definitions are given."""
        if TOOL_CALLS not in self.dropped_kinds:
            return False
        tools = [{**_TOOL, "function": {"name": "f"}}]
        none: tuple[Any, ...] = ({}, "{}")
        texts = [self._text([_ASK, _calling(arguments)], tools=tools) for arguments in none]
        return any(text is not None and MARK in text for text in texts)

    def dropped_turn(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> str:
        """Describe the first turn that the template silently drops; "" if there is none."""
        dropped = self.dropped_kinds
        if tools and TOOL_DEFINITIONS in dropped:
            return f"the chat template leaves out {TOOL_DEFINITIONS}"
        for number, message in enumerate(messages):
            kind = ""
            if message["role"] == "system":
                kind = LATER_SYSTEM if number else SYSTEM
            elif message["role"] == "tool":
                kind = TOOL_TURN
            elif message.get("tool_calls"):
                kind = "" if tools and self.calls_need_tools else TOOL_CALLS
            if kind in dropped:
                needed = kind == TOOL_CALLS and self.calls_need_tools
                why = ", which it writes only beside tool definitions" if needed else ""
                return f"the chat template leaves out {kind} (message {number + 1}){why}"
        return ""

    @cached_property
    def arguments(self) -> Arguments:
        """Kind of a tool call's arguments that the template writes as JSON once."""
        arguments = {"k": _VALUE}
        as_object = self._text([_ASK, _calling(arguments)], tools=[_TOOL])
        as_text = self._text([_ASK, _calling(json.dumps(arguments))], tools=[_TOOL])
        # A template that joins text with `+` fails on an object; `{{ }}` writes Python's form.
        takes_object = (
            as_object is not None and _VALUE in as_object and f"'{_VALUE}'" not in as_object
        )
        # `tojson` writes a text as JSON of JSON: \"k\".
        takes_text = as_text is not None and f'"{_VALUE}"' in as_text
        if takes_object == takes_text:
            return "either"
        return "object" if takes_object else "text"

    @cached_property
    def header_length(self) -> int:
        """Characters that `add_generation_prompt` writes after a user turn, at most."""
        plain, prompted = self._text([_ASK]), self._text([_ASK], add_generation_prompt=True)
        if plain is None or prompted is None:
            return 0
        return len(prompted) - common_length(plain, prompted)

    @cached_property
    def trailing_header(self) -> str:
        """Header of a next answer after a finished one, "" if the template writes none."""
        text = self._text([_ASK, _ANSWER])
        if text is None or text != self._text([_ASK, _ANSWER], add_generation_prompt=True):
            return ""
        # A blank may follow the header of an answer, but not the header after it.
        before, _, after = (part.rstrip() for part in text.partition(MARK))
        common = after[len(after) - common_length(before[::-1], after[::-1]) :]
        return common if _has_word(common) else ""

    @cached_property
    def unprompted_header(self) -> str:
        """Header of an answer that `add_generation_prompt` does not write, "" if there is none."""
        prompt = self._text([_ASK], add_generation_prompt=True)
        text = self._text([_ASK, _ANSWER])
        if prompt is None or text is None or not text.startswith(prompt):
            return ""
        header = text[len(prompt) :].partition(MARK)[0]
        return header if _has_word(header) and "<think>" not in header else ""

    @cached_property
    def prompt_ending(self) -> str:
        """End of the generation prompt that no finished answer begins with; "" if there is none."""
        prompt = self._text([_ASK], add_generation_prompt=True)
        text = self._text([_ASK, _ANSWER])
        if prompt is None or text is None:
            return ""
        return prompt[common_length(prompt, text) :]

    @cached_property
    def prompt_ends_blank(self) -> bool:
        """True if a prompt ends with a blank, which merges with the first word of an answer."""
        text = self._text([_ASK], add_generation_prompt=True)
        return text is not None and text.endswith(" ")

    @cached_property
    def drops_thoughts(self) -> bool:
        """True if `<think>` text in the last answer is left out."""
        thought = {**_ANSWER, "content": f"<think>\n{MARK}\n</think>\n\na"}
        return self._writes([_ASK, _ANSWER]) and not self._writes([_ASK, thought])

    @cached_property
    def drops_reasoning(self) -> bool:
        """True if `reasoning_content` of the last answer is left out."""
        thought = {**_ANSWER, "content": "a", "reasoning_content": MARK}
        return self._writes([_ASK, _ANSWER]) and not self._writes([_ASK, thought])

    @cached_property
    def ending(self) -> str:
        """Text after the words of the last answer."""
        text = self._text([_ASK, _ANSWER])
        return "" if text is None else text.rpartition(MARK)[2]

    def _text(self, messages: Sequence[Message], **options: Any) -> str | None:
        try:
            return self._apply(list(messages), **options)
        except ValueError:
            return None

    def _writes(self, messages: Sequence[Message], **options: Any) -> bool:
        """Return True if the mark is in the rendering, or the template refuses the messages."""
        text = self._text(messages, **options)
        return text is None or MARK in text


def _calling(arguments: Any) -> Message:
    call = {"id": "aXbCall01", "type": "function",
            "function": {"name": MARK, "arguments": arguments}}  # fmt: skip
    return {"role": "assistant", "content": "", "tool_calls": [call]}


def _has_word(text: str) -> bool:
    return any(character.isalpha() for character in text)
