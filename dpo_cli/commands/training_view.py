"""Views of a run while it trains: plain lines, the live panel, or nothing in the background."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Callable

import typer
from rich.console import Console

from dpo_cli.errors import ExitCode
from dpo_cli.files import open_for_appending
from dpo_cli.run import launch
from dpo_cli.run.background import in_background
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.held_out_scores import loss_change, read_ends
from dpo_cli.run.locked_directory import LockedDirectory
from dpo_cli.run.start import Start
from dpo_cli.run.thinning import ThinnedReader, read_view
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.ending import ending_lines
from dpo_cli.ui.terminal.panel import Panel, has_terminal
from dpo_cli.ui.terminal.plain import PlainReport


def train_in_view(start: Start, *, plain: bool, quiet: bool, detach: bool) -> None:
    """Train a prepared run until it ends; with `detach` return at once.

    With the panel, too, training runs in another process; see `dpo_cli.run.background`.

    Args:
        start: the prepared run; this process holds its lock.
        plain: print lines, even on a terminal.
        quiet: print warnings and the end only.
        detach: train in the background.

    Raises:
        typer.Exit: with the exit code of the run.
        DpoError: the run failed.
    """
    run = start.run

    def train() -> ExitCode:
        return start.launch(plain_report(run, line_console(), quiet=quiet))

    console = line_console()
    if detach and (pid := launch.detach(run, start.lock)):
        _print_background(console, run, pid)
        return
    if not quiet:
        with contextlib.suppress(OSError, SystemExit):  # a closed pipe must not end the run
            console.print(f"run {run.designation}: Ctrl-C saves and stops")
    has_panel = not (plain or quiet or detach or start.place) and has_terminal(console)
    code = _train_behind_panel(start, train) if has_panel else train()
    if start.place and start.place.group:
        # torchrun takes every other code for a crash and starts the ranks again.
        code = ExitCode.DONE
    raise typer.Exit(code)


def plain_report(run: RunDirectory, console: Console, *, quiet: bool = False) -> PlainReport:
    """Return a report of a run that this process starts or resumes."""
    return PlainReport(
        console,
        run.designation,
        run.path,
        read_view=lambda: read_view(run.events_path),
        quiet=quiet,
    )


def _train_behind_panel(start: Start, train: Callable[[], ExitCode]) -> ExitCode:
    """Train in the background and show the panel until the run ends or the user leaves."""
    run, console = start.run, line_console()
    panel = Panel(run, console, ThinnedReader(run.events_path).read_new)
    panel.catch_up()
    panel.view.expect_start()
    code, pid = work_behind_panel(panel, run, start.lock, train)
    if code is None:
        _print_background(console, run, pid)
        return ExitCode.DONE
    panel.catch_up()
    with contextlib.suppress(OSError):
        change = loss_change(*read_ends(run.held_out_path, panel.view))
        for line in ending_lines(panel.view, run.designation, run.path, change):
            console.print(line)
    return code


def work_behind_panel(
    panel: Panel, directory: LockedDirectory, lock: int, work: Callable[[], ExitCode]
) -> tuple[ExitCode | None, int]:
    """Work in the background and show a panel until the work ends or the user leaves.

    Args:
        panel: panel of the work.
        directory: run or sweep; this process holds its lock.
        lock: descriptor of the lock.
        work: called in the background process.

    Returns:
        The exit code, or None if the work continues in the background; and its process id.
    """
    with in_background(directory, lock, work) as supervisor:
        supervisor.on_interrupt = panel.show_stopping
        try:
            is_over = panel.show(supervisor.has_ended)
        except (Exception, SystemExit):  # the terminal may be closed; training must not notice
            is_over = True
            path = directory.launcher_log_path
            with (
                contextlib.suppress(OSError),
                open(open_for_appending(path), "a", encoding="utf-8") as log,
            ):
                log.write("The panel failed and was dropped; training continues.\n")
                traceback.print_exc(file=log)
        return (supervisor.result() if is_over else None), supervisor.pid


def _print_background(console: Console, run: RunDirectory, pid: int) -> None:
    name = run.designation
    console.print(f"{name} is training in the background, as process {pid}")
    console.print(f"watch:   {dpo_command('watch', name)}")
    console.print(f"stop:    {dpo_command('stop', name)}")
    console.print(f"resume:  {dpo_command('resume', name)}")
