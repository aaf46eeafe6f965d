"""Tests of the command line: commands, options, errors, and the cost of `--help`."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpo_cli import __version__, app
from dpo_cli.errors import DpoError, ExitCode, NoSpaceError, UsageError
from tests.support.cli import HANG_SECONDS
from tests.support.command_tree import command_tree

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
    """Yield a command, its arguments and options, and its subcommands, one per line."""
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


def test_the_surface_is_as_recorded() -> None:
    surface = "\n".join(describe(command_tree(), "dpo")) + "\n"
    if os.environ.get("DPO_RENEW_SNAPSHOTS") == "1":
        SURFACE.write_text(surface, encoding="utf-8")
    assert surface == SURFACE.read_text(encoding="utf-8"), (
        "the command line has changed; if users are to see it so, run this test once with "
        "DPO_RENEW_SNAPSHOTS=1 and commit tests/commands/cli_surface.txt"
    )


def test_every_command_has_an_example() -> None:
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


@pytest.mark.parametrize("words", [("--version", "-v"), ("--verbose", "--version")])
def test_versions_for_a_bug_report(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, _ = in_process(capsys, *words)
    assert code == 0
    values = dict(line.split(maxsplit=1) for line in out)
    assert values["dpo"] == __version__
    assert values["torch"] == metadata.version("torch")
    assert [*values][1:] == [
        *("python", "torch", "transformers", "tokenizers", "safetensors", "huggingface_hub"),
        *("numpy", "pydantic", "typer", "rich", "extras"),
        *("platform", "processor", "device", "threads"),
    ]
    if find_spec("gguf") is not None:
        assert f"gguf {metadata.version('gguf')}" in values["extras"].split(", ")
    assert "pytest" not in values["extras"]
    text = "\n".join(out)
    assert "/" not in text
    assert not re.search(rf"\b{re.escape(socket.gethostname())}\b", text)


def test_verbose_alone_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = in_process(capsys, "-v", "runs")
    assert code == ExitCode.USAGE
    assert err[0] == "error: --verbose belongs to --version"


def in_process(
    capsys: pytest.CaptureFixture[str], *arguments: str
) -> tuple[int, list[str], list[str]]:
    code = app.main(list(arguments))
    output = capsys.readouterr()
    return code, output.out.splitlines(), output.err.splitlines()


WRONG = {
    "trian": ("no command trian; did you mean train?", "dpo --help lists the commands."),
    "xyz": ("no command xyz", "dpo --help lists the commands."),
    "cache x": ("no command x", "dpo cache --help lists the commands."),
    "train": ("PROFILE is missing", "Usage: dpo train PROFILE [OPTIONS]"),
    "compare": ("RUN... is missing", "Usage: dpo compare RUN... [OPTIONS]"),
    "plot x": ("--out is missing", "Usage: dpo plot RUN... --out FILE [OPTIONS]"),
    "train a b": ("unexpected argument: b", "Usage: dpo train PROFILE [OPTIONS]"),
    "train x --sett y": (
        "no option --sett; did you mean --set?",
        "dpo train --help lists the options.",
    ),
    "train x --epochs 3": (
        "no option --epochs",
        "It is a profile key: dpo train ... --set train.epochs=VALUE",
    ),
    "train x --num-train-epochs=3": (
        "no option --num-train-epochs",
        "It is a profile key: dpo train ... --set train.epochs=VALUE",
    ),
    "train x --lora_r 8": (
        "no option --lora_r",
        "It is a profile key: dpo train ... --set lora.rank=VALUE",
    ),
    "train x --load_in_4bit 1": (
        "no option --load_in_4bit: quantized training is not supported yet; dpo trains float32"
        " weights",
        "dpo train --help lists the options.",
    ),
    "runs --zzz": ("no option --zzz", "dpo runs --help lists the options."),
    "runs --runs-dir": ("--runs-dir needs a value", "dpo runs --help lists the options."),
    "train --plain=3": ("--plain takes no value", "dpo train --help lists the options."),
    "show --width x": ("--width: must be a whole number", "dpo show --help lists the options."),
    "show --width 3": (
        "--width: must be greater than or equal to 40",
        "dpo show --help lists the options.",
    ),
    "export --dtype int8": (
        "--dtype: 'int8' is not one of the values",
        "Use float16, bfloat16, float32.",
    ),
}


@pytest.mark.parametrize("line", WRONG)
def test_a_usage_error_is_two_lines(capsys: pytest.CaptureFixture[str], line: str) -> None:
    message, remedy = WRONG[line]
    assert in_process(capsys, *line.split()) == (
        ExitCode.USAGE,
        [],
        [f"error: {message}", f"help: {remedy}"],
    )


@pytest.mark.parametrize("arguments", [[], ["cache"], ["config"]])
def test_a_group_without_a_command_shows_its_help(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = in_process(capsys, *arguments)
    assert (code, out) == (ExitCode.USAGE, [])
    assert "Commands:" in err


def test_a_wrong_command_line_leaves_the_process_with_2() -> None:
    done = dpo("train", "x", "--sett", "y")
    assert (done.returncode, done.stdout) == (ExitCode.USAGE, "")
    assert done.stderr.startswith("error: no option --sett")


@pytest.mark.parametrize("columns", ["80", "60"])
def test_help_fits_the_terminal(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, columns: str
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    pages = [[], *([name] for name in app.CommandGroup.modules)]
    pages += [["cache", "size"], ["config", "show"]]
    for words in pages:
        code, out, _ = in_process(capsys, *words, "-h")
        assert code == 0
        assert in_process(capsys, *words, "--help")[1] == out
        for line in out:
            # A command line is not wrapped, so that it can be pasted.
            if not line.startswith(("Example:", "Usage:")):
                assert len(line) <= int(columns), (words, line)
            assert line == line.rstrip()
            assert "<" not in line, (words, line)
        assert out[-1].startswith("Example: ")


def test_every_option_has_a_help_and_every_value_a_name() -> None:
    def check(command: Any) -> None:
        for parameter in command.params:
            assert parameter.help, (command.name, parameter.name)
            is_flag = getattr(parameter, "is_flag", False)
            assert is_flag or parameter.metavar, (command.name, parameter.name)
        for child in getattr(command, "commands", {}).values():
            check(child)

    check(command_tree())


# --- errors -----------------------------------------------------------------------------------


def run_raising(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> tuple[int, list[str]]:
    def fail(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(app, "app", fail)
    code = app.main([])
    output = capsys.readouterr()
    assert output.out == ""
    return code, output.err.splitlines()


@pytest.mark.parametrize(("kind", "code"), [(DpoError, 1), (UsageError, 2), (NoSpaceError, 75)])
def test_an_error_is_printed_once_with_details_and_remedy(
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
