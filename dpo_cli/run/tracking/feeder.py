"""Process that feeds the trackers of a run: `python -m dpo_cli.run.tracking.feeder RUN`.

It follows the event stream until its standard input is closed: the launcher closes it at the end,
and the kernel does if the launcher dies. Then the feeder sends the rest and ends. It imports no
torch. The state of the trackers is kept in `track.json` of the run.
"""

from __future__ import annotations

import select
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dpo_cli.errors import first_line
from dpo_cli.files import open_for_appending
from dpo_cli.machine import lock_file
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader
from dpo_cli.run.tracking.mlflow import MLflow
from dpo_cli.run.tracking.registry import requested_trackers
from dpo_cli.run.tracking.rows import Row, Rows
from dpo_cli.run.tracking.state import log_path, read_state, write_state
from dpo_cli.run.tracking.swanlab import SwanLab
from dpo_cli.run.tracking.tensorboard import TensorBoard
from dpo_cli.run.tracking.tracker import TrackedRun, Tracker
from dpo_cli.run.tracking.trackio import Trackio
from dpo_cli.run.tracking.wandb import Wandb

_POLL_SECONDS = 2.0
_EARLIER_SECONDS = 60.0
"""Time to wait for the feeder of an earlier start to end."""

_KINDS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": SwanLab,
    "trackio": Trackio,
    "mlflow": MLflow,
}


class Feeder:
    """Sends each tracker of a run the rows that it has not received yet.

    A tracker that fails is left out until the next start of the run.

    Args:
        run: the run whose events are read.
        profile: profile of the run.
        kinds: classes of the trackers by name; each is instantiated for its first row.
    """

    def __init__(
        self, run: RunDirectory, profile: Profile, kinds: Mapping[str, type[Tracker]]
    ) -> None:
        self._run = run
        self._tracked_run = TrackedRun.of(run, profile)
        self._sends_text = profile.track.send_text
        self._reader = EventReader(run.events_path)
        self._rows = Rows()
        self._kinds = dict(kinds)
        self._open: dict[str, Tracker] = {}
        self._states = read_state(run)
        for name in kinds:
            state = {"sent": -1, "resumes": 0, **self._states.get(name, {})}
            state.pop("failed", None)
            self._states[name] = state

    @property
    def have_all_failed(self) -> bool:
        """Return True if every tracker has failed."""
        return not self._kinds

    def feed(self, *, is_over: bool) -> None:
        """Send the rows of the new events.

        Args:
            is_over: no more events will follow.
        """
        for event in self._reader.read_new():
            self._rows.take(event)
        rows = self._without_texts(self._rows.take_closed(is_over=is_over))
        for name in list(self._kinds):
            self._try(name, partial(self._send, name, rows))
        if rows:
            write_state(self._run, self._states)

    def finish(self) -> None:
        """Let every tracker send the rest."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        write_state(self._run, self._states)

    def _send(self, name: str, rows: Sequence[Row]) -> None:
        state, tracker = self._states[name], self._open.get(name)
        resumed_after = self._rows.resumed_after[state["resumes"] :]
        state["resumes"] = len(self._rows.resumed_after)
        if resumed_after and self._kinds[name].can_go_back:
            state["sent"] = min(state["sent"], *resumed_after)
            if tracker is not None:
                tracker.go_back(state["sent"])
        rows = [row for row in rows if row.optimizer_step > state["sent"]]
        if not rows:
            return
        if tracker is None:
            sent_before = state["sent"]
            if (folder := self._run.path / name).is_symlink():
                raise RuntimeError(f"{folder} is a link, and dpo does not write through links")
            tracker = self._open[name] = self._kinds[name](self._tracked_run, state)
            if state["sent"] != sent_before:  # the service has fewer steps than it was sent
                rows = self._reread(state["sent"], rows[-1].optimizer_step)
        for row in rows:
            tracker.log(row)
            state["sent"] = row.optimizer_step
        tracker.flush()

    def _reread(self, after: int, last: int) -> list[Row]:
        """Make the rows after one step up to another again, from the beginning of the stream."""
        rows = Rows()
        for event in EventReader(self._run.events_path).read_new():
            rows.take(event)
        closed = self._without_texts(rows.take_closed(is_over=True))
        return [row for row in closed if after < row.optimizer_step <= last]

    def _without_texts(self, rows: list[Row]) -> list[Row]:
        if not self._sends_text:
            for row in rows:
                row.samples = ()
        return rows

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # some libraries raise SystemExit
            traceback.print_exc()
            self._states[name]["failed"] = first_line(error)
            del self._kinds[name]
            self._open.pop(name, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Feed the trackers of a run; return 0, or 1 if all of them failed."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    run = RunDirectory(Path(path))
    log = open_for_appending(log_path(run))
    if not _lock_alone(log):
        print("the feeder of an earlier start of this run is still running", file=sys.stderr)
        return 1
    profile = load_profile(run.profile_path).profile
    feeder = Feeder(run, profile, {name: _KINDS[name] for name in requested_trackers(profile)})
    is_over = False
    while not (is_over or feeder.have_all_failed):
        is_over = bool(select.select([sys.stdin], [], [], _POLL_SECONDS)[0])
        feeder.feed(is_over=is_over)
    feeder.finish()
    return int(feeder.have_all_failed)


def _lock_alone(descriptor: int) -> bool:
    """Lock the log; return False if the feeder of an earlier start still holds the lock."""
    deadline = time.monotonic() + _EARLIER_SECONDS
    while True:
        try:
            lock_file(descriptor)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        else:
            return True


if __name__ == "__main__":
    sys.exit(main())
