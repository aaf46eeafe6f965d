"""Descriptions of how a process ended."""

from __future__ import annotations

import signal
import socket

from dpo_cli.run.events import RankEnded

_DEATHS = {
    "SIGKILL": "killed, often by the kernel for lack of memory: "
    "lower train.batch_size or data.max_seq_len",
    "SIGSEGV": "a crash in native code (segmentation fault)",
    "SIGABRT": "native code gave up (abort)",
    "SIGBUS": "a mapped file could not be read: truncated, or its disk is full or gone",
}


def signal_name(number: int) -> str:
    """Return the name of a signal; its number where this system has no such signal.

    A run that was trained on Linux may be shown on Windows, which has no SIGKILL.
    """
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def death(number: int) -> str:
    """Return the name of a signal that ended a process, with its usual cause."""
    name = signal_name(number)
    cause = _DEATHS.get(name) or (signal.strsignal(number) if name.startswith("SIG") else None)
    return f"{name} ({cause})" if cause else name


def exit_text(returncode: int) -> str:
    """Describe a return code, negative for a signal, as a predicate."""
    if returncode < 0:
        return f"died of {death(-returncode)}"
    return f"ended unexpectedly with exit code {returncode}"


def rank_ending(event: RankEnded) -> str:
    """Describe how a rank ended, with its host if that is another machine."""
    rank = f"rank {event.rank}"
    if event.host != socket.gethostname():
        rank += f" on {event.host}"
    if event.signal:
        return f"{rank} died of {death(event.signal)}"
    ending = f"{rank} ended with exit code {event.exit_code}"
    return f"{ending}: {event.message}" if event.message else ending
