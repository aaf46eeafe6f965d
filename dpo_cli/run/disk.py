"""Disk errors, recognized and turned into messages for the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_cli.errors import DpoError, NoSpaceError
from dpo_cli.files import is_not_regular

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_no_space(error: BaseException) -> bool:
    """Return True if a full disk, quota or file size limit caused `error`."""
    return _no_space_cause(error) is not None


def _no_space_cause(error: BaseException | None) -> BaseException | None:
    """Return the exception in the chain of `error` that reports a full disk.

    Writers hide the cause: torch raises RuntimeError with the OSError only in `__context__`, and
    safetensors keeps only the system's text. So the whole chain is searched, and the texts too.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return error
        if any(os.strerror(number) in str(error) for number in _NO_SPACE):
            return error
        error = error.__cause__ or error.__context__
    return None


def unreadable(path: Path, error: OSError) -> DpoError:
    """Make the error for a file of a run that cannot be read but may be intact."""
    return DpoError(
        f"{path} cannot be read: {error.strerror}", "Check its owner, permissions and disk."
    )


def no_space(directory: Path, error: BaseException | None = None) -> NoSpaceError:
    """Make the error for an exhausted disk, quota or file size limit.

    Args:
        directory: where something was written.
        error: an error of `is_no_space`; the file that it names becomes a detail.
    """
    file = getattr(_no_space_cause(error), "filename", None)
    return NoSpaceError(
        f"no space left to write in {directory}",
        "Free some space, or raise the quota or file size limit. Earlier checkpoints are intact;"
        " dpo resume continues from them.",
        [f"while writing {os.fsdecode(file)}"] if file is not None else [],
    )


@contextmanager
def explain_disk_errors(directory: Path) -> Iterator[None]:
    """Turn errors of a full or read-only disk into an error that names `directory`.

    Raises:
        NoSpaceError: the disk, a quota or a file size limit is exhausted.
        DpoError: writing is not allowed, or the path is a link (O_NOFOLLOW).
    """
    try:
        yield
    except DpoError:
        raise
    except Exception as error:
        if is_no_space(error):
            raise no_space(directory, error) from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise DpoError(
                f"cannot write in {directory}: {error.strerror}",
                "Make it writable, or choose another directory with --runs-dir or DPO_RUNS_DIR.",
            ) from error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise DpoError(
                f"{error.filename or directory} is a link, and dpo does not write through links",
                "Replace the link by the file, or remove it.",
            ) from error
        if isinstance(error, OSError) and is_not_regular(error):
            raise DpoError(
                f"{error.filename}: not a regular file", "Remove it, or choose another path."
            ) from error
        raise
