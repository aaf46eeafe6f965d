"""Standard streams: descriptors 0 to 2 of a process are always open, and errors name them."""

from __future__ import annotations

import os
import sys
from typing import IO

_NAMES = {1: "standard output", 2: "standard error"}
_OTHER = "the output"


def open_standard_streams() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed (`dpo runs >&-`).

    Otherwise the next file that this process opens, for example the lock of a run, gets the free
    descriptor. A child that redirects its standard streams would close that file, and this process
    would print into it.
    """
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(descriptor)
        except OSError:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:  # another thread has opened a file meanwhile
                os.dup2(opened, descriptor)
                os.close(opened)
            os.set_inheritable(descriptor, True)
            if getattr(sys, name) is None:  # the descriptor was closed when Python started
                stream = open(descriptor, mode, encoding="utf-8", closefd=False)  # noqa: SIM115
                setattr(sys, name, stream)


def stream_name(stream: IO[str]) -> str:
    """Return the name of an output stream for messages, for example "standard output"."""
    try:  # by the descriptor, because rich and notebooks replace sys.stdout by objects of their own
        return _NAMES.get(stream.fileno(), _OTHER)
    except (OSError, ValueError, AttributeError):
        return _OTHER
