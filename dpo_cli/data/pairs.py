"""Reading preference pairs, and naming every row that cannot be used."""

from __future__ import annotations

import json
import reprlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_cli.errors import DpoError

SIDES = ("chosen", "rejected")
ROLES = ("system", "user", "assistant", "tool")
MALFORMED_SHARE_LIMIT = 0.01

Message = dict[str, Any]
Problem = Literal["malformed", "identical", "truncated"]


@dataclass(frozen=True)
class PreferencePair:
    """Two conversations, one preferred to the other; each holds an assistant's answer.

    MiniMind's rows hold whole conversations on both sides: the prompt is what they share.
    """

    line: int
    chosen: Sequence[Message]
    rejected: Sequence[Message]


@dataclass(frozen=True)
class SetAside:
    """A row that is not used, and why; `line` counts from 1."""

    line: int
    problem: Problem
    reason: str

    def to_json(self) -> str:
        """One line of `rejected_rows.jsonl`."""
        return json.dumps(
            {"line": self.line, "problem": self.problem, "reason": self.reason}, ensure_ascii=False
        )


def read_pairs(
    path: Path,
    on_line: Callable[[bytes], object] = lambda line: None,
    lines: range | None = None,
) -> Iterator[PreferencePair | SetAside]:
    """The rows of a JSONL file in MiniMind's format, in order; blank lines are passed over.

    One row is `{"chosen": [{"role": ..., "content": ...}, ...], "rejected": [...]}`. Lines end at
    a newline and nowhere else: U+2028 is text. A byte order mark at the start is accepted.

    Args:
        path: the file.
        on_line: gets every line as it stands in the file.
        lines: the numbers (from 1) of those that are wanted; None for all.

    Raises:
        DpoError: the file is not to be read, or holds no row at all.
    """
    try:
        file = path.open("rb")
    except OSError as error:
        raise DpoError(
            f"{path}: {error.strerror}", "set data.data_path to a JSONL file of preference pairs"
        ) from error
    rows = 0
    with file:
        for line, raw in enumerate(file, start=1):
            on_line(raw)
            if line == 1:
                raw = raw.removeprefix(b"\xef\xbb\xbf")
            if raw.strip():
                rows += 1
                if lines is None or line in lines:
                    yield parse_row(line, raw)
    if not rows:
        raise DpoError(f"{path}: the file holds no rows", "write one preference pair on each line")


def parse_row(line: int, raw: bytes) -> PreferencePair | SetAside:
    """One line of the file as a pair, or the first thing that is wrong with it."""
    try:
        return _parse(line, raw)
    except _MalformedError as error:
        return SetAside(line, "malformed", str(error))


def refuse_if_mostly_malformed(path: Path, set_aside: Sequence[SetAside], rows: int) -> None:
    """Refuse a file of which more than 1 % is malformed: it is not what it is taken for.

    Raises:
        DpoError: naming the first bad rows.
    """
    malformed = [row for row in set_aside if row.problem == "malformed"]
    if len(malformed) <= MALFORMED_SHARE_LIMIT * rows:
        return
    details = [f"line {row.line}: {row.reason}" for row in malformed[:10]]
    if len(malformed) > len(details):
        details.append(f"and {len(malformed) - len(details)} more")
    raise DpoError(
        f"{path}: {len(malformed)} of {rows} rows are malformed"
        f" (more than {MALFORMED_SHARE_LIMIT:.0%})",
        'mend or remove these rows; each is {"chosen": [messages], "rejected": [messages]},'
        ' a message {"role": "user", "content": "text"}',
        details,
    )


class _MalformedError(Exception):
    """Why a row is malformed."""


def _parse(line: int, raw: bytes) -> PreferencePair:
    try:
        row = json.loads(raw.decode("utf-8"))
        if b"\\u" in raw:
            json.dumps(row, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise _MalformedError(f"not UTF-8 (byte {error.start + 1} of the line)") from error
    except UnicodeEncodeError as error:
        raise _MalformedError("half a surrogate pair (\\ud800 to \\udfff) is not text") from error
    except json.JSONDecodeError as error:
        raise _MalformedError(f"not JSON: {error.msg} (column {error.colno})") from error
    except RecursionError as error:
        raise _MalformedError("not JSON that can be read: nested too deeply") from error
    except ValueError as error:  # an integer of more digits than Python converts
        raise _MalformedError(f"not JSON that can be read: {error}") from error
    if not isinstance(row, dict):
        raise _MalformedError(f"a JSON object was expected, not {_kind(row)}")
    if missing := [side for side in SIDES if side not in row]:
        raise _MalformedError(f"no {missing[0]!r}")
    return PreferencePair(line, _messages(row, "chosen"), _messages(row, "rejected"))


def _messages(row: dict[str, Any], side: str) -> list[Message]:
    messages = row[side]
    if not isinstance(messages, list) or not messages:
        raise _MalformedError(f"{side!r} must be a list of messages, not {_kind(messages)}")
    for number, message in enumerate(messages, start=1):
        where = f"{side!r}, message {number}"
        if not isinstance(message, dict):
            raise _MalformedError(f"{where}: an object was expected, not {_kind(message)}")
        if message.get("role") not in ROLES:
            raise _MalformedError(
                # A short text, however long or deep the role is.
                f"{where}: role {reprlib.repr(message.get('role'))} is none of {', '.join(ROLES)}"
            )
        if not isinstance(message.get("content"), str):
            raise _MalformedError(f"{where}: 'content' must be a text")
    if all(message["role"] != "assistant" for message in messages):
        raise _MalformedError(f"{side!r} holds no assistant's answer")
    return messages


def _kind(value: Any) -> str:
    if value is None:
        return "null"
    if value == [] and isinstance(value, list):
        return "an empty list"
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a text", list: "a list"}
    return names.get(type(value), "an object")
