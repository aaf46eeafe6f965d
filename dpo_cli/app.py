"""The command line: names the commands and renders every error, once.

Only the commands' signatures are imported here; each imports its work when it is called, so that
`dpo --help` costs neither torch nor the profile's schema.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from dpo_cli import __version__
from dpo_cli.commands.cache import cache
from dpo_cli.commands.chat import chat
from dpo_cli.commands.check import check
from dpo_cli.commands.clean import clean
from dpo_cli.commands.compare import compare
from dpo_cli.commands.config import config
from dpo_cli.commands.data import data
from dpo_cli.commands.evaluate import evaluate
from dpo_cli.commands.export import export
from dpo_cli.commands.from_directory import from_directory
from dpo_cli.commands.init import init
from dpo_cli.commands.merge import merge
from dpo_cli.commands.plot import plot
from dpo_cli.commands.ranks import CommandOverTorchrun
from dpo_cli.commands.report import report
from dpo_cli.commands.resume import resume
from dpo_cli.commands.runs import runs
from dpo_cli.commands.schema import schema
from dpo_cli.commands.show import show
from dpo_cli.commands.stop import stop
from dpo_cli.commands.sweep import sweep
from dpo_cli.commands.train import train
from dpo_cli.commands.watch import watch
from dpo_cli.errors import DpoError, ExitCode

app = typer.Typer(
    name="dpo",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
)
_NAMES = {evaluate: "eval", from_directory: "import"}
"""Commands with the names of a builtin and a keyword."""

for _command in (
    init,
    check,
    data,
    train,
    resume,
    stop,
    watch,
    runs,
    show,
    sweep,
    compare,
    plot,
    report,
    evaluate,
    chat,
    merge,
    clean,
    export,
    from_directory,
    schema,
):
    app.command(
        _NAMES.get(_command), cls=CommandOverTorchrun if _command in (train, resume) else None
    )(_command)
app.add_typer(cache)
app.add_typer(config)


def _show_version(is_asked: bool) -> None:
    if is_asked:
        typer.echo(f"dpo {__version__}")
        raise typer.Exit


@app.callback()
def dpo(
    version: Annotated[
        bool,
        typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version."),
    ] = False,
) -> None:
    """Direct Preference Optimization for small language models.

    Train a MiniMind checkpoint on pairs of better and worse answers, stop and resume without
    losing a bit, and export weights that MiniMind's own scripts load.

    Example: `dpo train dense --set data.data_path=pairs.jsonl`
    """


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no exception leaves it."""
    try:
        app(arguments)
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else ExitCode.FAILED
    except DpoError as error:
        _show(error_lines(error))
        code = error.exit_code
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    except Exception as error:
        _show(_bug_lines(error))
        code = ExitCode.FAILED
    else:
        code = ExitCode.DONE
    _abandon_closed_output()
    return int(code)


def error_lines(error: DpoError) -> list[Text]:
    """What is wrong, where, and what to do about it."""
    lines = [Text.assemble(("error: ", "bold red"), error.message)]
    lines += [Text(f"  {detail}") for detail in error.details]
    if error.remedy:
        lines.append(Text.assemble(("help: ", "bold cyan"), error.remedy))
    return lines


def _bug_lines(error: Exception) -> list[Text]:
    """One line for an exception that nobody foresaw, and where its traceback is."""
    if os.environ.get("DPO_TRACEBACK") == "1":
        traceback.print_exc()
        where = "see the traceback above"
    else:
        with tempfile.NamedTemporaryFile(
            "w", prefix="dpo-traceback-", suffix=".txt", delete=False
        ) as file:
            traceback.print_exc(file=file)
        where = f"traceback in {file.name}"
    summary = "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
    return error_lines(DpoError(f"unexpected {summary}", f"this is a bug in dpo; {where}"))


def _show(lines: list[Text]) -> None:
    console = Console(stderr=True)
    with contextlib.suppress(OSError):  # the terminal may be gone
        for line in lines:
            console.print(line, soft_wrap=True)


def _abandon_closed_output() -> None:
    """Flush; what can no longer be written must not turn into an error while Python exits."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
