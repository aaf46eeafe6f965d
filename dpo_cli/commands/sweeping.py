"""What `dpo sweep` does in the background or in front: take the points of a grid to their ends."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich.console import Console

from dpo_cli.commands.ranks import ranks_argv, torchrun_call
from dpo_cli.commands.resume import planned_profile
from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.profile.grid import Point
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import differences
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.gpu_workers import on_gpus, visible_gpus
from dpo_cli.run.launch import Launcher, worker_argv
from dpo_cli.run.processes import Worker, start_worker
from dpo_cli.run.signals import SignalRelay
from dpo_cli.run.sweep import SweepDirectory
from dpo_cli.run.tracking.registry import requested_trackers
from dpo_cli.ui.terminal.plain import PlainReport

_ASKED = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


def refuse_other_runs(points: Sequence[Point], runs: Mapping[str, RunDirectory]) -> None:
    """Hold runs that are there to be what the grid says.

    Raises:
        UsageError: one has another profile.
    """
    for point in points:
        if (run := runs.get(point.letter)) is None:
            continue
        for its in (load_profile(run.profile_path).profile, planned_profile(run)):
            if its is not None and (changes := differences(point.profile, its)):
                raise UsageError(
                    f"{run.designation} is not what point {point.letter} of this sweep is to be",
                    "begin another sweep (--name NAME), or remove that run",
                    list(map(str, changes)),
                )


@dataclass(frozen=True)
class Sweeper:
    """Trains what is left of a sweep.

    Attributes:
        sweep: whose lock this process holds.
        points: of its grid.
        console: makes one to tell it on, line by line, in the process that tells.
        quiet: tell warnings and failures only.
    """

    sweep: SweepDirectory
    points: Sequence[Point]
    console: Callable[[], Console]
    quiet: bool

    def work(self, lanes: int) -> ExitCode:
        """Train what is not completed, one after another, or one on each of several cards.

        A run that fails is left where it is, and the others go on.

        Returns:
            DONE once all have had their turn; INTERRUPTED or TERMINATED where one was stopped, or
            this process was asked to stop: what trained was saved.

        Raises:
            DpoError: the disk is full.
        """
        runs = self.sweep.runs()
        left = [
            p.letter for p in self.points if p.letter not in runs or not runs[p.letter].is_completed
        ]
        if lanes == 1:
            return self._train_all(left)

        def lane(letters: Iterator[str]) -> ExitCode:
            try:
                return self._train_all(letters)
            except DpoError as error:
                self._tell(error.message, error)
                return error.exit_code

        return on_gpus(visible_gpus()[:lanes], "".join(left), lane)

    def _train_all(self, letters: Iterable[str]) -> ExitCode:
        points = {point.letter: point for point in self.points}
        with SignalRelay() as signals:
            for letter in letters:
                if signals.sent.stop_code:
                    break
                try:
                    code = self._train(points[letter], signals)
                except DpoError as error:
                    if error.exit_code in _ASKED:
                        return error.exit_code
                    if error.exit_code is ExitCode.NO_SPACE:
                        raise
                    self._tell(f"run {letter}: {error.message}", error)
                else:
                    if code in _ASKED:
                        return code
        return signals.sent.stop_code or ExitCode.DONE

    def _train(self, point: Point, signals: SignalRelay) -> ExitCode:
        """One point to its end, from the beginning or from where it stopped."""
        run = self.sweep.runs().get(point.letter)
        if run is None:
            run = self.sweep.create_run(point.letter, point.profile)
        if not self.quiet:
            last = self.points[-1].letter
            self._print(f"{self.sweep.name}, run {point.letter} of A-{last}: {point.text}")
        report = PlainReport(self.console(), run.designation, run.path, quiet=self.quiet)
        ranks = torchrun_call(point.profile, None, ())
        argv = ranks_argv(run, ranks, worker_argv(run))
        start = _fork if ranks is None else start_worker
        with run.locked() as lock:
            launcher = Launcher(
                *(run, lock, argv),
                observe=report,
                trackers=requested_trackers(point.profile),
                start=start,
                signals=signals,
            )
            return launcher.run()

    def _tell(self, message: str, error: DpoError) -> None:
        self._print(f"error: {message}")
        for detail in error.details:
            self._print(f"  {detail}")
        if error.remedy:
            self._print(f"help: {error.remedy}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe does not concern the runs
            self.console().print(line)


def _fork(argv: Sequence[str], log: int, lock: int) -> Worker:
    """A worker that need not import anything, once the first has made this process do so."""
    from dpo_cli.training.fork import fork_worker

    return fork_worker(argv, log, lock)
