"""`dpo sweep`: one run for each combination of some settings, and which of them is the best."""

from __future__ import annotations

import contextlib
import os
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from json import dumps
from pathlib import Path
from typing import Annotated, Any

import typer

from dpo_cli.commands.compare import print_comparison
from dpo_cli.commands.contenders import contender
from dpo_cli.commands.options import (
    DetachOption,
    PlainOption,
    ProfileArgument,
    QuietOption,
    RunsDirOption,
    SetOption,
)
from dpo_cli.commands.session import behind_panel, plain_console
from dpo_cli.commands.sweeping import Sweeper, refuse_other_runs
from dpo_cli.commands.train import pin_weights
from dpo_cli.errors import ExitCode, UsageError
from dpo_cli.profile.grid import Point, load_points, parse_grid
from dpo_cli.profile.inputs import check_inputs
from dpo_cli.profile.resolved import to_tables
from dpo_cli.run.directory import runs_root
from dpo_cli.run.events import history
from dpo_cli.run.launch import detach
from dpo_cli.run.placement import recognise
from dpo_cli.run.sweep import SweepDirectory
from dpo_cli.run.torchrun import processes_here, usable_gpus
from dpo_cli.run.tracking.registry import require_trackers
from dpo_cli.ui.comparison import as_json, best
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
            help="Values that a key of the profile is to take, as in --grid 'dpo.beta=[0.1,2]'; "
            "repeated, every combination is a run.",
            show_default=False,
        ),
    ],
    settings: SetOption = None,
    name: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", help="What to call the sweep; else as the profile.", show_default=False
        ),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the plan, and start nothing.")
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

    They share the encoded pairs and the reference's log-probs. Ctrl-C saves and stops; after that,
    or a crash, the same command goes on: what is completed stays, what is half-way is resumed bit
    for bit. The best by its held-out pairs is named, and said where few pairs do not tell it apart.

    Example: `dpo sweep my.toml --grid 'dpo.beta=[0.1,2]' --grid 'train.learning_rate=[1e-6,1e-5]'`
    """
    if json and detach:
        raise UsageError(
            "--detach returns before there is anything to print",
            "once all is done, the same command with --json prints it",
        )
    values, root = parse_grid(grid), runs_root(runs_dir)
    points = load_points(profile, settings or (), values)
    lanes = _gpu_workers(points)
    points = [_pinned(point, root) for point in points]
    directory = SweepDirectory.of(root, name or points[0].loaded.name)
    directory.require_same(values, points[0].profile)
    refuse_other_runs(points, directory.runs())
    its = point_statuses(points, directory.runs())
    left = sum(not each.is_completed for each in its)
    lanes = max(1, min(lanes, left))
    if not json:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe does not concern the runs
            for part in plan_lines(directory.name, its, lanes):
                plain_console().print(part)
    elif dry_run:
        _print_json({"sweep": directory.name, "points": plan_as_json(its)})
    if dry_run:
        return
    if left:
        again = _words(profile, grid, settings or (), name, runs_dir)
        directory.make()
        with directory.locked() as lock:
            directory.require_same(values, points[0].profile)
            directory.begin(values, points[0].profile)
            told = partial(plain_console, stderr=json)
            sweeper = Sweeper(directory, points, told, quiet=quiet or json)
            may_show_panel = not (plain or quiet or json)
            _run(sweeper, lock, lanes, again, may_show_panel=may_show_panel, is_detached=detach)
    _conclude(directory, points, json=json)


def _gpu_workers(points: Sequence[Point]) -> int:
    """How many runs can train at once: one a card; all others one after another.

    Raises:
        UsageError: somebody else has started several processes, files or trackers are missing, or
            a run is to spread over several machines.
    """
    if place := recognise(os.environ):
        raise UsageError(
            f"{place.starter} has started {place.world_size} processes, and each would sweep",
            "start one by hand; launch.nproc_per_node says how many train a run",
        )
    lanes = []
    for point in points:
        own = point.profile.launch
        if own.nnodes > 1:
            raise UsageError(
                f"launch.nnodes = {own.nnodes}: a sweep trains on one machine",
                "leave launch.nnodes out",
            )
        check_inputs(point.loaded)
        require_trackers(point.profile)
        is_alone = processes_here(point.profile) == 1
        names_one = point.profile.train.device.startswith("cuda:")
        lanes.append(usable_gpus(point.profile) if is_alone and not names_one else 1)
    return min(lanes)


def _pinned(point: Point, root: Path) -> Point:
    """The point with its weights named so that they mean the same tomorrow."""
    profile = pin_weights(point.profile, root)
    return replace(point, loaded=replace(point.loaded, profile=profile))


def _run(
    sweeper: Sweeper, lock: int, lanes: int, again: str, *, may_show_panel: bool, is_detached: bool
) -> None:
    """Train what is left of a sweep, whose `lock` this process holds.

    Raises:
        typer.Exit: it goes on in the background, or was stopped.
        DpoError: it cannot go on.
    """
    directory, points = sweeper.sweep, sweeper.points
    console = sweeper.console()
    code: ExitCode | None = None
    if is_detached and (pid := detach(directory, lock)):
        pass
    elif may_show_panel and not is_detached and has_terminal(console):
        panel = SweepPanel(directory, points, console)
        code, pid = behind_panel(panel, directory, lock, lambda: sweeper.work(lanes))
    else:
        code = sweeper.work(lanes)
    if code is None:
        console.print(f"{directory.designation} goes on in the background, as process {pid}")
        console.print("watch:   dpo watch")
        console.print("stop it: dpo stop")
        console.print(f"go on, or compare: {again}")
        raise typer.Exit
    if code is not ExitCode.DONE:
        done = sum(run.is_completed for run in directory.runs().values())
        how = code.name.lower().replace("_", " ")
        console.print(
            f"{directory.designation}: {how} with {done} of {len(points)} runs completed; what"
            " trained is saved"
        )
        console.print(f"go on: {again}")
        raise typer.Exit(code)


def _conclude(directory: SweepDirectory, points: Sequence[Point], *, json: bool) -> None:
    """Compare the runs, name the best, and say which are not completed.

    Raises:
        typer.Exit: with 1, if any is not.
    """
    runs = directory.runs()
    its = point_statuses(points, runs)
    contenders = [
        # One that was never planned does not say itself what it was to be.
        replace(
            contender(point.letter, runs[point.letter], history(runs[point.letter].events_path)),
            settings=to_tables(point.profile),
        )
        for point in points
        if point.letter in runs
    ]
    if json:
        first = best(completed(contenders))
        told = {"sweep": directory.name, "points": plan_as_json(its), **as_json(contenders)}
        _print_json({**told, "best": first.name if first else None})
    else:
        print_comparison(contenders)
        for line in [*failure_lines(contenders), *best_lines(contenders, its, runs)]:
            plain_console().print(line)
    if not all(each.is_completed for each in its):
        raise typer.Exit(ExitCode.FAILED)


def _words(
    profile: Path, grid: Sequence[str], settings: Sequence[str], name: str | None, root: Path | None
) -> str:
    """The command that goes on with a sweep."""
    words = ["dpo", "sweep", str(profile)]
    words += [word for each in grid for word in ("--grid", each)]
    words += [word for each in settings for word in ("--set", each)]
    words += ["--name", name] if name else []
    words += ["--runs-dir", str(root)] if root else []
    return shlex.join(words)


def _print_json(told: dict[str, Any]) -> None:
    typer.echo(dumps(told, indent=2, ensure_ascii=False, default=str))
