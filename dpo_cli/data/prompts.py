"""Reading of prompts from a file."""

from __future__ import annotations

import codecs
import contextlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from dpo_cli.data.columns import PROMPTS, Columns
from dpo_cli.data.compression import opened
from dpo_cli.data.file_kinds import kind_of
from dpo_cli.data.file_readers import read_rows
from dpo_cli.data.formats import FORMATS, format_of
from dpo_cli.data.messages import Message
from dpo_cli.data.pairs import SkippedRow, to_pair
from dpo_cli.data.row_readers import read_prompt
from dpo_cli.data.rows import MalformedError, kind_of_value, parse_line
from dpo_cli.errors import DpoError

_LISTED = 10
_ROWS_SUFFIXES = (".jsonl", ".ndjson")
_KEYS = {*PROMPTS, "instruction", "input", "chosen"}
"""Keys of rows: a first line that is a JSON object with one of them is a row, not a prompt."""


@dataclass(frozen=True)
class Prompt:
    """Conversation to be answered, with its line or row in the file."""

    line: int
    messages: Sequence[Message]


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts of a file in order, without blank lines.

    A file of rows (JSONL, a JSON array, CSV or Parquet) has a prompt in each row: a column such as
    `prompt` or `messages`, or a preference pair of any known format, whose prompt is everything
    before the last answer of the chosen side. A JSON array may also contain texts. In any other
    file each line is a prompt.

    Raises:
        DpoError: the file cannot be read, has no prompt, or has lines without a prompt.
    """
    unit, values = _values(path)
    prompts, problems = [], []
    for number, value in values:
        try:
            prompts.append(Prompt(number, _messages(number, value)))
        except MalformedError as error:
            problems.append(f"{unit} {number}: {error}")
        except RecursionError:
            problems.append(f"{unit} {number}: nested too deeply")
    if problems:
        rest = len(problems) - _LISTED
        raise DpoError(
            f"{path}: {len(problems)} of {len(prompts) + len(problems)} {unit}s have no prompt",
            'Write {"prompt": "text"} on each line, or rename the file to .txt if each line is a'
            " prompt.",
            problems[:_LISTED] + ([f"and {rest} more"] if rest > 0 else []),
        )
    if not prompts:
        raise DpoError(f"{path}: the file has no prompt", "Write one prompt per line.")
    return prompts


def _values(path: Path) -> tuple[Literal["line", "row"], Iterable[tuple[int, Any]]]:
    """Return the unit of the numbers, and each row, text or `MalformedError` with its number."""
    kind = kind_of(path)
    if kind != "jsonl":
        return "row", read_rows(path, kind)
    if any(suffix in _ROWS_SUFFIXES for suffix in path.suffixes):
        return "line", read_rows(path, kind)
    with opened(path) as file:
        content = file.read().removeprefix(codecs.BOM_UTF8)
    if content.lstrip().startswith(b"["):
        with contextlib.suppress(ValueError, RecursionError):
            if isinstance(texts := json.loads(content), list):
                return "row", enumerate(texts, start=1)
    lines = [(n, raw) for n, raw in enumerate(content.split(b"\n"), start=1) if raw.strip()]
    if lines and _is_row(lines[0][1]):
        return "line", read_rows(path, kind)
    return "line", [(number, _text(raw)) for number, raw in lines]


def _is_row(raw: bytes) -> bool:
    with contextlib.suppress(MalformedError):
        return not _KEYS.isdisjoint(parse_line(raw))
    return False


def _text(raw: bytes) -> str | MalformedError:
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError as error:
        return MalformedError(f"not UTF-8 (byte {error.start + 1} of the line)")


def _messages(number: int, value: Any) -> Sequence[Message]:
    """Return the messages of a prompt.

    Raises:
        MalformedError: the value is no prompt.
    """
    if isinstance(value, MalformedError):
        raise value
    if isinstance(value, str):
        value = {"prompt": value}
    if not isinstance(value, dict):
        raise MalformedError(f"expected a text or an object, got {kind_of_value(value)}")
    row = Columns(value, {})
    name = format_of(row)
    if name is None:
        return _to_answer(_prompt(row, value))
    pair = to_pair(number, value, FORMATS[name], {})
    if isinstance(pair, SkippedRow):
        raise MalformedError(pair.reason)
    last = max(turn for turn, each in enumerate(pair.chosen) if each["role"] == "assistant")
    return _to_answer(pair.chosen[:last])


def _prompt(row: Columns, value: dict[str, Any]) -> Sequence[Message]:
    if row.first(*_KEYS) is None:
        if "prompt" in value:
            raise MalformedError("'prompt' must be a non-empty text or a list of messages")
        raise MalformedError(
            f"no 'prompt' among {', '.join(value) or 'no columns'}, and not a pair"
        )
    return read_prompt(row)


def _to_answer(messages: Sequence[Message]) -> Sequence[Message]:
    """Return messages that an answer can follow."""
    if not messages:
        raise MalformedError("'prompt' must be a non-empty text or a list of messages")
    if messages[-1]["role"] == "assistant":
        raise MalformedError("the last message is an answer")
    return messages
