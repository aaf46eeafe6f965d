"""The process beside a run that feeds its trackers: `python -m dpo_cli.run.tracking.feeder RUN`.

It follows the event stream until its standard input ends, which it does when the launcher has
nothing more to tell, or is dead; then it sends what is left, and ends. It imports no torch. What it
knows of its trackers, and they of themselves, is in the run's `track.json`.
"""

from __future__ import annotations

import fcntl
import select
import sys
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from dpo_cli.files import open_for_appending
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader
from dpo_cli.run.tracking.registry import requested_trackers
from dpo_cli.run.tracking.rows import Row, Rows
from dpo_cli.run.tracking.state import log_path, read_state, write_state
from dpo_cli.run.tracking.swanlab import SwanLab
from dpo_cli.run.tracking.tensorboard import TensorBoard
from dpo_cli.run.tracking.tracker import TrackedRun, Tracker
from dpo_cli.run.tracking.wandb import Wandb

_POLL_SECONDS = 2.0
_EARLIER_SECONDS = 60.0

_KINDS: Mapping[str, type[Tracker]] = {
    "tensorboard": TensorBoard,
    "wandb": Wandb,
    "swanlab": SwanLab,
}


class Feeder:
    """Gives each tracker of a run the rows that it has not had yet.

    A tracker that fails is left out from then on; the next start of the run tries it again.

    Args:
        run: whose stream is read.
        profile: of the run.
        kinds: of the trackers that get the rows; each is opened for its first one.
    """

    def __init__(
        self, run: RunDirectory, profile: Profile, kinds: Mapping[str, type[Tracker]]
    ) -> None:
        self._run = run
        self._subject = TrackedRun.of(run, profile)
        self._sends_text = profile.track.send_text
        self._reader = EventReader(run.events_path)
        self._rows = Rows()
        self._kinds = dict(kinds)
        self._open: dict[str, Tracker] = {}
        self._states = read_state(run)
        for name in kinds:
            its = self._states[name] = {"sent": -1, "resumes": 0, **self._states.get(name, {})}
            its.pop("failed", None)

    @property
    def is_alone(self) -> bool:
        """Whether every tracker has failed."""
        return not self._kinds

    def feed(self, *, is_over: bool) -> None:
        """Send what the stream has had to tell since the last time.

        Args:
            is_over: it will tell nothing more.
        """
        for event in self._reader.read_new():
            self._rows.take(event)
        rows = self._without_texts(self._rows.take_closed(is_over=is_over))
        for name in list(self._kinds):
            self._try(name, partial(self._send, name, rows))
        if rows:
            write_state(self._run, self._states)

    def finish(self) -> None:
        """Let every tracker send what is left."""
        for name, tracker in list(self._open.items()):
            self._try(name, tracker.finish)
        write_state(self._run, self._states)

    def _send(self, name: str, rows: Sequence[Row]) -> None:
        its, tracker = self._states[name], self._open.get(name)
        resumed_behind = self._rows.resumed_behind[its["resumes"] :]
        its["resumes"] = len(self._rows.resumed_behind)
        if resumed_behind and self._kinds[name].can_go_back:
            its["sent"] = min(its["sent"], *resumed_behind)
            if tracker is not None:
                tracker.go_back(its["sent"])
        rows = [row for row in rows if row.optimizer_step > its["sent"]]
        if not rows:
            return
        if tracker is None:
            had = its["sent"]
            tracker = self._open[name] = self._kinds[name](self._subject, its)
            if its["sent"] != had:
                rows = self._reread(its["sent"], rows[-1].optimizer_step)
        for row in rows:
            tracker.log(row)
            its["sent"] = row.optimizer_step
        tracker.flush()

    def _reread(self, behind: int, last: int) -> list[Row]:
        """The rows behind a step up to another, from the beginning of the stream."""
        rows = Rows()
        for event in EventReader(self._run.events_path).read_new():
            rows.take(event)
        closed = self._without_texts(rows.take_closed(is_over=True))
        return [row for row in closed if behind < row.optimizer_step <= last]

    def _without_texts(self, rows: list[Row]) -> list[Row]:
        if not self._sends_text:
            for row in rows:
                row.samples = ()
        return rows

    def _try(self, name: str, act: Callable[[], None]) -> None:
        try:
            act()
        except (Exception, SystemExit) as error:  # some libraries leave by SystemExit
            traceback.print_exc()
            reason = str(error).strip().partition("\n")[0]
            self._states[name]["failed"] = reason or type(error).__name__
            del self._kinds[name]
            self._open.pop(name, None)


def main(arguments: Sequence[str] | None = None) -> int:
    """Feed the trackers of a run; 0, or 1 if all of them failed."""
    (path,) = sys.argv[1:] if arguments is None else arguments
    run = RunDirectory(Path(path))
    log = open_for_appending(log_path(run))
    if not _has_it_alone(log):
        print("what fed the trackers of the run's last start still runs", file=sys.stderr)
        return 1
    profile = load_profile(run.profile_path).profile
    feeder = Feeder(run, profile, {name: _KINDS[name] for name in requested_trackers(profile)})
    is_over = False
    while not (is_over or feeder.is_alone):
        is_over = bool(select.select([sys.stdin], [], [], _POLL_SECONDS)[0])
        feeder.feed(is_over=is_over)
    feeder.finish()
    return int(feeder.is_alone)


def _has_it_alone(descriptor: int) -> bool:
    """Whether no other such process feeds this run's trackers, after waiting for one that ends."""
    deadline = time.monotonic() + _EARLIER_SECONDS
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.2)
        else:
            return True


if __name__ == "__main__":
    sys.exit(main())
