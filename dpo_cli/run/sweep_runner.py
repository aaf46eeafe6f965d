"""Training of all points of a sweep, one after another or one per GPU."""

from __future__ import annotations

import contextlib
import dataclasses
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.profile.grid import Point
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.load import load_profile
from dpo_cli.profile.resolved import differences
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.gpu_workers import on_gpus, visible_gpus
from dpo_cli.run.launch import Observer
from dpo_cli.run.placement import recognize
from dpo_cli.run.processes import Starter, start_worker
from dpo_cli.run.signals import SignalRelay
from dpo_cli.run.start import pin_inputs, planned_profile, sweep_run
from dpo_cli.run.sweep import SweepDirectory
from dpo_cli.run.torchrun import processes_here, usable_gpus
from dpo_cli.run.tracking.registry import require_trackers

_STOPPED = (ExitCode.INTERRUPTED, ExitCode.TERMINATED)


def count_parallel_runs(points: Sequence[Point]) -> int:
    """Return how many runs can train at once: one per GPU, else one.

    Raises:
        UsageError: torchrun or Slurm started this process, an input or a tracker is missing, or a
            run would need several machines.
    """
    if place := recognize(os.environ):
        raise UsageError(
            f"{place.starter} has started {place.world_size} processes, and each would sweep",
            "Start one process. launch.nproc_per_node sets how many processes train a run.",
        )
    counts = []
    for point in points:
        own = point.profile.launch
        if own.nnodes > 1:
            raise UsageError(
                f"launch.nnodes = {own.nnodes}: a sweep trains on one machine",
                "Leave launch.nnodes out.",
            )
        check_inputs(point.loaded)
        require_trackers(point.profile)
        is_alone = processes_here(point.profile) == 1
        names_gpu = point.profile.train.device.startswith("cuda:")
        counts.append(usable_gpus(point.profile) if is_alone and not names_gpu else 1)
    return min(counts)


def pin_point(point: Point, root: Path) -> Point:
    """Return the point with names of weights that keep their meaning; see `pin_inputs`."""
    profile = pin_inputs(point.profile, root)
    return dataclasses.replace(point, loaded=dataclasses.replace(point.loaded, profile=profile))


def refuse_other_runs(points: Sequence[Point], runs: Mapping[str, RunDirectory]) -> None:
    """Refuse to continue runs whose profile is not the one that the grid gives them.

    Raises:
        UsageError: a run has another profile.
    """
    for point in points:
        if (run := runs.get(point.letter)) is None:
            continue
        for profile in (load_profile(run.profile_path).profile, planned_profile(run)):
            if profile is not None and (changes := differences(point.profile, profile)):
                raise UsageError(
                    f"{run.designation} does not match point {point.letter} of this sweep",
                    "Start another sweep with --name NAME, or remove that run.",
                    list(map(str, changes)),
                )


@dataclass(frozen=True)
class SweepRunner:
    """Trains the runs of a sweep that are not completed.

    Attributes:
        sweep: sweep directory; this process holds its lock.
        points: points of the grid.
        observe: returns the observer of a run. Called in the process that supervises the run.
        print_line: prints a line of the sweep's own, in the same process.
        fork: starts a worker as a copy of this process, which has imported torch already.
    """

    sweep: SweepDirectory
    points: Sequence[Point]
    observe: Callable[[RunDirectory], Observer]
    print_line: Callable[[str], None]
    fork: Starter

    def run(self, parallel: int, *, announce: bool) -> ExitCode:
        """Train what is left. A run that fails stays as it is, and the others continue.

        Args:
            parallel: runs to train at once, each on a GPU of its own.
            announce: print a line before each run.

        Returns:
            DONE after every run had its turn; INTERRUPTED or TERMINATED if a run or this process
            was stopped. In either case everything is saved.

        Raises:
            DpoError: the disk is full.
        """
        runs = self.sweep.runs()
        left = [
            p.letter for p in self.points if p.letter not in runs or not runs[p.letter].is_completed
        ]
        if parallel == 1:
            return self._train_all(left, announce)

        def on_one_gpu(letters: Iterator[str]) -> ExitCode:
            try:
                return self._train_all(letters, announce)
            except DpoError as error:
                self._print_error(error.message, error)
                return error.exit_code

        return on_gpus(visible_gpus()[:parallel], "".join(left), on_one_gpu)

    def _train_all(self, letters: Iterable[str], announce: bool) -> ExitCode:
        points = {point.letter: point for point in self.points}
        # One relay for all runs: a signal between two of them must end the sweep, too.
        with SignalRelay() as signals:
            for letter in letters:
                if signals.sent.stop_code:
                    break
                try:
                    code = self._train(points[letter], signals, announce)
                except DpoError as error:
                    if error.exit_code in _STOPPED:
                        return error.exit_code
                    if error.exit_code is ExitCode.NO_SPACE:
                        raise
                    self._print_error(f"run {letter}: {error.message}", error)
                else:
                    if code in _STOPPED:
                        return code
        return signals.sent.stop_code or ExitCode.DONE

    def _train(self, point: Point, signals: SignalRelay, announce: bool) -> ExitCode:
        """Train one point to its end, from step 0 or from its newest checkpoint."""
        run = self.sweep.runs().get(point.letter)
        if run is None:
            run = self.sweep.create_run(point.letter, point.profile)
        if announce:
            last = self.points[-1].letter
            self._print(f"{self.sweep.name}, run {point.letter} of A-{last}: {point.text}")
        with sweep_run(run, point.profile) as (start, is_single):
            starter = self.fork if is_single else start_worker
            return start.launch(self.observe(run), starter=starter, signals=signals)

    def _print_error(self, message: str, error: DpoError) -> None:
        self._print(f"error: {message}")
        for detail in error.details:
            self._print(f"  {detail}")
        if error.remedy:
            self._print(f"help: {error.remedy}")

    def _print(self, line: str) -> None:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe must not end the runs
            self.print_line(line)
