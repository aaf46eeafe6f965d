"""Tests of the real launcher and the real agent with stand-in ranks."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dpo_cli.errors import DpoError, ExitCode
from dpo_cli.profile.launch import Launch
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert, Event, EventReader, RankEnded, WorkerEnded, WorkerStarted
from dpo_cli.run.launch import Launcher
from dpo_cli.run.torchrun import agent_argv, torchrun_arguments
from tests.support.cli import HANG_SECONDS, REPOSITORY

RANK = str(REPOSITORY / "tests" / "support" / "stand_in_rank.py")

Observer = Callable[[Event], None]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunDirectory:
    monkeypatch.delenv("OMP_NUM_THREADS")
    return RunDirectory.create(tmp_path / "runs", "dense", "")


def argv(run: RunDirectory, mode: str, ranks: int = 2, *more: str, **keys: Any) -> list[str]:
    arguments = torchrun_arguments(Launch(**keys), ranks, more)
    return agent_argv(run.path, arguments, [sys.executable, RANK, str(run.path), mode])


def launch(
    run: RunDirectory,
    mode: str,
    ranks: int = 2,
    *more: str,
    observe: Observer = lambda event: None,
    **keys: Any,
) -> ExitCode:
    with run.locked() as lock:
        command = argv(run, mode, ranks, *more, **keys)
        return Launcher(run, lock, command, observe=observe, undo=run.remove).run()


def when_ready(*numbers: signal.Signals) -> Observer:
    def observe(event: Event) -> None:
        if isinstance(event, Alert) and event.code == "ready":
            for number in numbers:
                os.kill(os.getpid(), number)

    return observe


def events(run: RunDirectory, kind: type[Event]) -> list[Any]:
    return [e for e in EventReader(run.events_path).read_new() if isinstance(e, kind)]


def rank_facts(run: RunDirectory, rank: int, attempt: int = 0) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads((run.path / f"rank-{rank}-{attempt}").read_text())
    return facts


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


def assert_gone(*pids: int, seconds: float = HANG_SECONDS) -> None:
    deadline = time.monotonic() + seconds
    while any(_lives(pid) for pid in pids):
        assert time.monotonic() < deadline, [pid for pid in pids if _lives(pid)]
        time.sleep(0.02)


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, ExitCode.INTERRUPTED), (signal.SIGTERM, ExitCode.TERMINATED)],
)
def test_a_signal_reaches_every_rank_and_decides_the_exit_code(
    run: RunDirectory, number: signal.Signals, code: ExitCode
) -> None:
    assert launch(run, "wait", observe=when_ready(number)) is code
    assert events(run, RankEnded) == []
    assert events(run, WorkerEnded)[0].exit_code == 0
    facts = [rank_facts(run, rank) for rank in (0, 1)]
    assert [f["LOCAL_RANK"] for f in facts] == ["0", "1"]
    assert {f["WORLD_SIZE"] for f in facts} == {"2"}
    assert {f["MASTER_ADDR"] for f in facts} == {"127.0.0.1"}
    cores = len(os.sched_getaffinity(0))
    assert {f["OMP_NUM_THREADS"] for f in facts} == {str(max(1, cores // 2))}
    assert not Path(facts[0]["TORCHELASTIC_ERROR_FILE"]).parent.exists()


def test_a_lost_rank_is_named_and_all_others_end(run: RunDirectory) -> None:
    with pytest.raises(DpoError, match=r"^rank 1 died of SIGKILL \(killed, often") as caught:
        launch(run, "lost", 3)
    assert caught.value.remedy == f"Continue with: dpo resume {run.designation}"
    assert caught.value.details[0] == "rank 0 ended with exit code 1: rank 1 did not come"
    lost = events(run, RankEnded)
    # Rank 2 hung and was ended with the others, so it did not fail.
    assert [(e.rank, e.exit_code, e.signal) for e in lost] == [(1, 137, 9), (0, 1, 0)]
    assert {e.host for e in lost} == {socket.gethostname()}
    assert lost[0].pid == rank_facts(run, 1)["pid"]
    assert_gone(*(rank_facts(run, rank)["pid"] for rank in range(3)))


def test_all_ranks_restart(run: RunDirectory) -> None:
    seen: list[Event] = []
    assert launch(run, "restart", observe=seen.append, max_restarts=2) is ExitCode.DONE
    assert len(events(run, WorkerStarted)) == 2
    [alert] = [e for e in seen if isinstance(e, Alert) and e.code == "rank-lost"]
    assert alert.message.startswith("rank 1 died of SIGKILL")
    assert alert.message.endswith("restart from the newest checkpoint (restart 1 of 2)")


def test_a_rank_that_fails_after_the_end_of_the_run_changes_nothing(run: RunDirectory) -> None:
    assert launch(run, "told", max_restarts=2) is ExitCode.DONE
    assert len(events(run, WorkerStarted)) == 1
    assert [(e.rank, e.signal) for e in events(run, RankEnded)] == [(1, signal.SIGSEGV)]


def test_ranks_without_signal_handlers_die_and_nothing_was_trained(run: RunDirectory) -> None:
    observe = when_ready(signal.SIGINT)
    with pytest.raises(DpoError, match="before the run was planned") as caught:
        launch(run, "early", observe=observe, max_restarts=2)
    assert caught.value.exit_code is ExitCode.INTERRUPTED
    assert not run.path.exists()


def test_a_signal_before_the_ranks_start_ends_the_agent(run: RunDirectory) -> None:
    # The agent is still importing torch when the signal arrives.
    alert = Alert(code="ready", message="")
    observe = when_ready(signal.SIGTERM)
    with run.locked() as lock:
        launcher = Launcher(run, lock, argv(run, "wait"), observe=observe, alerts=[alert])
        with pytest.raises(DpoError, match="before the run was planned"):
            launcher.run()


def test_the_second_ctrl_c_kills_every_rank(run: RunDirectory) -> None:
    observe = when_ready(signal.SIGINT, signal.SIGINT)
    with pytest.raises(DpoError, match="stopped at once"):
        launch(run, "deaf", observe=observe)
    assert_gone(*(rank_facts(run, rank)["pid"] for rank in range(2)))


LAUNCHER = """
import sys
from pathlib import Path
from dpo_cli.run.launch import Launcher
from dpo_cli.run.directory import RunDirectory
run = RunDirectory(Path(sys.argv[1]))
with run.locked() as lock:
    show = lambda event: print(type(event).__name__, flush=True)
    Launcher(run, lock, sys.argv[2:], observe=show).run()
"""


def test_agent_and_ranks_die_with_the_launcher(run: RunDirectory) -> None:
    command = [sys.executable, "-c", LAUNCHER, str(run.path), *argv(run, "deaf")]
    launcher = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert launcher.stdout is not None
    while launcher.stdout.readline().strip() != "Planned":
        assert launcher.poll() is None
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children").read_text().split()
    launcher.kill()
    launcher.wait()
    assert_gone(*map(int, children), *(rank_facts(run, rank)["pid"] for rank in range(2)))
    deadline = time.monotonic() + HANG_SECONDS
    while (
        run.holder()
    ):  # the last thread of a process releases the lock after the process has ended
        assert time.monotonic() < deadline
        time.sleep(0.01)


JOINER = """
import sys
from dpo_cli.run import launch
from dpo_cli.run.torchrun import agent_argv
launch.agent_argv = lambda run, arguments, command: agent_argv(run, arguments, sys.argv[2:])
sys.exit(launch.join(sys.argv[1].split(), lambda event: None))
"""


def test_two_machines_train_one_run(run: RunDirectory) -> None:
    keys: dict[str, Any] = {"nnodes": 2, "rdzv_endpoint": f"127.0.0.1:{free_port()}"}
    second = " ".join(torchrun_arguments(Launch(**keys, node_rank=1), 1))
    joiner = subprocess.Popen(
        [sys.executable, "-c", JOINER, second, sys.executable, RANK, str(run.path), "wait"]
    )
    code = launch(run, "wait", 1, observe=when_ready(signal.SIGINT), **keys)
    assert code is ExitCode.INTERRUPTED
    assert joiner.wait(HANG_SECONDS) == ExitCode.DONE
    assert {rank_facts(run, rank)["LOCAL_RANK"] for rank in (0, 1)} == {"0"}
    assert {rank_facts(run, rank)["WORLD_SIZE"] for rank in (0, 1)} == {"2"}


def test_arguments_that_torchrun_refuses_are_reported_and_remove_the_run(run: RunDirectory) -> None:
    with pytest.raises(DpoError, match="unrecognized arguments: --unknown") as caught:
        launch(run, "wait", 2, "--unknown")
    assert caught.value.exit_code is ExitCode.USAGE
    assert not run.path.exists()


def test_a_missing_rendezvous_is_reported(run: RunDirectory) -> None:
    free = free_port()
    keys = {"nnodes": 2, "node_rank": 1, "rdzv_endpoint": f"127.0.0.1:{free}"}
    with pytest.raises(DpoError, match=f"'127.0.0.1:{free}': no rendezvous at this") as caught:
        launch(run, "wait", 1, "--rdzv-conf", "is_host=false,read_timeout=1", **keys)
    assert "node_rank = 0" in caught.value.remedy


def test_a_missing_machine_is_reported(run: RunDirectory) -> None:
    free = free_port()
    keys = {"nnodes": 2, "rdzv_endpoint": f"127.0.0.1:{free}"}
    with pytest.raises(DpoError, match="not all machines have connected") as caught:
        launch(run, "wait", 1, "--rdzv-conf", "is_host=true,join_timeout=2", **keys)
    assert "launch.node_rank" in caught.value.remedy
