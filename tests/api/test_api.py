"""Tests of the Python API: imports, errors, and runs that equal those of the command line."""

from __future__ import annotations

import ast
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import dpo_cli
from dpo_cli.api.arguments import as_overrides
from dpo_cli.errors import DpoError, ExitCode, UsageError
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.view import RunState
from tests.support import cli
from tests.support.cli import Run
from tests.support.small_runs import golden_run, golden_settings


@pytest.fixture
def settings(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Return settings of a run of a few seconds, in an empty working directory."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DPO_RUNS_DIR", raising=False)
    return golden_settings(shared, "seed", False, **{"train.epochs": 3})


def test_the_package_loads_nothing_until_it_is_used() -> None:
    script = (
        "import sys; before = set(sys.modules); import dpo_cli as dpo\n"
        "new = {name.split('.')[0] for name in set(sys.modules) - before}\n"
        "assert not new & {'torch', 'transformers', 'pydantic', 'rich', 'typer'}, new\n"
        "dpo.train, dpo.Run, dpo.StepDone, dpo.DpoError\n"
        "assert not {'torch', 'transformers', 'numpy'} & set(sys.modules)\n"
        "assert set(dpo.__all__) <= set(dir(dpo))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_public_name_is_documented() -> None:
    for name in dpo_cli.__all__:
        assert getattr(dpo_cli, name).__doc__
    with pytest.raises(AttributeError, match="no attribute 'trian'"):
        _ = dpo_cli.trian


def test_public_functions_have_an_example_and_their_errors() -> None:
    tree = ast.parse(Path(dpo_cli.api.__file__).read_text(encoding="utf-8"))
    for node in tree.body:
        if isinstance(node, ast.FunctionDef):
            text = ast.get_docstring(node) or ""
            assert "Example::" in text, node.name


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1e-6, "1e-06"),
        (True, "true"),
        ("run:first", '"run:first"'),
        (Path("a b.jsonl"), '"a b.jsonl"'),
        ([0.9, 0.95], "[0.9, 0.95]"),
        (("a", Path("b")), '["a", "b"]'),
        ({"chosen": "yes", "a b": 1}, '{ chosen = "yes", "a b" = 1 }'),
    ],
)
def test_settings_are_values(value: Any, text: str) -> None:
    assert as_overrides({"table.key": value}) == [f"table.key={text}"]


def test_a_value_that_no_profile_holds() -> None:
    with pytest.raises(UsageError, match=r"dpo.beta: a profile cannot hold None") as raised:
        dpo_cli.load_profile("dense", {"dpo.beta": None})
    assert raised.value.remedy


def test_settings_reach_the_profile() -> None:
    loaded = dpo_cli.load_profile("demo", {"train.epochs": 3, "dpo.beta": 5.0})
    assert (loaded.profile.train.epochs, loaded.profile.dpo.beta) == (3, 5.0)


def test_errors_have_message_details_and_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError) as raised:
        dpo_cli.train("dense", {"train.epochs": -1, "dpo.bata": 1})
    assert len(raised.value.details) == 2
    assert raised.value.exit_code is ExitCode.USAGE
    # The notes below a traceback show details and remedy.
    assert raised.value.__notes__ == [f"  {detail}" for detail in raised.value.details]
    with pytest.raises(UsageError, match="there are no runs"):
        dpo_cli.open_run("nothing")
    assert dpo_cli.runs() == []
    assert not Path("runs").exists()


@pytest.mark.parametrize("argument", ["format", "dtype", "rounding"])
def test_an_error_of_export_names_the_argument(argument: str, tmp_path: Path) -> None:
    run = dpo_cli.Run(RunDirectory(tmp_path))
    with pytest.raises(UsageError, match=f"{argument} = 'fp16'") as caught:
        run.export(**{argument: "fp16"})
    assert caught.value.remedy.startswith("Use '")


def test_ranks_of_torchrun_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("MASTER_ADDR", "localhost")
    with pytest.raises(UsageError, match="each would train"):
        dpo_cli.train("demo")


def test_an_error_keeps_its_class_and_code_between_processes() -> None:
    error = UsageError("wrong", "mend it", ["line 1"])
    again = DpoError.from_dict(error.to_dict())
    assert isinstance(again, UsageError)
    assert (again.message, again.remedy, again.details) == ("wrong", "mend it", ("line 1",))


# --- runs -----------------------------------------------------------------------------------------


def test_a_stopped_and_resumed_run_equals_the_command_lines(
    shared: Path, tmp_path: Path, settings: dict[str, Any]
) -> None:
    other = tmp_path / "command-line"
    other.mkdir()
    done = cli.dpo(*golden_run(shared, "seed", False, **{"train.epochs": 3}), cwd=other)
    assert done.returncode == 0, done.stderr
    expected = Run.only(other)

    run = dpo_cli.train("dense", settings, wait=False)
    assert run.is_running
    for event in run.events(follow=True):
        if isinstance(event, dpo_cli.StepDone):
            assert run.stop() is RunState.STOPPED
            break
    assert not run.is_running
    assert 0 < run.view.step < expected.steps[-1].step
    assert "stopped" in repr(run)

    again = dpo_cli.open_run(run.name)
    again.resume(show=False)
    assert again.view.state is RunState.COMPLETED
    assert run.view.state is RunState.COMPLETED  # an older handle reads the new events
    found = Run(again.directory)
    assert found.metric_rows == expected.metric_rows
    assert found.files() == expected.files()
    assert [other.name for other in dpo_cli.runs()] == [run.name]

    assert again.resume(show=False).view.state is RunState.COMPLETED  # nothing left to train
    with pytest.raises(UsageError, match="no longer be the run") as raised:
        again.resume({"train.epochs": 9})
    assert any("train.epochs" in detail for detail in raised.value.details)

    panel = again._repr_mimebundle_()
    assert "completed" in panel["text/plain"]
    assert panel["text/html"].startswith("<pre")


def test_a_refused_run_leaves_nothing(settings: dict[str, Any], tmp_path: Path) -> None:
    pairs = tmp_path / "broken.jsonl"
    pairs.write_text('{"chosen": [\n')
    with pytest.raises(DpoError, match="not JSON"):
        dpo_cli.train("dense", {**settings, "data.data_path": pairs})
    assert list(Path("runs").iterdir()) == []


def test_any_thread_can_train(settings: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    runs: list[dpo_cli.Run] = []
    thread = threading.Thread(target=lambda: runs.append(dpo_cli.train("dense", settings)))
    thread.start()
    thread.join(120)
    [run] = runs
    assert run.view.state is RunState.COMPLETED
    assert "done: " in capsys.readouterr().out


def test_a_notebook_shows_the_panel(
    settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    updates: list[str] = []

    def display(run: dpo_cli.Run, *, display_id: bool) -> SimpleNamespace:
        def update(run: dpo_cli.Run) -> None:
            updates.append(run._repr_mimebundle_()["text/html"])

        return SimpleNamespace(update=update)

    kernel = SimpleNamespace(kernel=object())
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: kernel))
    monkeypatch.setitem(sys.modules, "IPython.display", SimpleNamespace(display=display))
    dpo_cli.train("dense", settings)
    assert "completed" in updates[-1]
    assert capsys.readouterr().out == ""


def test_a_killed_run_is_an_error(settings: dict[str, Any]) -> None:
    run = dpo_cli.train("dense", settings, wait=False)
    launcher = run._launcher
    assert launcher is not None
    launcher.send_signal(9)
    with pytest.raises(DpoError, match="killed by SIGKILL"):
        run.wait()
    assert RunDirectory(run.path).profile_path.exists()
