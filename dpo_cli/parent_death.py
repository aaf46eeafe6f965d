"""End of a child process with its parent."""

from __future__ import annotations

import ctypes
import os
import signal

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def die_with(parent: int) -> None:
    """Let the kernel kill this process when its parent dies, or at once if it is dead already.

    Args:
        parent: process id of the parent, from before this process was started.
    """
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The kernel sends nothing for a parent that died before the call above. Another process has
    # then adopted this one.
    if os.getppid() != parent:
        os.kill(os.getpid(), signal.SIGKILL)
