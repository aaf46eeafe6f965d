"""Columns of one row, by the names that the formats use, with a record of those that were read."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from dpo_cli.data.messages import (
    Message,
    beside_messages,
    decoded,
    parsed_json,
    refuse_python,
    text_or_turns,
    turns,
)
from dpo_cli.data.rows import MalformedError, kind_of_value

Row = Mapping[str, Any]
QUESTIONS = ("question", "instruction", "input", "query", "problem")
"""Names of columns that are probably the prompt of rows without a column `prompt`, as a text."""
PROMPTS = ("prompt", "conversations", "messages")
"""Names of columns with a prompt apart from the sides, a text or turns."""


class Columns:
    """Columns of a row.

    `peek` looks at a value to detect the format; every other method reads it. A column is read
    where its words become a part of the pair, so training leaves out the columns in `unread`.

    Args:
        row: values by the names in the file.
        names: names in the file by the names that the formats use (`data.columns`).

    Raises:
        MalformedError: the row lacks a column of `names`.
    """

    def __init__(self, row: Row, names: Mapping[str, str]) -> None:
        if missing := [column for column in names.values() if column not in row]:
            raise MalformedError(f"no {missing[0]!r}")
        self._row, self._names = row, names
        self._hidden = {column for column in names.values() if column not in names}
        self._read: set[str] = set()
        self._parts: dict[str, Any] = {}
        self._tools: dict[str, Any] = {}

    def peek(self, *names: str) -> Any:
        """Return the value of the first of these columns that has one; None if none has."""
        name = self.first(*names)
        return None if name is None else decoded(self._value(name))

    def first(self, *names: str) -> str | None:
        """Return the first of these names whose column has a value."""
        return next((name for name in names if not is_blank(self._value(name))), None)

    def has(self, name: str) -> bool:
        """Return True if the row has the column, even without a value."""
        column = self._names.get(name, name)
        return column in self._row and (name in self._names or column not in self._hidden)

    def require(self, *names: str) -> None:
        """Check that the row has these columns.

        Raises:
            MalformedError: a column is missing; names the first.
        """
        if missing := [name for name in names if not self.has(name)]:
            raise MalformedError(f"no {self._names.get(missing[0], missing[0])!r}")

    def mark(self, name: str, *, is_read: bool = True) -> None:
        """Record that a column was read, or with `is_read=False` that the pair does not use it."""
        (self._read.add if is_read else self._read.discard)(self._names.get(name, name))

    def raw(self, name: str) -> Any:
        """Read a value as it is in the file; None if the row lacks it."""
        self.mark(name)
        return self._value(name)

    def value(self, name: str) -> Any:
        """Read a value, of JSON text if it is a text; None if the row lacks it."""
        return parsed_json(self.raw(name))

    def text(self, name: str) -> str:
        """Read a text.

        Raises:
            MalformedError: the value is of another kind, or messages in Python syntax.
        """
        value, where = self.raw(name), self.shown(name)
        if not isinstance(value, str):
            raise MalformedError(f"{where} is {kind_of_value(value)}, expected a text")
        return refuse_python(value, where)

    def turns(self, name: str) -> list[Message]:
        """Read messages; see `dpo_cli.data.messages.turns`."""
        return turns(self._beside_messages(name), self.shown(name))

    def text_or_turns(self, name: str, role: str) -> list[Message]:
        """Read messages, or a text as one message of a role."""
        return text_or_turns(self._beside_messages(name), self.shown(name), role)

    def tools(self) -> Any:
        """Read the tool definitions as they are in the row: beside its messages, or its `tools`.

        Raises:
            MalformedError: two columns have different definitions beside their messages.
        """
        own, beside = self.raw("tools"), {name: parsed_json(v) for name, v in self._tools.items()}
        first = next(iter(beside), "")
        if other := next((name for name in beside if beside[name] != beside[first]), ""):
            raise MalformedError(f"{first!r} and {other!r} have different tools")
        return beside.get(first, own)

    def list_of(self, name: str) -> list[Any]:
        """Read a list, or the JSON text of one.

        Raises:
            MalformedError: the value is of another kind.
        """
        value = self.value(name)
        if not isinstance(value, list):
            raise MalformedError(f"{self.shown(name)} is {kind_of_value(value)}, expected a list")
        return value

    def number(self, name: str) -> float:
        """Read a number, or the text of one."""
        return number(self.raw(name), self.shown(name))

    def shown(self, name: str) -> str:
        """Return the name of a column in the file, in quotes."""
        return repr(self._names.get(name, name))

    @property
    def read(self) -> frozenset[str]:
        """Names in the file of the columns that were read."""
        return frozenset(self._read)

    @property
    def unread(self) -> dict[str, Any]:
        """Values of the columns that have one and were not read, by their names in the file."""
        left = {name: value for name, value in self._row.items() if name not in self._read}
        return {name: each for name, each in {**left, **self._parts}.items() if not is_blank(each)}

    def _beside_messages(self, name: str) -> Any:
        """Read a value, and record the keys that an object with the list `messages` also has."""
        value, column = self.raw(name), self._names.get(name, name)
        beside = beside_messages(value)
        tools = beside.pop("tools", None)
        if not is_blank(parsed_json(tools)):
            self._tools[column] = tools
        self._parts |= {f"{column}.{key}": each for key, each in beside.items()}
        return value

    def _value(self, name: str) -> Any:
        return self._row[self._names.get(name, name)] if self.has(name) else None


def is_blank(value: Any) -> bool:
    """Return True for null, an empty list or object, and an empty or blank text."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, list | dict) and not value)


def number(value: Any, where: str) -> float:
    """Convert a number, or the text of one, to a finite float.

    Raises:
        MalformedError: the value is neither.
    """
    try:
        if isinstance(value, bool):
            raise ValueError
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        found = math.nan
    if not math.isfinite(found):
        raise MalformedError(f"{where} is {kind_of_value(value)}, expected a number")
    return found
