"""End of a child process with its parent."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_POLL_SECONDS = 1.0


def die_with(parent: int) -> None:
    """End this process when its parent dies, or at once if it is dead already.

    Linux does it itself. Elsewhere a thread compares the parent's process id once a second, so that
    this process may live that much longer.

    Args:
        parent: process id of the parent, from before this process was started.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    else:
        threading.Thread(target=_watch, args=(parent,), daemon=True).start()
    # The kernel sends nothing for a parent that died before the call above.
    _end_orphan(parent)


def _watch(parent: int) -> None:
    while True:
        _end_orphan(parent)
        time.sleep(_POLL_SECONDS)


def _end_orphan(parent: int) -> None:
    if os.getppid() != parent:  # another process has adopted this one
        os.kill(os.getpid(), signal.SIGKILL)
