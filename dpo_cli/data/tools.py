"""Definitions of tools, and arguments of tool calls."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_cli.data.rows import MalformedError, kind_of_value

Tool = dict[str, Any]


def tools_of(row: Mapping[str, Any], messages: Sequence[Mapping[str, Any]]) -> tuple[Tool, ...]:
    """Return the tool definitions of a row: its `tools`, or those of its system message.

    Both may be JSON text, as in LLaMA-Factory's and MiniMind's files. "", "[]" and "null" are none.

    Raises:
        MalformedError: the value is neither a list of objects nor its JSON text.
    """
    found = _parse(row.get("tools"), "'tools'")
    if not found and messages and messages[0].get("role") == "system":
        found = _parse(messages[0].get("tools"), "'tools' of the system message")
    return found


def with_arguments(message: Mapping[str, Any], kind: str) -> dict[str, Any]:
    """Copy a message with the arguments of its tool calls as an "object" or as JSON "text".

    `kind` is `ChatTemplate.arguments`; "either" changes nothing. Missing arguments are an empty
    object; arguments that are no JSON object stay as they are.
    """
    calls = message.get("tool_calls")
    if kind == "either" or not isinstance(calls, list):
        return dict(message)
    return {**message, "tool_calls": [_with_arguments(call, kind) for call in calls]}


def _with_arguments(call: Any, kind: str) -> Any:
    if not isinstance(call, dict):
        return call
    if isinstance(call.get("function"), dict):
        return {**call, "function": _with_arguments(call["function"], kind)}
    arguments = call.get("arguments")
    if arguments is None and "name" in call:
        return {**call, "arguments": {} if kind == "object" else "{}"}
    if kind == "object" and isinstance(arguments, str):
        try:
            parsed = json.loads(arguments) if arguments.strip() else {}
        except (ValueError, RecursionError):
            return call
        return {**call, "arguments": parsed} if isinstance(parsed, dict) else call
    if kind == "text" and isinstance(arguments, dict):
        return {**call, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return call


def _parse(value: Any, where: str) -> tuple[Tool, ...]:
    if isinstance(value, str):
        try:
            value = json.loads(value) if value.strip() else None
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"{where} is a text, but not JSON") from error
    if not value:  # None, [] and {}
        return ()
    tools = [value] if isinstance(value, dict) else value
    if not isinstance(tools, list):
        raise MalformedError(f"{where} is {kind_of_value(value)}, expected a list of objects")
    # Some writers encode each definition again.
    tools = [_object(tool, where) for tool in tools]
    return tuple(tools)


def _object(tool: Any, where: str) -> Tool:
    if isinstance(tool, str):
        try:
            tool = json.loads(tool)
        except (ValueError, RecursionError) as error:
            raise MalformedError(f"{where} has a text that is not JSON") from error
    if not isinstance(tool, dict):
        raise MalformedError(f"{where} has {kind_of_value(tool)}, expected objects")
    return tool
