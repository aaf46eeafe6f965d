"""Lines of an event stream, parsed only if necessary; `events.py` defines their content."""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Iterator
from math import inf
from pathlib import Path
from typing import Any

from dpo_cli.files import open_regular
from dpo_cli.run.disk import unreadable

_LONGEST_LINE = 16 << 20
STEP_DONE = b'{"event": "StepDone"'
_RESUMED = b'{"event": "Resumed"'
"""Beginnings of lines as `events.to_json` writes them, to skip lines without parsing them."""
_OPTIMIZER_STEP = re.compile(rb'"optimizer_step": (\d{1,18})\b')


def valid_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of valid events, some of which may be damaged, each with its end's offset.

    If a resume repeated steps, only the last repetition is valid. The stream is read twice instead
    of being kept in memory: first to find the `Resumed` events, which invalidate earlier lines.
    """
    end = 0
    limits: deque[tuple[int, float]] = deque()
    for start, line in complete_lines(path):
        end = start + len(line)
        if line.startswith(_RESUMED) and (limit := _last_valid_step(line)) is not None:
            limits.append((start, limit))
    # The limit at a line is the lowest of all later resumes.
    for index in reversed(range(len(limits) - 1)):
        limits[index] = limits[index][0], min(limits[index][1], limits[index + 1][1])
    for start, line in complete_lines(path):
        if start >= end:  # appended since the first pass, which may have missed a resume
            return
        while limits and limits[0][0] <= start:
            limits.popleft()
        if not limits or _optimizer_step(line) <= limits[0][1]:
            yield start + len(line), line


def complete_lines(path: Path, start: int = 0) -> Iterator[tuple[int, bytes]]:
    """Yield the lines that end with a newline, from byte `start` on, each with its offset.

    A line of more than `_LONGEST_LINE` bytes is yielded in parts.

    Raises:
        DpoError: the stream cannot be read.
    """
    try:
        with open_regular(path) as file:
            file.seek(start)
            while line := file.readline(_LONGEST_LINE):
                if not line.endswith(b"\n") and len(line) < _LONGEST_LINE:
                    return
                yield start, line
                start += len(line)
    except OSError as error:
        if not isinstance(error, FileNotFoundError):
            raise unreadable(path, error) from error


def _last_valid_step(line: bytes) -> float | None:
    """Return the last valid step before a `Resumed` event; None for a damaged line."""
    fields = _fields(line)
    step, checkpoint = fields.get("optimizer_step"), fields.get("checkpoint")
    if not isinstance(step, int) or not isinstance(checkpoint, str):
        return None
    return step if checkpoint else -1


def _optimizer_step(line: bytes) -> float:
    """Return the step of an event, -1 if it has none, infinity for a damaged line."""
    if line.startswith(STEP_DONE) and (match := _OPTIMIZER_STEP.search(line)):
        return int(match[1])
    fields = _fields(line)
    step = fields.get("optimizer_step", -1)
    return step if fields and isinstance(step, int) else inf


def _fields(line: bytes) -> dict[str, Any]:
    """Parse a line; empty if it is damaged."""
    try:
        fields = json.loads(line.decode(errors="replace"))
    except (ValueError, RecursionError):
        return {}
    return fields if isinstance(fields, dict) else {}
