"""What a failing disk looks like, and how it is told to the user."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from dpo_cli.errors import DpoError, NoSpaceError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


def is_no_space(error: BaseException | None) -> bool:
    """Whether a full disk, quota or file size limit is behind `error`.

    Writers wrap it: torch raises RuntimeError with the OSError only in `__context__`, safetensors
    keeps nothing but the system's words. So the whole chain is searched, texts included.
    """
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        if isinstance(error, OSError) and error.errno in _NO_SPACE:
            return True
        if any(os.strerror(number) in str(error) for number in _NO_SPACE):
            return True
        error = error.__cause__ or error.__context__
    return False


def no_space(directory: Path) -> NoSpaceError:
    """What to tell a user whose disk, quota or file size limit is exhausted."""
    return NoSpaceError(
        f"no space left to write in {directory}",
        "free some space (or raise the quota or file size limit); what was saved before "
        "is intact, and `dpo resume` goes on from it",
    )


@contextmanager
def explain_disk_errors(directory: Path) -> Iterator[None]:
    """Turn what a full or read-only disk raises inside into an error that names `directory`.

    Raises:
        NoSpaceError: the disk, a quota or a file size limit is exhausted.
        DpoError: writing there is not allowed, or would go through a link (O_NOFOLLOW).
    """
    try:
        yield
    except DpoError:
        raise
    except Exception as error:
        if is_no_space(error):
            raise no_space(directory) from error
        if isinstance(error, OSError) and error.errno in _REFUSED:
            raise DpoError(
                f"cannot write in {directory}: {error.strerror}",
                "make it writable, or choose another place with --runs-dir or DPO_RUNS_DIR",
            ) from error
        if isinstance(error, OSError) and error.errno == errno.ELOOP:
            raise DpoError(
                f"{error.filename or directory} is a link, and dpo writes through none",
                "put the file itself in its place, or remove the link",
            ) from error
        raise
