"""`dpo sweep`: train one run for each combination of some settings, and find the best."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from dpo_cli.commands.compare import print_comparison
from dpo_cli.commands.compared_runs import compared_run
from dpo_cli.commands.console import print_json
from dpo_cli.commands.options import (
    DetachOption,
    PlainOption,
    ProfileArgument,
    QuietOption,
    RunsDirOption,
    SetOption,
)
from dpo_cli.commands.training_view import plain_report, work_behind_panel
from dpo_cli.errors import ExitCode, UsageError
from dpo_cli.machine import require_processes
from dpo_cli.profile.grid import Point, load_points, parse_grid
from dpo_cli.profile.resolved import to_tables
from dpo_cli.run.directory import RunDirectory, runs_root
from dpo_cli.run.launch import Observer, detach
from dpo_cli.run.processes import Worker, start_worker
from dpo_cli.run.sweep import SweepDirectory
from dpo_cli.run.sweep_runner import (
    SweepRunner,
    count_parallel_runs,
    pin_point,
    refuse_other_runs,
)
from dpo_cli.run.thinning import ThinnedHistory
from dpo_cli.shell import dpo_command
from dpo_cli.ui.comparison import as_json, best
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.panel import has_terminal
from dpo_cli.ui.terminal.sweep import (
    SweepPanel,
    best_lines,
    completed,
    failure_lines,
    plan_as_json,
    plan_lines,
    point_statuses,
)


def sweep(
    profile: ProfileArgument,
    grid: Annotated[
        list[str],
        typer.Option(
            "--grid",
            metavar="KEY=[VALUE,...]",
            help="Try these values of a profile key, for example --grid 'dpo.beta=[0.1,2]'. "
            "Repeat the option to train every combination.",
            show_default=False,
        ),
    ],
    settings: SetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            help="Name the sweep. Default: the profile's name.",
            show_default=False,
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan and start nothing.")
    ] = False,
    json: Annotated[
        bool, typer.Option("--json", help="Print JSON at the end, and nothing before it.")
    ] = False,
    runs_dir: RunsDirOption = None,
    plain: PlainOption = False,
    quiet: QuietOption = False,
    detach: DetachOption = False,
) -> None:
    """Train a profile with every combination of some settings, and compare the runs.

    The runs share the encoded pairs and the reference's log-probs. Ctrl-C saves and stops. After a
    stop or a crash, repeat the same command: completed runs stay, stopped runs are resumed with
    identical results. The best run on the held-out pairs is named; a note says if there are too few
    pairs to distinguish it from others.

    Example: `dpo sweep my.toml --grid 'dpo.beta=[0.1,2]' --grid 'train.learning_rate=[1e-6,1e-5]'`
    """
    if json and detach:
        raise UsageError(
            "--detach returns before there is anything to print",
            "Repeat the command with --json when all runs are completed.",
        )
    values, root = parse_grid(grid), runs_root(runs_dir)
    points = load_points(profile, settings or (), values)
    parallel = count_parallel_runs(points)
    points = [pin_point(point, root) for point in points]
    directory = SweepDirectory.of(root, name or points[0].loaded.name)
    directory.require_same(values, points[0].profile)
    refuse_other_runs(points, directory.runs())
    statuses = point_statuses(points, directory.runs())
    left = sum(not status.is_completed for status in statuses)
    parallel = max(1, min(parallel, left))
    if not json:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe must not end the runs
            for part in plan_lines(directory.name, statuses, parallel):
                line_console().print(part)
    elif dry_run:
        print_json({"sweep": directory.name, "points": plan_as_json(statuses)})
    if dry_run:
        return
    if left:
        require_processes()
        command = _command(profile, grid, settings or (), name, runs_dir)
        directory.make()
        with directory.locked() as lock:
            directory.require_same(values, points[0].profile)
            directory.begin(values, points[0].profile)
            view = _SweepView(directory, points, plain=plain, quiet=quiet, json=json)
            view.run(lock, parallel, command, is_detached=detach)
    _print_results(directory, points, json=json)


class _SweepView:
    """Lines or panel of a sweep while it trains."""

    def __init__(
        self,
        directory: SweepDirectory,
        points: Sequence[Point],
        *,
        plain: bool,
        quiet: bool,
        json: bool,
    ) -> None:
        self._directory = directory
        self._points = points
        # Standard output is for the JSON alone.
        self._is_json = json
        self._quiet = quiet or json
        self._may_show_panel = not (plain or quiet or json)

    def run(self, lock: int, parallel: int, command: str, *, is_detached: bool) -> None:
        """Train what is left.

        Args:
            lock: descriptor of the sweep's lock.
            parallel: runs to train at once.
            command: command line that continues the sweep.
            is_detached: train in the background.

        Raises:
            typer.Exit: the sweep continues in the background, or was stopped.
            DpoError: the sweep cannot continue.
        """
        runner = SweepRunner(self._directory, self._points, self._observer, self._print, _fork)
        console = line_console(stderr=self._is_json)

        def train() -> ExitCode:
            return runner.run(parallel, announce=not self._quiet)

        code: ExitCode | None = None
        if is_detached and (pid := detach(self._directory, lock)):
            pass
        elif self._may_show_panel and not is_detached and has_terminal(console):
            panel = SweepPanel(self._directory, self._points, parallel, console)
            code, pid = work_behind_panel(panel, self._directory, lock, train)
        else:
            code = train()
        title = self._directory.designation
        if code is None:
            console.print(f"{title} continues in the background, as process {pid}")
            console.print("watch:   dpo watch")
            console.print("stop:    dpo stop")
            console.print(f"continue, or compare: {command}")
            raise typer.Exit
        if code is not ExitCode.DONE:
            done = sum(run.is_completed for run in self._directory.runs().values())
            how = code.name.lower().replace("_", " ")
            console.print(
                f"{title}: {how} with {done} of {len(self._points)} runs completed; everything is"
                " saved"
            )
            console.print(f"continue: {command}")
            raise typer.Exit(code)

    def _observer(self, run: RunDirectory) -> Observer:
        console = line_console(stderr=self._is_json)
        return plain_report(run, console, quiet=self._quiet)

    def _print(self, line: str) -> None:
        line_console(stderr=self._is_json).print(line)


def _print_results(directory: SweepDirectory, points: Sequence[Point], *, json: bool) -> None:
    """Compare the runs, name the best, and list the runs that are not completed.

    Raises:
        typer.Exit: with 1 if a run is not completed.
    """
    runs = directory.runs()
    statuses = point_statuses(points, runs)
    compared = [
        # A run that was never planned has no settings in its events.
        replace(
            compared_run(
                point.letter, runs[point.letter], ThinnedHistory(runs[point.letter].events_path)
            ),
            settings=to_tables(point.profile),
        )
        for point in points
        if point.letter in runs
    ]
    if json:
        first = best(completed(compared))
        facts = {"sweep": directory.name, "points": plan_as_json(statuses), **as_json(compared)}
        print_json({**facts, "best": first.name if first else None})
    else:
        print_comparison(compared)
        for line in [*failure_lines(compared), *best_lines(compared, statuses, runs)]:
            line_console().print(line)
    if not all(status.is_completed for status in statuses):
        raise typer.Exit(ExitCode.FAILED)


def _command(
    profile: Path, grid: Sequence[str], settings: Sequence[str], name: str | None, root: Path | None
) -> str:
    """Return the command line that continues a sweep."""
    words = ["sweep", str(profile)]
    words += [word for values in grid for word in ("--grid", values)]
    words += [word for setting in settings for word in ("--set", setting)]
    words += ["--name", name] if name else []
    words += ["--runs-dir", str(root)] if root else []
    return dpo_command(*words)


def _fork(argv: Sequence[str], log: int, lock: int) -> Worker:
    """Start a worker as a copy of this process, which imports torch once for all runs.

    On macOS start a new process instead: Apple libraries that torch uses fail in a forked one.
    """
    if sys.platform == "darwin":
        return start_worker(argv, log, lock)
    from dpo_cli.training.worker import fork_worker

    return fork_worker(argv, log, lock)
