"""Messages of a conversation, read from the forms in which datasets store them.

A message becomes a dict of `role` (one of `ROLES`), `content` (a text) and the keys that only a
chat template reads, for example `tool_calls`.
"""

from __future__ import annotations

import json
import re
import reprlib
from collections.abc import Mapping, Sequence
from typing import Any

from dpo_cli.data.rows import MalformedError, kind_of_value

ROLES = ("system", "user", "assistant", "tool")

Message = dict[str, Any]

_CALL = "function_call"
_ROLE_OF: Mapping[str, str] = {
    **{role: role for role in ROLES},
    "developer": "system",
    "human": "user",
    "prompter": "user",
    "gpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "function": "tool",
    "ipython": "tool",
    "observation": "tool",
    "tool_response": "tool",
    _CALL: "assistant",
    "tool_call": "assistant",
}
"""Roles by the lowercase names that datasets give to speakers."""
_SHOWN_ROLES = (*ROLES, "human", "gpt", "model")
_ROLE_KEYS, _TEXT_KEYS = ("role", "from"), ("content", "value", "parts")
_TEXT_PARTS = ("text", "input_text", "output_text")
_BEGINS_JSON = re.compile(r'\s*(?:\[\s*(?:\{|")|\{\s*"|"\s*(?:\[|\{))')
_ROLE_KEY, _TEXT_KEY = r"'(?:role|from)'\s*:", r"'(?:content|value)'\s*:"
_PYTHON = re.compile(
    rf"\[?\s*\{{\s*(?:{_ROLE_KEY}.*{_TEXT_KEY}|{_TEXT_KEY}.*{_ROLE_KEY})", re.DOTALL
)
"""Messages as Python prints them, for example pandas in a CSV file."""
_MOST_TIMES = 3
"""Times that a value may be JSON text within JSON text."""


def decoded(value: Any) -> Any:
    """Parse a text that is the JSON of messages; return any other value unchanged.

    Raises:
        MalformedError: the text has an unpaired surrogate.
    """
    if isinstance(value, str) and _BEGINS_JSON.match(value):
        parsed = parsed_json(value)
        if _holds_messages(parsed):
            return parsed
    return value


def parsed_json(value: Any) -> Any:
    """Parse a text that is JSON, also of a text that is JSON; return any other value unchanged.

    Raises:
        MalformedError: the text has an unpaired surrogate.
    """
    for _ in range(_MOST_TIMES):
        if not isinstance(value, str):
            break
        try:
            parsed = json.loads(value)
            if "\\u" in value:
                json.dumps(parsed, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise MalformedError("an unpaired surrogate in JSON text is not text") from error
        except (ValueError, RecursionError):
            break
        value = parsed
    return value


def refuse_python(text: str, where: str) -> str:
    """Return a text, unless Python printed a list of messages.

    Raises:
        MalformedError: the text is such a list.
    """
    stripped = text.strip()
    if stripped.endswith(("]", "}")) and _PYTHON.match(stripped):
        raise MalformedError(f"{where} is messages in Python syntax; write them with json.dumps")
    return text


def is_turns(value: Any) -> bool:
    """Return True for a list of messages or a single message, in any form that `turns` reads."""
    value = decoded(value)
    if isinstance(value, list) and value:
        return _is_message(decoded(value[0]))
    return _is_message(value) or (isinstance(value, dict) and is_turns(value.get("messages")))


def turns(value: Any, where: str) -> list[Message]:
    """Read messages of role and content, or of from and value.

    Args:
        value: a list of messages, a single message, an object with the list `messages`, an object
            of lists (one for each key of the messages), or the JSON text of one of these.
        where: name of the value for users, for example "'chosen'".

    Raises:
        MalformedError: the value has another form, or is empty.
    """
    value = decoded(value)
    if isinstance(value, str):
        refuse_python(value, where)
    if isinstance(value, dict) and not _is_message(value) and "messages" in value:
        value, where = value["messages"], f"{where}, 'messages'"
    if isinstance(value, dict) and _is_message(value):
        value = _by_message(value) or [value]
    if not isinstance(value, list) or not value:
        raise MalformedError(f"{where} is {kind_of_value(value)}, expected a list of messages")
    return [
        _message(decoded(each), f"{where}, message {number}")
        for number, each in enumerate(value, start=1)
    ]


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


def said(value: Any, where: str, role: str) -> list[Message]:
    """Read messages, or a text as one message of a role.

    Raises:
        MalformedError: the value is neither.
    """
    value = decoded(value)
    if isinstance(value, str):
        return [{"role": role, "content": text_of(refuse_python(value, where), where)}]
    if holds_parts(value):
        return [{"role": role, "content": text_of(value, where)}]
    if isinstance(value, list | dict):
        return turns(value, where)
    raise MalformedError(f"{where} is {kind_of_value(value)}, expected a text or messages")


def text_of(value: Any, where: str) -> str:
    """Return a text, or the joined texts of content parts, which may be JSON text themselves.

    Raises:
        MalformedError: the value is neither, or has a part that is no text.
    """
    if isinstance(value, str) and _BEGINS_JSON.match(value):
        parsed = parsed_json(value)
        value = parsed if holds_parts(parsed) else value
    if isinstance(value, str):
        return value
    parts = value if isinstance(value, list) else [value]
    if not parts or not all(isinstance(part, str | dict) for part in parts):
        raise MalformedError(f"{where} is {kind_of_value(value)}, expected a text")
    return "".join(_part(part, f"{where}, part {n}") for n, part in enumerate(parts, start=1))


def holds_parts(value: Any) -> bool:
    """Return True for a list of content parts that are texts."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(part, dict) and part.get("type") in _TEXT_PARTS for part in value)
        and all("text" in part for part in value)
    )


def _part(part: str | dict[str, Any], where: str) -> str:
    if isinstance(part, str):
        return part
    kind, text = part.get("type", "text"), part.get("text")
    if isinstance(text, dict):  # {"type": "text", "text": {"value": "..."}}
        text = text.get("value")
    if kind not in _TEXT_PARTS or not isinstance(text, str):
        shown = reprlib.repr(kind) if kind not in _TEXT_PARTS else kind_of_value(text)
        raise MalformedError(f"{where} is {shown}, expected a text")
    return text


def _message(message: Any, where: str) -> Message:
    if not isinstance(message, dict):
        raise MalformedError(f"{where}: expected an object, got {kind_of_value(message)}")
    # A table gives each message the keys of all messages, with null where it has none.
    known = {name: value for name, value in message.items() if value is not None}
    role_key = next((key for key in _ROLE_KEYS if key in known), "role")
    text_key = next((key for key in _TEXT_KEYS if key in known), _TEXT_KEYS[role_key == "from"])
    speaker, text = known.pop(role_key, None), known.pop(text_key, None)
    name = speaker.strip().lower() if isinstance(speaker, str) else ""
    if name not in _ROLE_OF:
        # reprlib shortens a role that is long or deeply nested.
        raise MalformedError(
            f"{where}: {role_key} {reprlib.repr(speaker)} is not one of {', '.join(_SHOWN_ROLES)}"
        )
    if role_key == "from" and name.endswith("_call"):
        call = text_of(text, f"{where}: {text_key!r}")
        return {"role": "assistant", "content": "", "tool_calls": _calls(call, where)}
    calls = known.get("tool_calls")
    if isinstance(calls, str) and calls:
        known["tool_calls"] = _calls(calls, where)
    if text is None and known.get("tool_calls"):
        text = ""
    return {
        "role": _ROLE_OF[name],
        "content": text_of(text, f"{where}: {text_key!r}"),
        **known,
    }


def _calls(value: str, where: str) -> list[dict[str, Any]]:
    """Parse tool calls into the form that transformers passes to chat templates."""
    try:
        parsed = json.loads(value)
    except (ValueError, RecursionError) as error:
        raise MalformedError(f"{where}: a function call must be JSON") from error
    calls = parsed if isinstance(parsed, list) else [parsed]
    if not all(isinstance(call, dict) for call in calls):
        raise MalformedError(f"{where}: a function call must be an object")
    functions = [call.get("function", call) for call in calls]
    if not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in functions):
        raise MalformedError(f"{where}: a function call must have a 'name'")
    return [
        {
            "type": "function",
            "function": {"name": each["name"], "arguments": each.get("arguments", {})},
        }
        for each in functions
    ]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and any(key in value for key in _ROLE_KEYS)


def _holds_messages(value: Any) -> bool:
    """Return True if parsed JSON text is messages, rather than an answer that is JSON."""
    if isinstance(value, dict) and "messages" in value and not _is_message(value):
        return _holds_messages(value["messages"])
    if isinstance(value, dict):
        value = _by_message(value) or [value]
    if not isinstance(value, list):
        return False
    messages = [decoded(each) for each in value]
    return (
        bool(messages)
        and all(_is_message(each) and _has_text(each) for each in messages)
        and any(_speaker(each) in _ROLE_OF for each in messages)
    )


def _has_text(message: dict[str, Any]) -> bool:
    return any(key in message for key in (*_TEXT_KEYS, "tool_calls"))


def _speaker(message: dict[str, Any]) -> str:
    return str(next(message[key] for key in _ROLE_KEYS if key in message)).strip().lower()


def _by_message(value: dict[str, Any]) -> list[dict[str, Any]]:
    """Convert an object of lists to a list of objects; empty if it is no such object."""
    lists = {key: each for key, each in value.items() if isinstance(each, list)}
    if not any(key in lists for key in _ROLE_KEYS):
        return []
    return [
        {key: each[n] for key, each in lists.items() if n < len(each)}
        for n in range(max(map(len, lists.values())))
    ]
