"""Writers of the event stream."""

from __future__ import annotations

import dataclasses
import errno
import os
import time
from pathlib import Path

from dpo_cli.errors import naming
from dpo_cli.files import open_for_appending, require_regular
from dpo_cli.machine import NO_FOLLOW, NO_WAIT, flush
from dpo_cli.run.events import Event, to_json


class EventWriter:
    """Appends events to a stream, each line with one system call.

    Args:
        path: the stream.
        mend: cut off a torn last line first. Only for the holder of the run's lock: for other
            writers, a line that looks torn may be a line that is being written.
    """

    def __init__(self, path: Path, *, mend: bool = True) -> None:
        if mend:
            drop_torn_tail(path)
        self._path = path
        self._descriptor = open_for_appending(path)
        self._started = time.monotonic()

    def append(self, event: Event) -> None:
        """Append one event, with the seconds since this writer was made.

        Raises:
            OSError: ENOSPC if the disk is full; no part of the line is left behind.
        """
        elapsed_seconds = time.monotonic() - self._started
        stamped = dataclasses.replace(event, elapsed_seconds=elapsed_seconds)
        line = (to_json(stamped) + "\n").encode()
        with naming(self._path):
            written = os.write(self._descriptor, line)
            if written < len(line):  # a full disk took only the beginning: remove it again
                os.ftruncate(self._descriptor, os.fstat(self._descriptor).st_size - written)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def flush(self) -> None:
        """Flush the stream to the disk, so that a power loss does not remove lines."""
        with naming(self._path):
            flush(self._descriptor)

    def close(self) -> None:
        """Flush the stream to the disk and close it."""
        self.flush()
        os.close(self._descriptor)


class NullEventWriter:
    """Writer of the ranks that do not write the stream; does nothing."""

    def append(self, event: Event) -> None:
        """Do nothing."""

    def flush(self) -> None:
        """Do nothing."""


def drop_torn_tail(path: Path) -> None:
    """Cut off a last line that a crash left without its newline.

    Raises:
        OSError: for example ELOOP if `path` is a link; the target is not changed.
    """
    try:
        descriptor = os.open(path, os.O_RDWR | NO_FOLLOW | NO_WAIT)
    except FileNotFoundError:
        return
    with open(require_regular(descriptor, path), "r+b") as file:
        data = file.read()
        keep = data.rfind(b"\n") + 1
        if keep < len(data):
            with naming(path):
                file.truncate(keep)
