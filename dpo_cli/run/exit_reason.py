"""How a process came to its end, in words to act on."""

from __future__ import annotations

import signal
import socket

from dpo_cli.run.events import RankEnded

_DEATHS = {
    signal.SIGKILL: "killed, often by the kernel for lack of memory: "
    "lower train.batch_size or data.max_seq_len",
    signal.SIGSEGV: "a crash in native code (segmentation fault)",
    signal.SIGABRT: "native code gave up (abort)",
    signal.SIGBUS: "a mapped file could not be read: truncated, or its disk is full or gone",
}


def death(number: int) -> str:
    """What a signal that ended a process says."""
    name = signal.Signals(number)
    return f"{name.name} ({_DEATHS.get(name) or signal.strsignal(name)})"


def exit_text(returncode: int) -> str:
    """Describe a return code, negative for a signal, as a predicate."""
    if returncode < 0:
        return f"died of {death(-returncode)}"
    return f"ended unexpectedly with exit code {returncode}"


def rank_ending(event: RankEnded) -> str:
    """Which rank was lost, where if not here, and how."""
    who = f"rank {event.rank}"
    if event.host != socket.gethostname():
        who += f" on {event.host}"
    if event.signal:
        return f"{who} died of {death(event.signal)}"
    ending = f"{who} ended with exit code {event.exit_code}"
    return f"{ending}: {event.message}" if event.message else ending
