"""Launcher's side of the feeder process: start it, report its end, wait for it at the end.

Nothing that happens to the feeder affects the run.
"""

from __future__ import annotations

import contextlib
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpo_cli.files import open_for_appending
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.run.exit_reason import signal_name
from dpo_cli.run.processes import module_argv, start_child
from dpo_cli.run.tracking.registry import TITLES
from dpo_cli.run.tracking.state import log_path, read_state

_FINISHING_SECONDS = 30.0
_SILENT_SECONDS = 1.0
"""A feeder that ends within this time is not announced."""
_POLL_SECONDS = 0.05
_UNAFFECTED = "training does not depend on it"


def feeder_argv(run: RunDirectory) -> list[str]:
    """Return the command line of the feeder."""
    return module_argv("dpo_cli.run.tracking.feeder", str(run.path))


class TrackerSupervisor:
    """Feeder process of a run, for one start of the run.

    The methods yield alerts for the event stream.

    Args:
        run: the run whose events the feeder reads.
        names: names of the trackers; without any, no process is started.
    """

    def __init__(self, run: RunDirectory, names: Sequence[str]) -> None:
        self._run = run
        self._names = names
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Iterator[Alert]:
        """Start the feeder."""
        if not self._names:
            return
        try:
            with open(open_for_appending(log_path(self._run)), "ab") as log:
                self._process = start_child(
                    feeder_argv(self._run), stdin=subprocess.PIPE, output=log.fileno()
                )
        except OSError as error:
            yield self._lost(f"could not be started: {error.strerror}")

    def look(self) -> Iterator[Alert]:
        """Yield alerts once if the feeder has ended."""
        if self._process is not None and self._process.poll() is not None:
            yield from self._end(self._process)

    def finish(self, may_wait: Callable[[], bool]) -> Iterator[Alert]:
        """Wait until the feeder has sent everything, but not longer than `_FINISHING_SECONDS`.

        Args:
            may_wait: returns False as soon as the user does not want to wait.
        """
        process = self._process
        if process is not None:
            _end_input(process)
            yield from self._wait(process, may_wait)
            if process.poll() is None:
                yield self._lost("has not finished; it continues in the background")
            else:
                yield from self._end(process)
        for name, state in self._states():
            if state.get("upload"):
                yield Alert(
                    code=f"{name}-offline",
                    message=f"{TITLES[name]} is offline ({state['offline']}); its metrics are kept"
                    " in the run directory",
                    remedy=f"Upload them: {state['upload']}",
                )

    def drop(self) -> None:
        """Kill the feeder, because the run is removed."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _end_input(self._process)
        self._process, self._names = None, ()

    def _wait(
        self, process: subprocess.Popen[bytes], may_wait: Callable[[], bool]
    ) -> Iterator[Alert]:
        began, is_announced = time.monotonic(), False
        while process.poll() is None and may_wait():
            seconds = time.monotonic() - began
            if seconds > _FINISHING_SECONDS:
                return
            if seconds > _SILENT_SECONDS and not is_announced:
                is_announced = True
                yield Alert(
                    code="trackers-finishing",
                    message=f"{self._titles} may take up to {_FINISHING_SECONDS:.0f} s to send the"
                    " last metrics; press Ctrl-C to leave now",
                )
            time.sleep(_POLL_SECONDS)

    def _end(self, process: subprocess.Popen[bytes]) -> Iterator[Alert]:
        """Yield an alert for each failed tracker, or else for the exit status of the feeder."""
        self._process = None
        _end_input(process)
        failures = [
            Alert(
                code=f"{name}-failed",
                message=f"{TITLES[name]} failed: {state['failed']}; {_UNAFFECTED}",
                remedy=self._remedy,
            )
            for name, state in self._states()
            if state.get("failed")
        ]
        yield from failures
        if process.returncode < 0:
            yield self._lost(f"died of {signal_name(-process.returncode)}")
        elif process.returncode and not failures:
            yield self._lost(f"ended with exit code {process.returncode}")

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        states = read_state(self._run)
        return ((name, states[name]) for name in self._names if name in states)

    def _lost(self, how: str) -> Alert:
        message = f"the process that feeds {self._titles} {how}; {_UNAFFECTED}"
        return Alert(code="trackers-lost", message=message, remedy=self._remedy)

    @property
    def _titles(self) -> str:
        return " and ".join(TITLES[name] for name in self._names)

    @property
    def _remedy(self) -> str:
        return f"See its output in {log_path(self._run)}"


def _end_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
