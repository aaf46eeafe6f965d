"""Contention for the CPU, measured by comparing CPU time and wall time."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.formatting import format_percent

CONTENDED = 1.5
"""Ratio of wall time to CPU time of the main thread at which the CPU is contended: about
1 for a run alone on its cores, and 2 as the fair share beside one busy loop per core."""
STOLEN = 0.1
"""Smallest share of the CPU time taken by the host of a virtual machine that the message names."""

_STEAL = 7
"""Index of the stolen time in the first line of /proc/stat."""


def contention(seconds: float, cpu_seconds: float) -> float | None:
    """Return the ratio of wall time to CPU time; None if the CPU is not contended.

    The main thread computes its share of every operation, and waits for the threads that other
    processes keep from computing theirs.

    Args:
        seconds: wall time of the work.
        cpu_seconds: CPU time of the main thread; 0 if it is unknown, or a GPU did the work.
    """
    if not cpu_seconds or seconds < CONTENDED * cpu_seconds:
        return None
    return seconds / cpu_seconds


def contention_message(times: float, stolen: float) -> str:
    """Return the message about a contended CPU.

    Args:
        times: from `contention`.
        stolen: share of the CPU time that the host of this virtual machine took.
    """
    taken = format_percent(stolen, 0)
    by_host = f"; the host of this virtual machine takes {taken} of the CPU time"
    return (
        f"the CPU is busy with other processes: a step takes {times:.1f} times its CPU time"
        f"{by_host if stolen >= STOLEN else ''}"
    )


def contention_remedy(threads: int) -> str:
    """Return the remedy for a contended CPU."""
    if threads == 1:
        return (
            "Wait until the other processes end, or stop those that are yours. The result does not"
            " depend on them. A smaller data.max_seq_len or fewer pairs shorten the run."
        )
    return (
        "Set train.threads = 1, or stop the other processes: threads that wait for each other lose"
        " the most."
    )


class StolenTime:
    """Share of the CPU time that the host of a virtual machine has taken since the last reading."""

    def __init__(self, path: Path = Path("/proc/stat")) -> None:
        self._path = path
        self._before = self._read()

    def share(self) -> float:
        """Return the share since the last call; 0 where the system does not count it."""
        before, self._before = self._before, self._read()
        total = sum(self._before) - sum(before)
        if total <= 0 or len(self._before) <= _STEAL:
            return 0.0
        return max(0.0, (self._before[_STEAL] - before[_STEAL]) / total)

    def _read(self) -> list[int]:
        """Return the times since the boot: user, nice, system, idle, iowait, irq, softirq, steal.

        The times of guests, which come after these, are part of user and nice.
        """
        try:
            with self._path.open(encoding="ascii") as file:
                return [int(word) for word in file.readline().split()[1 : _STEAL + 2]]
        except (OSError, ValueError):
            return []
