"""What `train` and `resume` share: a worker on a run that is locked, and its screen."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable, Sequence

import typer
from rich.console import Console

from dpo_cli.errors import ExitCode
from dpo_cli.files import open_for_appending
from dpo_cli.run import launch
from dpo_cli.run.background import in_background
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, EventReader
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.placement import Place
from dpo_cli.ui.terminal.ending import ending_lines
from dpo_cli.ui.terminal.panel import Panel, has_terminal
from dpo_cli.ui.terminal.plain import PlainReport


def plain_console(*, stderr: bool = False) -> Console:
    """Standard output, or error, for text that is shown as it is."""
    return Console(stderr=stderr, highlight=False, markup=False, emoji=False, soft_wrap=True)


def run_worker(
    run: RunDirectory,
    lock: int,
    argv: Sequence[str],
    *,
    place: Place | None = None,
    alerts: Sequence[Alert] = (),
    trackers: Sequence[str] = (),
    undo: Callable[[], None],
    plain: bool,
    quiet: bool,
    detach: bool,
) -> None:
    """Train until the worker ends; detached, return at once and train in another process.

    Under the panel, too, training is in another process; see `dpo_cli.run.background`.

    Args:
        run: whose lock the caller holds.
        lock: its descriptor.
        argv: the command line to supervise.
        place: of rank 0, where somebody else has started several.
        alerts: what there is to know before it starts.
        trackers: names of those that get the run's figures.
        undo: takes back what the caller changed on disk for this start.
        plain, quiet, detach: what to show, and where.

    Raises:
        typer.Exit: with the worker's exit code.
        DpoError: the run failed.
    """

    def supervise() -> ExitCode:
        report = PlainReport(plain_console(), run.designation, run.path, quiet=quiet)
        launcher = launch.Launcher(
            run, lock, argv, observe=report, alerts=alerts, trackers=trackers, undo=undo
        )
        return launcher.run()

    console = plain_console()
    if detach and (pid := launch.detach(run, lock)):
        _tell_background(console, run, pid)
        return
    if not quiet:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe does not concern the run
            console.print(f"run {run.designation}: Ctrl-C saves and stops")
    has_panel = not (plain or quiet or detach or place) and has_terminal(console)
    code = _show_panel(run, lock, supervise) if has_panel else supervise()
    if place and place.group:
        code = ExitCode.DONE  # to torchrun any other is a crash, after which it starts again
    raise typer.Exit(code)


def _show_panel(run: RunDirectory, lock: int, supervise: Callable[[], ExitCode]) -> ExitCode:
    """Train in the background with the panel in front, until the end or until the user leaves."""
    console = plain_console()
    panel = Panel(run, console, EventReader(run.events_path).read_new)
    panel.catch_up()
    panel.view.expect_start()
    code, pid = behind_panel(panel, run, lock, supervise)
    if code is None:
        _tell_background(console, run, pid)
        return ExitCode.DONE
    panel.catch_up()
    with contextlib.suppress(OSError):
        for line in ending_lines(panel.view, run.designation, run.path):
            console.print(line)
    return code


def behind_panel(
    panel: Panel, place: LockedDirectory, lock: int, work: Callable[[], ExitCode]
) -> tuple[ExitCode | None, int]:
    """Work in the background with a panel in front, until the end or until the user leaves.

    Args:
        panel: of what is done there.
        place: a run or a sweep, whose lock the caller holds.
        lock: its descriptor.
        work: what is done in the background.

    Returns:
        How that ended, or None if it goes on; and its process id.
    """
    with in_background(place, lock, work) as supervisor:
        supervisor.on_interrupt = panel.show_stopping
        try:
            is_over = panel.show(supervisor.has_ended)
        except (Exception, SystemExit):  # the terminal may be gone; training depends on neither
            is_over = True
            path = place.launcher_log_path
            with contextlib.suppress(OSError), open(open_for_appending(path), "a") as log:
                log.write("The panel failed and was dropped; training goes on.\n")
                traceback.print_exc(file=log)
        return (supervisor.result() if is_over else None), supervisor.pid


def _tell_background(console: Console, run: RunDirectory, pid: int) -> None:
    name = run.designation
    console.print(f"{name} is training in the background, as process {pid}")
    console.print(f"watch:   dpo watch {name}")
    console.print(f"stop it: dpo stop {name}")
    console.print(f"go on:   dpo resume {name}")
