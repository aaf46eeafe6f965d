"""Errors with a remedy, and the exit codes of the command line.

Every other exception is a bug: it keeps its traceback, in a file or in the worker's log.
`dpo_cli.app` prints these errors, without a traceback.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """Exit codes of every `dpo` command."""

    DONE = 0
    FAILED = 1  # findings, or a run that failed
    USAGE = 2  # a wrong command line or profile
    NO_SPACE = 75  # disk full; the run can be resumed
    INTERRUPTED = 130  # Ctrl-C or `dpo stop`, after saving
    TERMINATED = 143  # SIGTERM, after saving


class DpoError(Exception):
    """Failure that the user can act on.

    Args:
        message: what is wrong, with the file, line or profile key.
        remedy: what to do about it, in one sentence; may be empty.
        details: one line per finding, for example every wrong key or the first bad rows.
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, remedy: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = tuple(details)
        # Python prints notes below the message of a traceback: in a script or notebook, too, the
        # user must see what to do.
        for detail in self.details:
            self.add_note(f"  {detail}")
        if remedy:
            self.add_note(f"help: {remedy}")

    def to_dict(self) -> dict[str, Any]:
        """Return the error as plain values, for JSON; `from_dict` is the inverse."""
        return {
            "message": self.message,
            "remedy": self.remedy,
            "details": self.details,
            "exit_code": int(self.exit_code),
        }

    @staticmethod
    def from_dict(fields: Mapping[str, Any]) -> DpoError:
        """Rebuild an error from `to_dict`; other keys are ignored.

        The exit code decides between `UsageError`, `NoSpaceError` and `DpoError`.
        """
        code = ExitCode(fields["exit_code"])
        kinds = {ExitCode.USAGE: UsageError, ExitCode.NO_SPACE: NoSpaceError}
        error = kinds.get(code, DpoError)(fields["message"], fields["remedy"], fields["details"])
        error.exit_code = code
        return error


class UsageError(DpoError):
    """Wrong command line, argument or profile: nothing was started."""

    exit_code = ExitCode.USAGE


class NoSpaceError(DpoError):
    """Full disk; the last saved checkpoint is intact."""

    exit_code = ExitCode.NO_SPACE


@contextmanager
def naming(
    place: str | os.PathLike[str], *, instead_of: os.PathLike[str] | None = None
) -> Iterator[None]:
    """Name `place` in an OSError without a file name, as write() and fsync() raise it.

    Args:
        place: the file, or the name of a stream.
        instead_of: a temporary file whose name `place` replaces.
    """
    try:
        yield
    except OSError as error:
        temporary = os.fspath(instead_of) if instead_of else None
        if error.errno is not None and error.filename in (None, temporary):
            error.filename = os.fspath(place)
        raise


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]
