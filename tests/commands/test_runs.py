"""Tests of `dpo train`, `resume` and `stop` with a small worker: files, refusals and undo."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from dpo_cli.errors import DpoError
from dpo_cli.export.try_command import TryCommand
from dpo_cli.paired import MeanEstimate, PairedComparison, compare_accuracies
from dpo_cli.run import launch
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_run, find_runs
from tests.commands.conftest import Cli
from tests.support.cli import HANG_SECONDS
from tests.support.fake_worker import WORKER

pytestmark = pytest.mark.usefixtures("directory")


@pytest.fixture
def worker(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], list[list[str]]]:
    """Return a function that sets the worker's script, and returns the changes it will receive."""

    def set_script(script: str) -> list[list[str]]:
        told: list[list[str]] = []

        def argv(
            run: RunDirectory, changes: Sequence[str] = (), *, exact: bool = False
        ) -> list[str]:
            told.append(list(changes))
            return [sys.executable, "-c", WORKER + script, str(run.path)]

        monkeypatch.setattr(launch, "worker_argv", argv)
        return told

    return set_script


Worker = Callable[[str], list[list[str]]]


@pytest.fixture
def stopped(dpo: Cli, worker: Worker) -> RunDirectory:
    """Return a run that was stopped halfway."""
    worker("plan(); stop()")
    assert dpo("train", "mine.toml")[0] == 130
    return find_run(Path("runs"), None)


@pytest.fixture
def completed(dpo: Cli, worker: Worker) -> RunDirectory:
    worker("plan(); complete()")
    assert dpo("train", "mine.toml")[0] == 0
    return find_run(Path("runs"), None)


# --- train ------------------------------------------------------------------------------------


def test_train_to_the_end(dpo: Cli, worker: Worker) -> None:
    worker("plan(); complete()")
    code, out, err = dpo("train", "mine.toml", "--set", "train.epochs=3", "--name", "first")
    [run] = find_runs(Path("runs"))
    assert (code, err) == (0, "")
    assert out.splitlines()[0] == f"run {run.name}: Ctrl-C saves and stops"
    assert out.splitlines()[-1].startswith(f"export: dpo export {run.name}  (")
    assert run.profile_name == "first"
    assert "epochs = 3" in run.read_profile()
    assert run.holder() is None


def test_a_run_that_is_removed_meanwhile(dpo: Cli, worker: Worker) -> None:
    worker("plan(); import shutil; shutil.rmtree(run.path); sys.exit(1)")
    code, _, err = dpo("train", "mine.toml")
    assert code == 1
    assert "was removed or moved during training" in err
    assert list(Path("runs").iterdir()) == []


def test_train_quietly(dpo: Cli, worker: Worker) -> None:
    worker("plan(); stop()")
    code, out, _ = dpo("train", "mine.toml", "--quiet")
    [run] = find_runs(Path("runs"))
    assert code == 130
    assert out.splitlines() == [
        "interrupted after step 3; everything is saved",
        f"resume: dpo resume {run.name}",
    ]


@pytest.mark.parametrize(
    "arguments",
    [
        ["nothing.toml"],
        ["mine.toml", "--set", "train.learning_rate=-1"],
        ["mine.toml", "--set", "data.data_path=missing.jsonl"],
        ["mine.toml", "--set", "model.weights=run:missing"],
    ],
)
def test_a_refused_command_makes_no_run(dpo: Cli, worker: Worker, arguments: list[str]) -> None:
    told = worker("plan()")
    code, out, err = dpo("train", *arguments)
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert told == []
    assert not Path("runs").exists()


def test_a_run_that_the_worker_refuses_is_removed(dpo: Cli, worker: Worker) -> None:
    worker("refuse()")
    code, _, err = dpo("train", "mine.toml")
    assert (code, err) == (2, "error: not the same data\n")
    assert list(Path("runs").iterdir()) == []


def test_a_run_as_checkpoint_is_named_for_good(
    dpo: Cli, worker: Worker, stopped: RunDirectory
) -> None:
    worker("plan(); complete()")
    assert dpo("train", "mine.toml", "--set", "model.weights=run:mine")[0] == 0
    assert f'weights = "run:{stopped.name}"' in find_run(Path("runs"), None).read_profile()


def test_train_detached(directory: Path) -> None:
    script = f"""
import sys
from dpo_cli import app
from dpo_cli.run import launch
worker = {WORKER + "plan(); time.sleep(0.5); complete()"!r}
launch.worker_argv = lambda run, *_, **__: [sys.executable, "-c", worker, str(run.path)]
sys.exit(app.main(["train", "mine.toml", "--detach"]))
"""
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    [run] = find_runs(Path("runs"))
    assert (done.returncode, done.stderr) == (0, "")
    assert f"stop:    dpo stop {run.name}" in done.stdout
    while run.holder() and time.monotonic() - began < 20:
        time.sleep(0.05)
    assert run.is_completed
    assert f"export: dpo export {run.name}" in run.launcher_log_path.read_text()


# --- resume -----------------------------------------------------------------------------------


def test_resume_goes_on_with_the_newest_unfinished_run(
    dpo: Cli, worker: Worker, stopped: RunDirectory
) -> None:
    worker("plan(); complete()")
    dpo("train", "mine.toml", "--name", "later")
    told = worker("plan(); complete()")
    assert dpo("resume")[0] == 0
    assert told == [[]]
    assert stopped.is_completed


def test_resume_of_a_complete_run_says_so(dpo: Cli, completed: RunDirectory) -> None:
    code, out, _ = dpo("resume")
    assert code == 0
    assert out.splitlines() == [
        f"{completed.name} is already complete. Train more epochs with:"
        " --set train.epochs=3 --allow-changes",
        f"export: dpo export {completed.name}",
    ]


def test_resume_of_a_complete_run_with_a_change_that_adds_nothing(
    dpo: Cli, completed: RunDirectory
) -> None:
    code, _, err = dpo("resume", "--set", "train.learning_rate=1e-6", "--allow-changes")
    assert code == 2
    assert "add no step to train" in err
    assert "--set train.epochs=3 --allow-changes" in err
    assert completed.is_completed


def test_changed_mathematics_needs_allow_changes(
    dpo: Cli, worker: Worker, completed: RunDirectory
) -> None:
    told = worker("plan(); stop()")
    code, _, err = dpo("resume", "--set", "train.epochs=4")
    assert code == 2
    assert "  train.epochs: 2 -> 4" in err.splitlines()
    command = f"dpo resume {completed.name} --set train.epochs=4 --allow-changes"
    assert err.rstrip().endswith(command)
    assert told == []
    assert completed.is_completed

    assert dpo(*command.split()[1:])[0] == 130
    assert told == [["train.epochs: 2 -> 4"]]
    assert not completed.is_completed
    assert "epochs = 4" in completed.read_profile()


def test_a_changed_position_is_refused_always(dpo: Cli, stopped: RunDirectory) -> None:
    code, _, err = dpo("resume", "--set", "train.batch_size=8", "--allow-changes")
    assert code == 2
    assert "train.batch_size: 4 -> 8" in err
    assert f"model.weights=run:{stopped.name}" in err


def test_paths_of_files_may_change_freely(
    dpo: Cli, worker: Worker, stopped: RunDirectory, directory: Path
) -> None:
    (directory / "pairs.jsonl").rename(directory / "moved.jsonl")
    told = worker("plan(); complete()")
    assert dpo("resume")[0] == 2
    assert dpo("resume", "--set", "data.data_path=moved.jsonl")[0] == 0
    assert len(told) == 1
    assert "moved.jsonl" in stopped.read_profile()


def test_a_resume_that_the_worker_refuses_changes_nothing(
    dpo: Cli, worker: Worker, completed: RunDirectory
) -> None:
    before = completed.read_profile(), completed.completed_path.read_text()
    worker("refuse()")
    assert dpo("resume", "--set", "train.epochs=4", "--allow-changes")[0] == 2
    assert (completed.read_profile(), completed.completed_path.read_text()) == before


def test_resume_of_a_run_that_is_being_trained(dpo: Cli, stopped: RunDirectory) -> None:
    with stopped.locked():
        code, _, err = dpo("resume", stopped.name)
    assert code == 1
    assert f"being trained by process {os.getpid()} on" in err
    assert f"help: Stop it first: dpo stop {stopped.name}" in err


# --- stop -------------------------------------------------------------------------------------


def test_stop_waits_until_the_run_has_saved(dpo: Cli, worker: Worker, directory: Path) -> None:
    script = (
        "import sys; from dpo_cli import app; from dpo_cli.run import launch;"
        f"worker = {WORKER + 'plan(); wait_for_stop()'!r};"
        "launch.worker_argv = lambda run, *_, **__:"
        " [sys.executable, '-c', worker, str(run.path)];"
        "sys.exit(app.main(['train', 'mine.toml', '--quiet']))"
    )
    trainer = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.DEVNULL)
    began = time.monotonic()
    while not (runs := find_runs(Path("runs"))) or not runs[0].events_path.exists():
        assert time.monotonic() - began < HANG_SECONDS
        time.sleep(0.02)
    code, out, err = dpo("stop")
    assert (code, err) == (0, "")
    assert f"(process {trainer.pid} on " in out
    assert out.splitlines()[-2:] == [
        "interrupted after step 3; everything is saved",
        f"resume: dpo resume {runs[0].name}",
    ]
    assert trainer.wait(HANG_SECONDS) == 130


def test_stop_where_nothing_runs(dpo: Cli, stopped: RunDirectory) -> None:
    code, out, _ = dpo("stop")
    assert code == 0
    assert "is not training" in out
    assert stopped.take_request() is None


def test_stop_of_a_run_that_dies_meanwhile(
    dpo: Cli, stopped: RunDirectory, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = stopped.lock()
    put_request = RunDirectory.put_request

    def die_when_asked(run: RunDirectory, request: str) -> None:
        put_request(run, request)
        os.close(lock)  # as the kernel does for a process that dies

    monkeypatch.setattr(RunDirectory, "put_request", die_when_asked)
    code, _, err = dpo("stop", "mine")
    assert code == 1
    assert "ended without saving" in err
    assert f"dpo resume {stopped.name}" in err


# --- export -----------------------------------------------------------------------------------


@dataclass
class Bench:
    """Replace the modules that `dpo export` calls, which import torch and have their own tests."""

    asked: list[tuple[object, ...]] = field(default_factory=list)
    seconds: float | None = None
    failure: str = ""

    def export_run(
        self, *arguments: object, best: bool, export_format: str | None
    ) -> SimpleNamespace:
        self.asked.append((*arguments, best, export_format))
        rounding, seed = arguments[5:]
        return SimpleNamespace(
            path=Path("out/rlhf_512.pth"),
            dtype="float16",
            rounding=rounding,
            seed=seed,
            size_bytes=51_700_000,
            tensors=75,
            optimizer_step=3,
            pairs_compared=4,
            mean_logp_difference=0.00045,
            max_logp_difference=0.00123,
            retention=None,
            not_compared="full_sft_512.pth is gone",
            stop_warning="",
            unfinished_of=None,
            quantization=None,
            logp_difference_from_quantized=None,
            try_command=TryCommand("python eval_model.py", is_minimind_script=True),
            exported={"file": 1},
            state={"state": 1},
        )

    def evaluation_seconds(self, run: RunDirectory) -> float | None:
        return self.seconds

    def evaluate_held_out(self, *arguments: object) -> SimpleNamespace:
        if self.failure:
            raise DpoError(self.failure)
        self.asked.append(arguments[:3])
        in_state = {"rewards/accuracies": 0.7562, "margin_per_token": -0.02, "loss": 0.68912}
        in_file = {"rewards/accuracies": 0.75, "margin_per_token": 0.0123, "loss": 0.69}
        result = PairedComparison(
            {"rewards/accuracies": compare_accuracies([1, 0, 0], [0, 1, 1])},
            {"loss": MeanEstimate(0.00088, -0.0001, 0.00186, 314)},
        )
        return SimpleNamespace(
            models=[
                SimpleNamespace(groups={"all": {**metrics, "pairs": 1292}})
                for metrics in (in_state, in_file)
            ],
            comparisons=[SimpleNamespace(model=1, other=0, result=result)],
        )


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    bench = Bench()
    for name, functions in {
        "export.export": ("export_run",),
        "inference.evaluate": ("evaluate_held_out", "evaluation_seconds"),
    }.items():
        module = ModuleType(f"dpo_cli.{name}")
        for function in functions:
            setattr(module, function, getattr(bench, function))
        monkeypatch.setitem(sys.modules, module.__name__, module)
    return bench


def test_export_shows_what_was_written(dpo: Cli, stopped: RunDirectory, bench: Bench) -> None:
    told = ("--to", "x.pth", "--dtype", "bfloat16", "--force", "--best", "--format", "pth")
    code, out, _ = dpo("export", *told)
    assert code == 0
    run = RunDirectory(Path("runs", stopped.name))
    assert bench.asked == [(run, Path("x.pth"), "bfloat16", True, [], None, None, True, "pth")]
    assert out.splitlines() == [
        "wrote out/rlhf_512.pth: 51.7 MB, float16 rounded to nearest, 75 tensors, after step 3",
        "not compared with the starting weights: full_sft_512.pth is gone",
        "log-probs, file vs. training state (4 pairs): mean difference 0.00045 nats per token,"
        " largest 0.0012",
        "try it: python eval_model.py",
        "        in MiniMind's own environment; its scripts need transformers 4",
    ]
    assert json.dumps(bench.asked[0][2]) == '"bfloat16"'  # a plain string
    for form in ("hf", "peft"):
        assert dpo("export", "--format", form)[0] == 0
        assert bench.asked[-1][-1] == form
    assert dpo("export", "--dtype", "int8")[0] == 2


def test_export_rounds_as_it_is_told(dpo: Cli, stopped: RunDirectory, bench: Bench) -> None:
    code, out, _ = dpo("export", "--rounding", "stochastic", "--seed", "7")
    assert code == 0
    assert bench.asked[0][5:] == ("stochastic", 7, False, None)
    assert json.dumps(bench.asked[0][5]) == '"stochastic"'  # a plain string
    assert "float16 rounded stochastically with seed 7, 75 tensors" in out
    code, _, err = dpo("export", "--seed", "7")
    assert code == 2
    assert "Add --rounding stochastic" in err
    assert dpo("export", "--rounding", "up")[0] == 2


HELD_OUT = [
    "held-out (1,292 pairs), file vs. training state: accuracy 0.750 vs. 0.756, margin/token"
    " +0.0123 vs. -0.02 nats, loss 0.6900 vs. 0.6891",
    "file vs. training state, pair by pair: accuracy: 1 pair to 2, p = 1.00, about 38 more pairs"
    " would settle it at 95 %; loss +0.0009 (95 %: -0.0001 to +0.0019, about 310 more pairs would"
    " settle it)",
]


def test_export_scores_held_out_pairs_where_it_is_soon_done(
    dpo: Cli, stopped: RunDirectory, bench: Bench
) -> None:
    bench.seconds = 4.9
    assert dpo("export")[1].splitlines()[-4:-2] == HELD_OUT
    assert bench.asked[-1][2] == [{"state": 1}, {"file": 1}]
    bench.seconds = 100.0
    hint = "held-out pairs: not evaluated; --evaluate takes about 3m 20s"
    assert dpo("export")[1].splitlines()[-3] == hint
    assert dpo("export", "--evaluate")[1].splitlines()[-4:-2] == HELD_OUT
    assert "held" not in dpo("export", "--no-evaluate")[1]
    bench.failure = "data.data_path: gone"
    lines = dpo("export", "--evaluate")[1].splitlines()
    assert lines[-3:] == [
        "held-out pairs: not evaluated: data.data_path: gone",
        "try it: python eval_model.py",
        "        in MiniMind's own environment; its scripts need transformers 4",
    ]


def test_export_leaves_a_run_alone_that_is_training(
    dpo: Cli, stopped: RunDirectory, bench: Bench
) -> None:
    bench.seconds = 1.0
    with stopped.locked():
        assert "not evaluated; --evaluate takes about 2s" in dpo("export")[1]
        assert dpo("export", "--evaluate")[1].splitlines()[-4:-2] == HELD_OUT
