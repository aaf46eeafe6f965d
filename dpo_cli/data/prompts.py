"""Reading of prompts from a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.data.formats import FORMATS, ROLES, Message, Row, formats_of
from dpo_cli.data.pairs import SkippedRow, to_pair
from dpo_cli.data.rows import MalformedError, parse_line
from dpo_cli.errors import DpoError

_ROWS_SUFFIX = ".jsonl"
_BOM = b"\xef\xbb\xbf"  # byte order mark
_LISTED = 10


@dataclass(frozen=True)
class Prompt:
    """Conversation to be answered, with its line in the file."""

    line: int
    messages: Sequence[Message]


def read_prompts(path: Path) -> list[Prompt]:
    """Read the prompts of a file in order, without blank lines.

    In a .jsonl file each line is a row: `{"prompt": "text"}`, `{"prompt": [messages]}`, or a
    preference pair of any known format, whose prompt is everything before the last answer of the
    chosen side. In any other file each line is a prompt.

    Raises:
        DpoError: the file cannot be read, has no prompt, or has lines without a prompt.
    """
    try:
        lines = path.read_bytes().removeprefix(_BOM).split(b"\n")
    except OSError as error:
        raise DpoError(
            f"{path}: {error.strerror}", "Name a file with one prompt per line."
        ) from error
    parse = _of_row if path.suffix == _ROWS_SUFFIX else _of_text
    prompts, problems = [], []
    for number, raw in enumerate(lines, start=1):
        if raw.strip():
            try:
                prompts.append(Prompt(number, parse(number, raw)))
            except ValueError as error:
                problems.append(f"line {number}: {error}")
    if problems:
        rest = len(problems) - _LISTED
        raise DpoError(
            f"{path}: {len(problems)} of {len(prompts) + len(problems)} lines have no prompt",
            'Write {"prompt": "text"} on each line, or rename the file to .txt if each line is a'
            " prompt.",
            problems[:_LISTED] + ([f"and {rest} more"] if rest > 0 else []),
        )
    if not prompts:
        raise DpoError(f"{path}: the file has no prompt", "Write one prompt per line.")
    return prompts


def _of_text(number: int, raw: bytes) -> list[Message]:
    try:
        return [{"role": "user", "content": raw.decode("utf-8").strip()}]
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1} of the line)") from error


def _of_row(number: int, raw: bytes) -> Sequence[Message]:
    try:
        row = parse_line(raw)
    except MalformedError as error:
        raise ValueError(str(error)) from error
    names = formats_of(row)
    if not names:
        return _prompt(row)
    pair = to_pair(number, row, FORMATS[names[0]], {})
    if isinstance(pair, SkippedRow):
        raise ValueError(pair.reason)
    last = max(turn for turn, each in enumerate(pair.chosen) if each["role"] == "assistant")
    return _conversation(list(pair.chosen[:last]))


def _prompt(row: Row) -> list[Message]:
    if isinstance(prompt := row.get("prompt"), str) and prompt.strip():
        return [{"role": "user", "content": prompt}]
    if prompt is None:
        raise ValueError(f"no 'prompt' among {', '.join(row) or 'no columns'}, and not a pair")
    return _conversation(prompt)


def _conversation(messages: Any) -> list[Message]:
    """Validate messages that an answer can follow."""
    if not isinstance(messages, list) or not messages:
        raise ValueError("'prompt' must be a non-empty text or a list of messages")
    for number, message in enumerate(messages, start=1):
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            raise ValueError(f"message {number}: 'content' must be a text")
        if message.get("role") not in ROLES:
            raise ValueError(f"message {number}: 'role' must be one of {', '.join(ROLES)}")
    if messages[-1]["role"] == "assistant":
        raise ValueError("the last message is an answer")
    return messages
