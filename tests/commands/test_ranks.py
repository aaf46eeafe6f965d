"""Tests of `dpo train` and `dpo resume` with several processes."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.errors import ExitCode
from dpo_cli.run import launch, processes, torchrun
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.event_writer import EventWriter
from dpo_cli.run.events import Alert, Planned, Stopped
from dpo_cli.run.lookup import find_runs
from tests.commands.conftest import Cli
from tests.support import story
from tests.support.placement import SLURM, TORCHRUN

TORCHRUN_0 = {**TORCHRUN, "RANK": "0", "LOCAL_RANK": "0"}
ONE_MACHINE = (
    "--rdzv-backend c10d --rdzv-endpoint localhost:0 --rdzv-id dpo --local-addr 127.0.0.1"
    " --max-restarts 0"
)
Supervised = list[tuple[RunDirectory, list[str], list[Alert]]]


@pytest.fixture(autouse=True)
def without_cards(directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 0)


@pytest.fixture
def supervised(monkeypatch: pytest.MonkeyPatch) -> Supervised:
    """Replace the launch; collect run, command line and alerts of each launch."""
    calls: Supervised = []

    class FakeLauncher:
        def __init__(
            self, run: RunDirectory, _lock: int, argv: Sequence[str], **options: Any
        ) -> None:
            calls.append((run, list(argv), list(options["alerts"])))

        def run(self) -> ExitCode:
            return ExitCode.INTERRUPTED

    monkeypatch.setattr(launch, "Launcher", FakeLauncher)
    return calls


@pytest.fixture
def started_by(monkeypatch: pytest.MonkeyPatch) -> Callable[[dict[str, str]], list[list[str]]]:
    """Set the environment; collect the command lines that would replace this process."""

    def start(environment: dict[str, str]) -> list[list[str]]:
        became: list[list[str]] = []
        for name, value in environment.items():
            monkeypatch.setenv(name, value)
        for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
            monkeypatch.setenv(name, environment.get(name, ""))  # restored after the test
            if name not in environment:
                monkeypatch.delenv(name)

        def execve(_path: str, argv: list[str], environment: dict[str, str]) -> None:
            assert environment["DPO_PARENT_PID"] == str(os.getppid())
            became.append(argv)
            raise SystemExit(0)

        monkeypatch.setattr(os, "execve", execve)
        monkeypatch.setattr(processes, "die_with_parent", lambda parent: None)
        return became

    return start


# --- which process is started ------------------------------------------------------------------


def test_one_process_is_a_worker(dpo: Cli, supervised: Supervised) -> None:
    dpo("train", "mine.toml", "--nproc", "auto")
    [(run, argv, alerts)] = supervised
    assert argv == [sys.executable, "-P", "-m", "dpo_cli.training.worker", str(run.path)]
    assert alerts == []


@pytest.mark.parametrize(
    "options",
    [["--nproc", "2"], ["--set", "launch.nproc_per_node=2"], ["--", "--nproc-per-node", "2"]],
)
def test_several_processes_are_started_by_the_agent(
    dpo: Cli, supervised: Supervised, options: list[str]
) -> None:
    dpo("train", "mine.toml", *options)
    [(run, argv, _)] = supervised
    own, torchruns = argv[: argv.index("--")], argv[argv.index("--") + 1 :]
    assert own == [sys.executable, "-P", "-m", "dpo_cli.distributed.agent", "--run", str(run.path)]
    arguments, command = torchruns[:-7], torchruns[-7:]
    assert command[:2] == ["--no-python", sys.executable]
    assert command[2:] == ["-u", "-P", "-m", "dpo_cli.training.worker", str(run.path)]
    last = len(arguments) - arguments[::-1].index("--nproc-per-node")
    assert arguments[last] == "2"


def test_auto_is_one_process_per_gpu(
    dpo: Cli, supervised: Supervised, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 8)
    dpo("train", "mine.toml", "--nproc", "auto")
    [(_, argv, alerts)] = supervised
    assert argv[argv.index("--nproc-per-node") + 1] == "8"
    assert alerts == []


@pytest.mark.parametrize(
    ("options", "is_said"),
    [([], True), (["--nproc", "1"], False), (["--set", "train.device=cpu"], False)],
)
def test_idle_gpus_are_reported_and_not_used(
    dpo: Cli,
    supervised: Supervised,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    is_said: bool,
) -> None:
    monkeypatch.setattr(torchrun, "count_gpus", lambda: 8)
    dpo("train", "mine.toml", *options)
    [(_, argv, alerts)] = supervised
    assert "dpo_cli.training.worker" in argv
    said = [(alert.message, alert.remedy) for alert in alerts]
    assert said == [("1 of 8 GPUs used", "Use all of them with --nproc auto.")] * is_said


def test_a_resume_may_use_another_number_of_processes(dpo: Cli, supervised: Supervised) -> None:
    dpo("train", "mine.toml")
    stream = EventWriter(supervised[0][0].events_path)
    stream.append(Planned(plan=story.PLAN))
    stream.append(Stopped(reason="interrupted", step=1, optimizer_step=1))
    dpo("resume", "--nproc", "3", "--exact", "--", "--max-restarts", "1")
    run, argv, _ = supervised[1]
    assert argv[argv.index("--nproc-per-node") + 1] == "3"
    assert argv[argv.index("-m", 4) :] == [
        *("-m", "dpo_cli.training.worker", str(run.path), "--exact"),
        *("--change", "launch.nproc_per_node: 1 -> 3"),
    ]


def test_arguments_of_torchrun_need_the_separator(dpo: Cli, supervised: Supervised) -> None:
    code, _, err = dpo("train", "mine.toml", "other.toml")
    assert (code, supervised) == (ExitCode.USAGE, [])
    assert "other.toml" in err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--nproc", "0"], "launch.nproc_per_node = 0"),
        (["--nproc", "many"], "a whole number, 1 or more"),
        (["--nproc", "2", "--set", "train.device=cuda:1"], "is one GPU"),
        (
            ["--set", "launch.nnodes=2"],
            "launch.nnodes = 2: several machines need a rendezvous address",
        ),
    ],
)
def test_contradictory_settings_create_no_run(
    dpo: Cli, supervised: Supervised, options: list[str], message: str
) -> None:
    code, _, err = dpo("train", "mine.toml", *options)
    assert (code, supervised, find_runs(Path("runs"))) == (ExitCode.USAGE, [], [])
    assert message in err


# --- by hand -----------------------------------------------------------------------------------


def test_print_launch(dpo: Cli, supervised: Supervised) -> None:
    options = ["--set", "train.epochs=1", "--nproc", "2", "--name", "a b", "--runs-dir", "r"]
    code, out, _ = dpo("train", "mine.toml", *options, "--print-launch", "--", "--rdzv-id", "x")
    assert (code, supervised, find_runs(Path("r"))) == (0, [], [])
    assert out == (
        f"torchrun --nnodes 1 --nproc-per-node 2 {ONE_MACHINE} --rdzv-id x -m dpo_cli train"
        ' mine.toml --name "a b" --runs-dir r --set train.epochs=1\n'
    )


def test_print_launch_of_a_resume(dpo: Cli, supervised: Supervised) -> None:
    dpo("train", "mine.toml")
    run = supervised[0][0]
    options = ["--set", "launch.timeout_seconds=5", "--allow-changes", "--print-launch"]
    assert dpo("resume", *options)[1] == (
        f"torchrun --nnodes 1 --nproc-per-node 1 {ONE_MACHINE} -m dpo_cli resume {run.name}"
        " --allow-changes --set launch.timeout_seconds=5\n"
    )


# --- started by torchrun or Slurm --------------------------------------------------------------


@pytest.mark.parametrize("command", [["train", "nowhere.toml"], ["resume", "nothing"]])
def test_any_other_rank_becomes_a_worker(
    dpo: Cli, started_by: Callable[[dict[str, str]], list[list[str]]], command: list[str]
) -> None:
    became = started_by(TORCHRUN)
    assert dpo(*command)[0] == 0
    assert became == [[sys.executable, "-P", "-m", "dpo_cli.training.worker", "--join"]]


def test_slurm_variables_are_translated_for_torch(
    dpo: Cli, started_by: Callable[[dict[str, str]], list[list[str]]]
) -> None:
    became = started_by(SLURM)
    dpo("train", "mine.toml")
    assert len(became) == 1
    told = {name: os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")}
    assert told == {"RANK": "9", "WORLD_SIZE": "16", "MASTER_ADDR": "gpu07"}


def test_rank_0_launches_and_its_next_attempt_resumes(
    dpo: Cli,
    supervised: Supervised,
    started_by: Callable[[dict[str, str]], list[list[str]]],
) -> None:
    assert started_by(TORCHRUN_0) == []
    # An interruption, but torchrun would take the signal's exit code for a crash.
    assert dpo("train", "mine.toml")[0] == 0
    assert dpo("train", "mine.toml")[0] == 0
    (run, argv, alerts), (again, _, _) = supervised
    assert argv == [sys.executable, "-P", "-m", "dpo_cli.training.worker", str(run.path)]
    assert alerts == []
    assert again == run
    assert len(find_runs(Path("runs"))) == 1


def test_under_slurm_the_exit_code_is_kept(
    dpo: Cli,
    supervised: Supervised,
    started_by: Callable[[dict[str, str]], list[list[str]]],
) -> None:
    started_by({**SLURM, "SLURM_PROCID": "0"})
    assert dpo("train", "mine.toml")[0] == ExitCode.INTERRUPTED


def test_an_ignored_launch_table_is_reported(
    dpo: Cli,
    supervised: Supervised,
    started_by: Callable[[dict[str, str]], list[list[str]]],
) -> None:
    started_by(TORCHRUN_0)
    dpo("train", "mine.toml", "--set", "launch.nproc_per_node=2")
    [(_, argv, [alert])] = supervised
    assert "dpo_cli.distributed.agent" not in argv
    assert alert.message == (
        "[launch] asks for 2 processes, but torchrun has started 4: [launch] is ignored"
    )


@pytest.mark.parametrize("option", [["--nproc", "2"], ["--detach"], ["--", "--role", "x"]])
def test_options_of_the_starting_process_are_refused_in_a_rank(
    dpo: Cli,
    started_by: Callable[[dict[str, str]], list[list[str]]],
    option: list[str],
) -> None:
    assert started_by(TORCHRUN_0) == []
    code, _, err = dpo("train", "mine.toml", *option)
    assert code == ExitCode.USAGE
    assert f"torchrun has started 4 processes; {option[0]} has no effect here" in err


def test_an_incomplete_environment_is_refused(
    dpo: Cli, started_by: Callable[[dict[str, str]], list[list[str]]]
) -> None:
    started_by({"WORLD_SIZE": "4", "RANK": "1"})
    code, _, err = dpo("train", "mine.toml")
    assert code == ExitCode.USAGE
    assert "the environment sets RANK and WORLD_SIZE, but not LOCAL_RANK" in err


# --- several machines --------------------------------------------------------------------------

SECOND = ("--set", "launch.nnodes=2", "--set", "launch.node_rank=1")
RENDEZVOUS_ID = ("--set", "launch.rdzv_endpoint=nowhere.invalid:2222")


def test_another_machine_joins_without_a_run_directory(
    dpo: Cli, monkeypatch: pytest.MonkeyPatch, directory: Path
) -> None:
    joined: list[list[str]] = []

    def join(arguments: list[str], _observe: object) -> ExitCode:
        joined.append(arguments)
        return ExitCode.DONE

    monkeypatch.setattr(launch, "join", join)
    (directory / "pairs.jsonl").unlink()  # the first machine reports missing files
    code, out, _ = dpo("train", "mine.toml", "--nproc", "4", *SECOND, *RENDEZVOUS_ID)
    assert (code, find_runs(Path("runs"))) == (0, [])
    assert out.startswith("machine 1 of 2: 4 ranks join the run of the first machine")
    [arguments] = joined
    assert arguments[:4] == ["--nnodes", "2", "--nproc-per-node", "4"]


def test_only_the_first_machine_resumes(dpo: Cli, supervised: Supervised) -> None:
    dpo("train", "mine.toml")
    code, _, err = dpo("resume", *SECOND, *RENDEZVOUS_ID)
    assert (code, len(supervised)) == (ExitCode.USAGE, 1)
    assert "only the first machine has the run" in err
