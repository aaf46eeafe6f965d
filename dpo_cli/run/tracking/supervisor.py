"""The trackers' process as the launcher has it: started, missed where it dies, waited for a while.

Nothing that happens to it concerns the run.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from dpo_cli.files import open_for_appending
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.run.processes import module_argv, start_child
from dpo_cli.run.tracking.registry import TITLES
from dpo_cli.run.tracking.state import log_path, read_state

_FINISHING_SECONDS = 30.0
_SILENT_SECONDS = 1.0
"""A process that ends within them needs no line."""
_POLL_SECONDS = 0.05
_GO_ON = "training does not depend on it"


def feeder_argv(run: RunDirectory) -> list[str]:
    """The command line of the trackers' process."""
    return module_argv("dpo_cli.run.tracking.feeder", str(run.path))


class TrackerSupervisor:
    """The process that feeds some trackers of a run, for one start of the run.

    Each method gives what there is to say.

    Args:
        run: whose stream it reads.
        names: of the trackers; without any there is no process.
    """

    def __init__(self, run: RunDirectory, names: Sequence[str]) -> None:
        self._run = run
        self._names = names
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> Iterator[Alert]:
        """Start it."""
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
        """Look whether it lives; once it does not, it is missed once."""
        if self._process is not None and self._process.poll() is not None:
            yield from self._end(self._process)

    def finish(self, may_wait: Callable[[], bool]) -> Iterator[Alert]:
        """Let it send what is left; leave it after a while, or as soon as somebody is in a hurry.

        Args:
            may_wait: whether nobody is.
        """
        process = self._process
        if process is not None:
            _end_input(process)
            yield from self._wait(process, may_wait)
            if process.poll() is None:
                yield self._lost("has not finished, and is left to itself")
            else:
                yield from self._end(process)
        for name, its in self._states():
            if its.get("upload"):
                message = f"{TITLES[name]}: {its['offline']}, so its figures were kept in the run"
                yield Alert(code=f"{name}-offline", message=message, remedy=its["upload"])

    def drop(self) -> None:
        """End it at once: nothing of the run is to stay."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            _end_input(self._process)
        self._process, self._names = None, ()

    def _wait(
        self, process: subprocess.Popen[bytes], may_wait: Callable[[], bool]
    ) -> Iterator[Alert]:
        began, is_told = time.monotonic(), False
        while process.poll() is None and may_wait():
            seconds = time.monotonic() - began
            if seconds > _FINISHING_SECONDS:
                return
            if seconds > _SILENT_SECONDS and not is_told:
                is_told = True
                yield Alert(
                    code="trackers-finishing",
                    message=f"{self._titles} may take up to {_FINISHING_SECONDS:.0f} s to send the"
                    " last figures; Ctrl-C leaves them",
                )
            time.sleep(_POLL_SECONDS)

    def _end(self, process: subprocess.Popen[bytes]) -> Iterator[Alert]:
        """It has ended: which trackers had failed, or else how it did."""
        self._process = None
        _end_input(process)
        failures = [
            Alert(
                code=f"{name}-failed",
                message=f"{TITLES[name]} failed: {its['failed']}; {_GO_ON}",
                remedy=self._remedy,
            )
            for name, its in self._states()
            if its.get("failed")
        ]
        yield from failures
        if process.returncode < 0:
            yield self._lost(f"died of {signal.Signals(-process.returncode).name}")
        elif process.returncode and not failures:
            yield self._lost(f"ended with exit code {process.returncode}")

    def _states(self) -> Iterator[tuple[str, dict[str, Any]]]:
        states = read_state(self._run)
        return ((name, states[name]) for name in self._names if name in states)

    def _lost(self, how: str) -> Alert:
        message = f"what feeds {self._titles} {how}; {_GO_ON}"
        return Alert(code="trackers-lost", message=message, remedy=self._remedy)

    @property
    def _titles(self) -> str:
        return " and ".join(TITLES[name] for name in self._names)

    @property
    def _remedy(self) -> str:
        return f"what it printed is in {log_path(self._run)}"


def _end_input(process: subprocess.Popen[bytes]) -> None:
    assert process.stdin is not None
    with contextlib.suppress(OSError):
        process.stdin.close()
