"""The errors a user can act on: what is wrong, where, and what to do about it.

Everything else that is raised is a bug of ours and keeps its traceback (in the worker's log). These
are rendered once, by `dpo_cli.app`, and never as a traceback.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any


class ExitCode(IntEnum):
    """The exit codes of every `dpo` command."""

    DONE = 0
    FAILED = 1  # findings, or a run that failed
    USAGE = 2  # a wrong command line or profile
    NO_SPACE = 75  # disk full; the run can be resumed
    INTERRUPTED = 130  # Ctrl-C or `dpo stop`, after saving
    TERMINATED = 143  # SIGTERM, after saving


class DpoError(Exception):
    """A failure with one clear message.

    Args:
        message: what is wrong, naming the file, line or profile key.
        remedy: what to do about it, in one sentence; may be empty.
        details: further lines, one finding each (all the bad keys, the first bad rows, ...).
    """

    exit_code: ExitCode = ExitCode.FAILED

    def __init__(self, message: str, remedy: str = "", details: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy
        self.details = tuple(details)

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
        """Make the error that `to_dict` described; other keys are ignored.

        The subclass is not restored, but its exit code is.
        """
        error = DpoError(fields["message"], fields["remedy"], fields["details"])
        error.exit_code = ExitCode(fields["exit_code"])
        return error


class UsageError(DpoError):
    """A wrong command line or profile: nothing was started."""

    exit_code = ExitCode.USAGE


class NoSpaceError(DpoError):
    """The disk is full; the last saved checkpoint is intact."""

    exit_code = ExitCode.NO_SPACE


def first_line(error: BaseException, limit: int = 200) -> str:
    """Return the first line of an error's text, or the name of its class if it has none."""
    return (str(error).strip() or type(error).__name__).splitlines()[0][:limit]
