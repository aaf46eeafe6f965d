"""Output of commands: text, JSON, tables of an evaluation, and files."""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dpo_cli.errors import DpoError, naming
from dpo_cli.files import write_atomically
from dpo_cli.printable import escape_json
from dpo_cli.run.disk import is_no_space, no_space
from dpo_cli.ui.terminal.console import SafeConsole, echo, line_console
from dpo_cli.ui.terminal.evaluation import EvaluationView
from dpo_cli.ui.terminal.panel import terminal_size

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import Evaluation

_EVALUATION_WIDTH = 120
_STREAMS = {
    f"{folder}/{name}": descriptor
    for descriptor, stream in ((1, "stdout"), (2, "stderr"))
    for folder, name in (
        ("/dev", stream),
        ("/dev/fd", descriptor),
        ("/proc/self/fd", descriptor),
    )
}
"""Descriptors of the standard streams by their paths."""


def say(line: str) -> None:
    """Print one line on standard error."""
    line_console(stderr=True).print(line)


def print_json(value: Any) -> None:
    """Print a value as indented JSON; paths become strings."""
    echo(json_text(value, indent=2))


def json_text(value: Any, indent: int | None = None) -> str:
    """Return a value as JSON for a terminal or a program.

    Characters that control a terminal, and those that standard output cannot encode, are escaped.
    Numbers that are not finite become null, because JSON has none.
    """
    is_ascii = not (sys.stdout.encoding or "utf").lower().startswith("utf")
    return escape_json(
        json.dumps(_finite(value), indent=indent, ensure_ascii=is_ascii, default=str)
    )


def _finite(value: Any) -> Any:
    """Replace numbers that are not finite by None, in lists and dicts, too."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {key: _finite(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value


def print_evaluation(evaluation: Evaluation) -> None:
    """Print the tables of an evaluation, as wide as the terminal."""
    width = terminal_size()[0] if sys.stdout.isatty() else _EVALUATION_WIDTH
    console = SafeConsole(width=width, highlight=False, markup=False, emoji=False)
    console.print(EvaluationView(evaluation))


def write_output(path: Path, content: bytes) -> bool:
    """Replace a file atomically, or write to a standard stream such as /dev/stdout.

    Returns:
        True for a file, False for a standard stream.

    Raises:
        NoSpaceError: the disk is full.
        DpoError: the file cannot be written, or is a device or a FIFO.
    """
    try:
        if (descriptor := _STREAMS.get(os.path.abspath(path))) is not None:
            with naming(path), open(descriptor, "wb", closefd=False) as stream:
                stream.write(content)
            return False
        write_atomically(path, lambda temporary: _write(temporary, content))
    except OSError as error:
        if is_no_space(error):
            raise no_space(path.parent, error) from error
        raise DpoError(
            f"cannot write {path}: {error.strerror}", "Choose another path for the file."
        ) from error
    return True


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
