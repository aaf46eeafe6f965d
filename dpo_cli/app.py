"""Command line of `dpo`: the table of commands, and the only place that prints errors.

A command's module is imported when the command is called, so that `dpo --help` loads neither torch
nor the profile's schema.
"""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
import traceback
from collections.abc import Sequence
from typing import Annotated, ClassVar, TextIO

import typer
from rich.text import Text

from dpo_cli import __version__
from dpo_cli.commands.group import LazyGroup
from dpo_cli.commands.help import HELP_OPTIONS
from dpo_cli.commands.usage import as_usage_error
from dpo_cli.errors import DpoError, ExitCode, UsageError, naming
from dpo_cli.printable import degrade_streams, printable
from dpo_cli.run.child_environment import bounded_spin
from dpo_cli.streams import open_standard_streams, stream_name
from dpo_cli.ui.terminal.console import echo, line_console

_MODULES = {
    "demo": "demo",
    "init": "init",
    "check": "check",
    "data": "data",
    "convert": "convert",
    "train": "train",
    "resume": "resume",
    "stop": "stop",
    "watch": "watch",
    "runs": "runs",
    "show": "show",
    "sweep": "sweep",
    "compare": "compare",
    "plot": "plot",
    "report": "report",
    "eval": "evaluate",
    "chat": "chat",
    "merge": "merge",
    "clean": "clean",
    "export": "export",
    "push": "push",
    "import": "import_model",
    "schema": "schema",
    "cache": "cache",
    "config": "config",
}


class CommandGroup(LazyGroup):
    """All commands of `dpo`, in the order of the help page."""

    modules: ClassVar = {name: f"dpo_cli.commands.{module}" for name, module in _MODULES.items()}


app = typer.Typer(
    name="dpo",
    cls=CommandGroup,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": HELP_OPTIONS},
)


def _print_version(context: typer.Context, is_requested: bool) -> None:
    if not is_requested:
        return
    if context.params.get("verbose"):
        from dpo_cli.commands.versions import version_lines

        echo("\n".join(version_lines()))
    else:
        echo(f"dpo {__version__}")
    raise typer.Exit


@app.callback()
def dpo(
    # Eager, so that it is read before --version in any order.
    verbose: Annotated[
        bool,
        typer.Option(
            "--verbose",
            "-v",
            is_eager=True,
            help="With --version: also print the versions of the libraries, processor and device, "
            "for a bug report.",
        ),
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, help="Print the version.")
    ] = False,
) -> None:
    """Direct Preference Optimization for small language models.

    Train a language model on pairs of better and worse answers, stop and resume with identical
    results, and export weights that MiniMind's scripts or transformers load.

    Example: `dpo demo`
    """
    if verbose:
        raise UsageError("--verbose belongs to --version", "Run dpo --version --verbose.")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return the exit code; no exception leaves this function."""
    open_standard_streams()
    degrade_streams()
    os.environ.update(bounded_spin(os.environ))  # before torch is loaded
    code: object
    try:
        code = app(arguments, standalone_mode=False)
    except SystemExit as end:
        code = end.code
    except DpoError as error:
        _print_error(error_lines(error))
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        code = ExitCode.INTERRUPTED
    except OSError as error:
        _print_error(error_lines(_system_error(error)))
        code = ExitCode.FAILED
    except BaseException as error:  # a panic in Rust code does not inherit from Exception
        if type(error).__name__ == "NoArgsIsHelpError":
            _print_error([Text.from_ansi(str(error))])  # styled by commands.help
            return int(ExitCode.USAGE)
        usage = as_usage_error(error)
        _print_error(error_lines(usage) if usage else _bug_lines(error))
        code = ExitCode.USAGE if usage else ExitCode.FAILED
    if not isinstance(code, int | None):  # a message of sys.exit
        code = ExitCode.FAILED
    if _flush_output() is ExitCode.FAILED:
        code = code or ExitCode.FAILED
    return int(code or ExitCode.DONE)


def error_lines(error: DpoError) -> list[Text]:
    """Format an error: message, details, remedy."""
    lines = [Text.assemble(("error: ", "bold red"), _on_one_line(error.message))]
    lines += [Text(f"  {_on_one_line(detail)}") for detail in error.details]
    if error.remedy:
        lines.append(Text.assemble(("help: ", "bold cyan"), _on_one_line(error.remedy)))
    return lines


def _on_one_line(text: str) -> str:
    """Join lines, so that a file name with a newline cannot start a line."""
    return printable(text).replace("\n", " ")


def _bug_lines(error: BaseException) -> list[Text]:
    """Format an unexpected exception as one line that names the file with its traceback."""
    if os.environ.get("DPO_TRACEBACK") == "1":
        traceback.print_exc()
        where = "see the traceback above"
    else:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="dpo-traceback-",
            suffix=".txt",
            delete=False,
            encoding="utf-8",
            errors="backslashreplace",
        ) as file:
            traceback.print_exc(file=file)
        where = f"traceback in {file.name}"
    summary = "".join(traceback.format_exception_only(error)).strip().replace("\n", " ")
    return error_lines(DpoError(f"unexpected {summary}", f"this is a bug in dpo; {where}"))


def _print_error(lines: list[Text]) -> None:
    console = line_console(stderr=True)
    with contextlib.suppress(OSError):  # the terminal may be closed
        for line in lines:
            console.print(line)


def _system_error(error: OSError) -> DpoError:
    """Convert an error of the operating system that no caller has converted."""
    if os.environ.get("DPO_TRACEBACK") == "1":
        traceback.print_exc()
    try:
        os.getcwd()
    except OSError:
        return DpoError("the working directory was removed", "Change to a directory that exists.")
    failed = "an operation of the system failed"
    if error.filename is not None:
        failed = f"cannot read or write {os.fsdecode(error.filename)}"
    return DpoError(
        f"{failed}: {error.strerror or error}",
        "Check its permissions and the disk. DPO_TRACEBACK=1 shows where it was used.",
    )


def _flush_output() -> ExitCode | None:
    """Flush both streams; return FAILED if standard output could not be written.

    A closed pipe is no error: `head` closes its input early. A full disk is an error, which would
    otherwise go unnoticed if the output is redirected.
    """
    error = _flush(sys.stdout)
    code = None
    if error is not None and not isinstance(error, BrokenPipeError):
        _print_error(error_lines(_system_error(error)))
        code = ExitCode.FAILED
    for stream in (sys.stdout, sys.stderr):
        if _flush(stream) is not None:  # must not raise again while Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
    return code


def _flush(stream: TextIO) -> OSError | None:
    try:
        with naming(stream_name(stream)):
            stream.flush()
    except OSError as error:
        return error
    return None
