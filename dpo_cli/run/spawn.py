"""Launcher in a process of its own, for a script or notebook that must not be forked.

The command line splits off its launcher with `os.fork` (`dpo_cli.run.background`). A notebook
kernel has many threads and may have loaded torch or CUDA, which do not survive a fork. Therefore a
new Python process runs the launcher here. It has a session of its own: training continues when the
script or the kernel ends.
"""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.files import open_for_appending
from dpo_cli.run.background import outcome_file, read_outcome, write_outcome
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.run.events import Alert
from dpo_cli.run.launch import Launcher
from dpo_cli.run.locked_directory import sign_lock
from dpo_cli.run.processes import Worker, module_argv, start_child, start_worker
from dpo_cli.run.start import Start, Undo

_SIGNALS = {signal.SIGINT, signal.SIGTERM}


class SpawnedLauncher:
    """Launcher that runs in a child process.

    Args:
        start: the prepared run. The child inherits the lock, so that the caller may close it.
    """

    def __init__(self, start: Start) -> None:
        self._run = start.run
        self._outcome = outcome_file()
        plan = {
            "run": str(start.run.path),
            "lock": start.lock,
            "outcome": self._outcome,
            "argv": list(start.argv),
            "alerts": [dataclasses.asdict(alert) for alert in start.alerts],
            "trackers": list(start.trackers),
            "undo": dataclasses.asdict(start.undo),
        }
        with explain_disk_errors(start.run.path):
            log = open_for_appending(start.run.launcher_log_path)
        # The child inherits the mask: a signal that arrives while it imports waits until the
        # relay to the worker is in place.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)
        try:
            self._process = start_child(
                module_argv(__name__, json.dumps(plan, default=str)),
                output=log,
                pass_fds=(start.lock, self._outcome),
            )
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            os.close(log)

    @property
    def pid(self) -> int:
        """Process id of the launcher."""
        return self._process.pid

    def has_ended(self) -> bool:
        """Return True if the launcher has ended."""
        return self._process.poll() is not None

    def send_signal(self, number: int) -> None:
        """Send a signal; the launcher relays it to the worker."""
        self._process.send_signal(number)

    def result(self) -> ExitCode:
        """Wait for the end and return its code; see `Launcher.run`.

        Raises:
            DpoError: the run failed, or the launcher was killed.
        """
        return read_outcome(self._outcome, self._process.wait(), self._run)

    def __del__(self) -> None:
        """Close the memory file."""
        os.close(self._outcome)


def main() -> int:
    """Run the launcher that the arguments describe and leave its error in the memory file."""
    plan = json.loads(sys.argv[1])
    lock, outcome = plan["lock"], plan["outcome"]
    # The worker may hold the lock longer than this process lives, but not the outcome.
    os.set_inheritable(outcome, False)
    sign_lock(lock)
    undo = plan["undo"]
    launcher = Launcher(
        RunDirectory(Path(plan["run"])),
        lock,
        plan["argv"],
        observe=lambda event: None,
        alerts=[Alert(**alert) for alert in plan["alerts"]],
        trackers=plan["trackers"],
        undo=Undo(**{**undo, "run": Path(undo["run"])}),
        start=_start_worker,
    )
    try:
        return launcher.run()
    except DpoError as error:
        write_outcome(outcome, error)
        return error.exit_code


def _start_worker(argv: Sequence[str], log: int, lock: int) -> Worker:
    """Start the worker after signals are unblocked; the worker would inherit the mask.

    The relay is installed by now and keeps signals until the worker is attached.
    """
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    return start_worker(argv, log, lock)


if __name__ == "__main__":
    sys.exit(main())
