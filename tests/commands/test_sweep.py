"""Tests of `dpo sweep` with small workers: plan, order, refusals and end."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.commands import sweep
from dpo_cli.run import gpu_workers, launch, torchrun
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, WorkerStarted
from dpo_cli.run.lookup import find_run, find_runs
from dpo_cli.run.processes import start_worker
from dpo_cli.run.sweep import SweepDirectory
from tests.commands.conftest import Cli
from tests.support.fake_worker import WORKER
from tests.support.placement import TORCHRUN
from tests.support.snapshots import assert_snapshot
from tests.support.terminal import Terminal

BETA = ("--grid", "dpo.beta=[0.1,2,5]")
GRID = (*BETA, "--grid", "train.learning_rate=[1e-6,1e-5]")
TWO_MACHINES = ("--set", "launch.nnodes=2", "--set", "launch.rdzv_endpoint=node0:29400")
LEARNS = """
from dpo_cli.paired import ModelScores
from dpo_cli.run.held_out_scores import write_scores
from tests.support.story import with_ends
letter = run.profile_name[-1]
if not (run.path / "plan.json").exists():
    stream.append(WorkerStarted(pid=1, device="cpu", device_name="", dtype="float32", versions={}))
def evaluate(accuracy):
    metrics = {"loss": 1 - accuracy, "rewards/accuracies": accuracy, "rewards/margins": 0.1,
               "margin_per_token": 0.1, "kl": 0.0}
    right = [float(pair < 40 * accuracy) for pair in range(40)]
    scores = ModelScores({"rewards/accuracies": right}, range(40))
    if letter != "F":
        write_scores(run.held_out_path, 8, scores)
    groups = {"all": with_ends(metrics, 40)}
    stream.append(Evaluated(step=8, optimizer_step=8, metrics=metrics, groups=groups, pairs=40,
                            seconds=0.1))
ACCURACY = dict(A=0.5, B=0.55, C=0.9, D=0.85, E=0.5, F=0.1)
"""
LEARNS_WELL = LEARNS + "plan(); evaluate(ACCURACY[letter]); complete()\n"
STOPS = LEARNS + "plan(); stop()\n"
STOPS_AT_B = LEARNS + "plan()\nif letter == 'B': stop()\nevaluate(ACCURACY[letter]); complete()\n"
FAILS_AT_B = LEARNS + "plan()\nif letter == 'B': refuse()\nevaluate(ACCURACY[letter]); complete()\n"


@pytest.fixture
def workers(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes workers run a script, instead of forks with torch."""

    def use(script: str) -> None:
        def argv(run: RunDirectory, *_: object, **__: object) -> list[str]:
            return [sys.executable, "-c", WORKER + script, str(run.path)]

        monkeypatch.setattr(launch, "worker_argv", argv)
        monkeypatch.setattr(sweep, "_fork", start_worker)

    (directory / "mine.toml").write_text(
        (directory / "mine.toml").read_text() + "[eval]\nfraction = 0.1\n"
    )
    return use


def starts(letter: str) -> int:
    """Return the number of worker starts for a point."""
    run = find_run(Path("runs"), f"mine-{letter}")
    return sum(isinstance(e, WorkerStarted) for e in EventReader(run.events_path).read_new())


def test_the_plan_alone(dpo: Cli, workers: Any) -> None:
    code, out, err = dpo("sweep", "mine.toml", *GRID, "--dry-run")
    assert (code, err) == (0, "")
    assert_snapshot("sweep-plan", out)
    assert not Path("runs").exists()
    planned = json.loads(dpo("sweep", "mine.toml", *BETA, "--dry-run", "--json")[1])
    assert planned["sweep"] == "mine"
    assert planned["points"][1] == {
        "letter": "B",
        "values": {"dpo.beta": 2},
        "run": None,
        "state": None,
    }


def test_to_the_end_and_once_more(dpo: Cli, workers: Any) -> None:
    workers(LEARNS_WELL)
    code, out, err = dpo("sweep", "mine.toml", *GRID, "--plain")
    assert (code, err) == (0, "")
    assert [run.profile_name for run in find_runs(Path("runs"))][::-1] == [
        f"mine-{letter}" for letter in "ABCDEF"
    ]
    lines = [line.rstrip() for line in out.splitlines()]
    best = find_run(Path("runs"), "mine-C")
    assert lines[-4:] == [
        "best: C  beta 2  learning_rate 1e-6: held-out accuracy 0.90 (95 % interval 0.77 to 0.96)",
        "      not distinguishable from D; about 74 more pairs would settle it at 95 %",
        "      not compared with F: no scores of each pair",
        f"export: dpo export {best.name}",
    ]
    assert "dpo.beta             A B 0.1  C D 2.0  E F 5.0" in lines
    again = dpo("sweep", "mine.toml", *GRID, "--plain")
    assert again[0] == 0
    assert "time     all runs are completed" in again[1]
    assert [starts(letter) for letter in "ABCDEF"] == [1] * 6


def test_json_is_all_that_is_printed(dpo: Cli, workers: Any) -> None:
    workers(LEARNS_WELL)
    code, out, _ = dpo("sweep", "mine.toml", *BETA, "--json")
    told = json.loads(out)
    assert code == 0
    assert (told["sweep"], told["best"]) == ("mine", find_run(Path("runs"), "mine-C").name)
    assert [point["state"] for point in told["points"]] == ["completed"] * 3
    assert told["differences"] == {"dpo.beta": [0.1, 2.0, 5.0]}
    low, high = told["runs"][2]["held_out"]["accuracy_interval"]
    assert low < 0.9 < high


def test_a_point_that_fails_does_not_keep_the_others(dpo: Cli, workers: Any) -> None:
    workers(FAILS_AT_B)
    code, out, err = dpo("sweep", "mine.toml", *BETA, "--plain")
    assert (code, err) == (1, "")
    assert "error: run B: not the same data" in out
    assert "B failed: not the same data" in out.splitlines()
    assert "note: B is not completed" in out
    assert "best: C  beta 5: held-out accuracy 0.90" in out
    states = json.loads(dpo("sweep", "mine.toml", *BETA, "--dry-run", "--json")[1])["points"]
    assert [point["state"] for point in states] == ["completed", "failed", "completed"]
    workers(LEARNS_WELL)
    assert dpo("sweep", "mine.toml", *BETA, "--plain")[0] == 0
    assert starts("A") == 1


def test_a_run_without_a_plan_is_matched_by_its_profile(dpo: Cli, workers: Any) -> None:
    workers(LEARNS + "if letter == 'B': refuse()\nplan(); evaluate(0.5); complete()\n")
    code, out, _ = dpo("sweep", "mine.toml", *BETA, "--json")
    assert code == 1
    told = json.loads(out)
    assert told["differences"] == {"dpo.beta": [0.1, 2.0, 5.0]}
    assert [run["state"] for run in told["runs"]] == ["completed", "failed", "completed"]
    assert told["best"] is not None


def test_a_full_disk_ends_the_sweep(dpo: Cli, workers: Any) -> None:
    workers(LEARNS + "plan(); stream.append(Failed(message='full', exit_code=75)); sys.exit(75)")
    code, _, err = dpo("sweep", "mine.toml", *BETA, "--plain")
    assert (code, err) == (75, "error: full\n")
    assert len(find_runs(Path("runs"))) == 1


def test_a_stop_ends_the_sweep_and_the_same_command_goes_on(dpo: Cli, workers: Any) -> None:
    workers(STOPS_AT_B)
    code, out, err = dpo("sweep", "mine.toml", *BETA, "--set", "train.epochs=1", "--plain")
    assert (code, err) == (130, "")
    assert out.splitlines()[-2:] == [
        "sweep mine: interrupted with 1 of 3 runs completed; everything is saved",
        'continue: dpo sweep mine.toml --grid "dpo.beta=[0.1,2,5]" --set train.epochs=1',
    ]
    again = ("sweep", "mine.toml", *BETA, "--set", "train.epochs=1")
    assert "stopped at step 0/8, will resume" in dpo(*again, "--dry-run")[1]
    workers(LEARNS_WELL)
    assert dpo(*again, "--plain")[0] == 0
    assert [starts(letter) for letter in "ABC"] == [1, 2, 1]


def test_each_gpu_trains_one_run(dpo: Cli, workers: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (torchrun, gpu_workers):
        monkeypatch.setattr(module, "count_gpus", lambda: 2)
    together = (
        "import os\n"
        "(run.path.parent / os.environ['CUDA_VISIBLE_DEVICES']).touch()\n"
        "while not all((run.path.parent / card).exists() for card in '01'): time.sleep(0.05)\n"
    )
    workers(LEARNS + "plan()\n" + together + "evaluate(ACCURACY[letter]); complete()\n")
    code, out, _ = dpo("sweep", "mine.toml", *BETA, "--plain")
    assert code == 0
    assert "sweep mine: 3 runs of mine.toml, 2 at a time, one per GPU" in out
    assert all(run.is_completed for run in find_runs(Path("runs")))
    assert "best: C" in out


# --- what it refuses ------------------------------------------------------------------------------


def test_another_grid_or_profile_under_the_same_name(dpo: Cli, workers: Any) -> None:
    workers(STOPS)
    assert dpo("sweep", "mine.toml", *BETA, "--plain")[0] == 130
    code, out, err = dpo("sweep", "mine.toml", "--grid", "dpo.beta=[0.1,2]")
    assert (code, out) == (2, "")
    assert err.splitlines() == [
        "error: sweep mine was started with another grid",
        "  then: --grid 'dpo.beta=[0.1, 2, 5]'",
        "  now: --grid 'dpo.beta=[0.1, 2]'",
        "help: Use the same values as before, or start another sweep with --name NAME.",
    ]
    err = dpo("sweep", "mine.toml", *BETA, "--set", "train.epochs=3")[2]
    assert "  train.epochs: 2 -> 3\n" in err
    assert (
        dpo("sweep", "mine.toml", "--grid", "dpo.beta=[0.1,2]", "--dry-run", "--name", "b")[0] == 0
    )


def test_a_run_whose_profile_was_edited_is_refused(dpo: Cli, workers: Any) -> None:
    workers(STOPS)
    dpo("sweep", "mine.toml", *BETA, "--plain")
    run = find_run(Path("runs"), "mine-A")
    run.write_profile(run.read_profile().replace("beta = 0.1", "beta = 0.4"))
    code, _, err = dpo("sweep", "mine.toml", *BETA, "--plain")
    assert code == 2
    assert f"error: {run.name} does not match point A of this sweep" in err
    assert "dpo.beta: 0.1 -> 0.4" in err


def test_a_sweep_that_is_running_is_refused(dpo: Cli, workers: Any) -> None:
    workers(LEARNS_WELL)
    sweep = SweepDirectory.of(Path("runs"), "mine")
    sweep.make()
    with sweep.locked():
        code, _, err = dpo("sweep", "mine.toml", *BETA, "--plain")
    assert code == 1
    assert f"error: sweep mine is being run by process {os.getpid()} on" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--grid", "dpo.bata=[1,2]"), "--grid  dpo.bata = 1, 2: unknown key"),
        (("--grid", "dpo.beta=[1,-2]"), "--grid  dpo.beta = -2: must be greater than 0"),
        (("--grid", "data.data_path=[a.jsonl,b.jsonl]"), "a.jsonl does not exist"),
        ((*BETA, *TWO_MACHINES), "a sweep trains on one machine"),
        ((*BETA, "--json", "--detach"), "--detach returns before there is anything to print"),
    ],
)
def test_wrong_command_lines(
    dpo: Cli, workers: Any, options: tuple[str, ...], message: str
) -> None:
    code, out, err = dpo("sweep", "mine.toml", *options)
    assert (code, out) == (2, "")
    assert message in err
    assert not Path("runs").exists()


def test_a_process_of_torchrun_is_refused(
    dpo: Cli, workers: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}.items():
        monkeypatch.setenv(name, value)
    code, _, err = dpo("sweep", "mine.toml", *BETA)
    assert code == 2
    assert "and each would sweep" in err


def test_without_held_out_pairs_there_is_no_best_run(dpo: Cli, workers: Any) -> None:
    workers(LEARNS + "plan(); complete()")
    silent = (*BETA, "--set", "eval.fraction=0", "--plain")
    code, out, _ = dpo("sweep", "mine.toml", *silent)
    assert code == 0
    plan, end = out.split("mine, run A")
    assert "best by  without held-out pairs there is no best run" in plan
    assert end.splitlines()[-1].startswith("best: none: without held-out pairs")
    seeds = ("--grid", "train.seed=[1,2]", "--name", "seeds", "--dry-run")
    assert (
        "best by  no ranking, because the held-out pairs depend on train.seed"
        in dpo("sweep", "mine.toml", *seeds)[1]
    )


# --- on a terminal -------------------------------------------------------------------------------

DPO = """
import sys
from dpo_cli import app
from dpo_cli.commands import sweep
from dpo_cli.run import launch, processes
worker = sys.argv.pop(1)
launch.worker_argv = lambda run, *_, **__: [sys.executable, "-c", worker, str(run.path)]
sweep._fork = processes.start_worker
sys.exit(app.main(sys.argv[1:]))
"""
WAITS = LEARNS + "plan()\nwhile run.take_request() != 'save': time.sleep(0.05)\n"


def test_the_panel_goes_along_from_run_to_run(workers: Any) -> None:
    script = WORKER + WAITS + "evaluate(ACCURACY[letter]); complete()\n"
    with Terminal(DPO, script, "sweep", "mine.toml", *BETA, cwd=Path.cwd()) as terminal:
        for number, letter in enumerate("ABC"):
            terminal.until_shown(f"mine  {letter} of A-C")
            assert f"{number} of 3 done" in terminal.picture[0]
            terminal.until_shown(f"mine-{letter}-")
            terminal.until(lambda letter=letter: starts(letter))  # see below
            find_run(Path("runs"), f"mine-{letter}").put_request("save")
        assert terminal.wait() == 0
        assert any(line.startswith("best: C  beta 5") for line in terminal.lines)
        assert terminal.modes_now() == terminal.modes
    assert not SweepDirectory.of(Path("runs"), "mine").holder()


def test_leaving_the_panel_leaves_the_sweep(workers: Any) -> None:
    script = WORKER + WAITS + "evaluate(ACCURACY[letter]); complete()\n"
    with Terminal(DPO, script, "sweep", "mine.toml", *BETA, cwd=Path.cwd()) as terminal:
        terminal.until_shown("mine  A of A-C")
        terminal.press("d")
        assert terminal.wait() == 0
        assert any("continues in the background" in line for line in terminal.lines)
        sweep = SweepDirectory.of(Path("runs"), "mine")
        for letter in "ABC":
            # A launcher drops requests that come before its worker starts.
            terminal.until(lambda letter=letter: letter in sweep.runs() and starts(letter))
            sweep.runs()[letter].put_request("save")
            terminal.until(lambda letter=letter: sweep.runs()[letter].is_completed)
        terminal.until(lambda: sweep.holder() is None)
