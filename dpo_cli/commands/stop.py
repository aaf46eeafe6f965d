"""`dpo stop`: save and stop a run from another terminal."""

from __future__ import annotations

import time

import typer

from dpo_cli.commands.options import RunArgument, RunsDirOption
from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.run.directory import runs_root
from dpo_cli.run.events import Completed, EventReader, Failed, Stopped
from dpo_cli.run.lookup import find_run
from dpo_cli.run.thinning import read_view
from dpo_cli.shell import dpo_command
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.result import completed_lines, stopped_lines

_POLL_SECONDS = 0.2


def stop(run_name: RunArgument = None, runs_dir: RunsDirOption = None) -> None:
    """Save and stop a run after its current step.

    Without RUN, stop the newest run that is training. The command waits for the end; Ctrl-C ends
    only the waiting.

    Example: `dpo stop dense`
    """
    console = line_console()
    run = find_run(runs_root(runs_dir), run_name, prefer=lambda run: run.holder() is not None)
    name, holder = run.designation, run.holder()
    if holder is None:
        console.print(f"{name} is not training: nothing to stop")
        return
    reader = EventReader(run.events_path)
    list(reader.read_new())  # skip the events before the request
    run.put_request("stop")
    console.print(f"stopping {name} ({holder}) after its current step")
    try:
        with console.status("waiting for it to save"):
            while run.holder() is not None:
                time.sleep(_POLL_SECONDS)
    except KeyboardInterrupt:
        console.print(f"not waiting any longer; {name} still stops")
        raise typer.Exit(ExitCode.INTERRUPTED) from None
    if not run.profile_path.exists():
        console.print(f"{name} was removed: it had not started to train")
        return
    ends = [e for e in reader.read_new() if isinstance(e, Stopped | Completed | Failed)]
    match ends[-1:]:
        case [Stopped() as stopped]:
            lines = stopped_lines(stopped, name)
        case [Completed() as completed]:
            lines = completed_lines(completed, name, run.path, read_view(run.events_path))
        case [Failed() as failed]:
            raise DpoError(f"{name} failed: {failed.message}", failed.remedy, failed.details)
        case _:
            raise DpoError(
                f"{name} ended without saving its last steps",
                f"Continue from its last checkpoint: {dpo_command('resume', name)}",
                [f"its output is in {run.worker_log_path}"],
            )
    for line in lines:
        console.print(line)
