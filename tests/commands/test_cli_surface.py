"""The command line as users know it: every command and option, errors, and what `--help` costs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import typer.main

from dpo_cli import __version__, app
from dpo_cli.commands.group import load_command
from dpo_cli.errors import DpoError, ExitCode, NoSpaceError, UsageError
from tests.support.cli import HANG_SECONDS

SURFACE = Path(__file__).with_name("cli_surface.txt")


def dpo(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "dpo_cli", *arguments],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        env=os.environ | environment,
    )


def describe(command: Any, name: str) -> list[str]:
    """A command, its arguments and options, then its subcommands, one a line."""
    lines = [name]
    for parameter in command.params:
        words = [*parameter.opts, *parameter.secondary_opts]
        if parameter.param_type_name == "argument":
            words = [parameter.metavar]
        elif not parameter.is_flag:
            words.append(parameter.metavar)
        required = "required" if parameter.required else ""
        repeated = "repeated" if parameter.multiple else ""
        lines.append("  " + " ".join(filter(None, [*words, required, repeated])))
    for child in getattr(command, "commands", {}).values():
        lines += describe(child, f"{name} {child.name}")
    return lines


def command_tree() -> Any:
    """The `dpo` group with every command imported."""
    group = typer.main.get_command(app.app)
    group.commands = {  # type: ignore[attr-defined]
        name: load_command(name, module) for name, module in app.CommandGroup.modules.items()
    }
    return group


def test_the_surface_is_as_recorded() -> None:
    surface = "\n".join(describe(command_tree(), "dpo")) + "\n"
    if os.environ.get("DPO_RENEW_SNAPSHOTS") == "1":
        SURFACE.write_text(surface, encoding="utf-8")
    assert surface == SURFACE.read_text(encoding="utf-8"), (
        "the command line has changed; if users are to see it so, run this test once with "
        "DPO_RENEW_SNAPSHOTS=1 and commit tests/commands/cli_surface.txt"
    )


def test_every_command_teaches_by_an_example() -> None:
    for name, command in command_tree().commands.items():
        assert f"Example: `dpo {name}" in command.help


def test_help_imports_nothing_heavy() -> None:
    script = """
import sys
from dpo_cli.app import main
from dpo_cli.app import CommandGroup
heavy = {"torch", "transformers", "numpy"}
assert main(["--help"]) == 0
assert not (heavy | {"pydantic", "tomli_w"}) & set(sys.modules), sorted(sys.modules)
for name in CommandGroup.modules:
    assert main([name, "--help"]) == 0
    assert not heavy & set(sys.modules), name
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Direct Preference Optimization" in done.stdout


def test_version() -> None:
    done = dpo("--version")
    assert (done.returncode, done.stdout) == (0, f"dpo {__version__}\n")


@pytest.mark.parametrize("arguments", [["trian"], ["train"], ["train", "x", "--sett", "y"]])
def test_a_wrong_command_line_exits_2_without_a_traceback(arguments: list[str]) -> None:
    done = dpo(*arguments)
    assert done.returncode == ExitCode.USAGE
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


# --- errors -----------------------------------------------------------------------------------


def run_raising(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int, list[str]]:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    code = app.main([])
    output = capsys.readouterr()
    assert output.out == ""
    return code, output.err.splitlines()


@pytest.mark.parametrize(("kind", "code"), [(DpoError, 1), (UsageError, 2), (NoSpaceError, 75)])
def test_an_error_is_told_once_with_its_details_and_remedy(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: type[DpoError],
    code: int,
) -> None:
    error = kind("a [bold]very[/bold] bad " + "x" * 200, "mend it", ["line 1", "line 2"])
    assert run_raising(monkeypatch, capsys, error) == (
        code,
        [f"error: a [bold]very[/bold] bad {'x' * 200}", "  line 1", "  line 2", "help: mend it"],
    )


def test_an_error_may_have_no_remedy(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(monkeypatch, capsys, DpoError("bad")) == (1, ["error: bad"])


def test_ctrl_c_is_quiet(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_raising(monkeypatch, capsys, KeyboardInterrupt()) == (130, [])


def test_a_bug_is_one_line_and_a_file(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.delenv("DPO_TRACEBACK", raising=False)
    code, lines = run_raising(monkeypatch, capsys, KeyError("chosen"))
    [file] = tmp_path.iterdir()
    assert code == 1
    assert lines == [
        "error: unexpected KeyError: 'chosen'",
        f"help: this is a bug in dpo; traceback in {file}",
    ]
    assert "Traceback" in file.read_text()


def test_a_bug_shows_its_traceback_on_demand(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DPO_TRACEBACK", "1")
    code, lines = run_raising(monkeypatch, capsys, KeyError("chosen"))
    assert code == 1
    assert lines[0].startswith("Traceback")
    assert lines[-2] == "error: unexpected KeyError: 'chosen'"


def test_a_closed_pipe_is_no_error() -> None:
    script = f"{sys.executable} -m dpo_cli --help | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert done.stderr == ""
