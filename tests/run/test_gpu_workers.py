"""Tests of several launchers at once: distribution of runs, visible GPUs, common end."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_cli.errors import ExitCode
from dpo_cli.run import gpu_workers, gpus
from dpo_cli.run.gpu_workers import on_gpus, visible_gpus
from dpo_cli.run.processes import Forked, fork
from tests.support.cli import HANG_SECONDS


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_letter_is_given_once_and_each_process_sees_one_gpu(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        for letter in letters:
            gpu = os.environ["CUDA_VISIBLE_DEVICES"]
            (tmp_path / f"{letter}-{gpu}-{os.getpid()}").touch()
            until(lambda: len({p.name.rpartition("-")[2] for p in tmp_path.iterdir()}) == 2)
        return ExitCode.DONE

    assert on_gpus(["2", "GPU-5"], "ABCDE", work) is ExitCode.DONE
    done = [path.name.split("-", 1) for path in tmp_path.iterdir()]
    assert sorted(letter for letter, _ in done) == list("ABCDE")
    assert {rest.rpartition("-")[0] for _, rest in done} == {"2", "GPU-5"}


def waits(
    folder: Path, letters: Iterator[str], then: Callable[[], object] = lambda: None
) -> ExitCode:
    """Wait for a stop signal; `then` may send it."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    next(letters)
    (folder / f"ready-{os.getpid()}").touch()
    then()
    until(lambda: told)
    return ExitCode.TERMINATED if told == [signal.SIGTERM] else ExitCode.INTERRUPTED


def test_if_one_process_fails_the_others_stop(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
            until(lambda: list(tmp_path.glob("ready-*")))  # the other worker waits for signals
            return ExitCode.NO_SPACE
        return waits(tmp_path, letters)

    assert on_gpus(["0", "1"], "AB", work) is ExitCode.NO_SPACE


def test_signals_reach_every_process(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        def tell() -> None:
            if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
                until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
                os.kill(os.getppid(), signal.SIGINT)

        return waits(tmp_path, letters, tell)

    assert on_gpus(["0", "1"], "AB", work) is ExitCode.INTERRUPTED


def test_a_signal_between_two_starts_reaches_every_process(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread receives a signal that the first one blocks."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()

    def fork_and_signal(work: Callable[[], int]) -> Forked:
        process = fork(work)
        until((tmp_path / f"ready-{process.pid}").exists)
        if len(list(tmp_path.iterdir())) == 1:
            os.kill(os.getpid(), signal.SIGINT)
        return process

    monkeypatch.setattr(gpu_workers, "fork", fork_and_signal)
    try:
        code = on_gpus(["0", "1"], "AB", lambda letters: waits(tmp_path, letters))
    finally:
        end.set()
    assert code is ExitCode.INTERRUPTED
    assert len(list(tmp_path.iterdir())) == 2


def test_the_processes_die_with_their_parent(tmp_path: Path) -> None:
    def stay() -> int:
        def work(letters: Iterator[str]) -> ExitCode:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)
            return ExitCode.DONE

        return int(on_gpus(["0", "1"], "AB", work))

    parent = fork(stay)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(parent.pid, signal.SIGKILL)
    until(lambda: parent.poll() is not None)
    assert parent.returncode == -signal.SIGKILL
    until(lambda: not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()))


def test_a_forked_process_exits_with_the_result_of_its_work(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def ended(process: Forked) -> int | None:
        until(lambda: process.poll() is not None)
        return process.returncode

    assert ended(fork(lambda: 7)) == 7
    assert ended(fork(lambda: 1 // 0)) == 1
    assert "ZeroDivisionError" in capfd.readouterr().err
    assert ended(fork(lambda: os.kill(os.getpid(), signal.SIGTERM) or 0)) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("visible", "present", "names"),
    [
        (None, 2, ["0", "1"]),
        ("3, 1", 4, ["3", "1"]),
        ("1,-1,0", 4, ["1"]),
        ("GPU-a,GPU-b", 2, ["GPU-a", "GPU-b"]),
        ("", 2, []),
        (None, 0, []),
    ],
)
def test_visible_gpus(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str | None,
    present: int,
    names: list[str],
) -> None:
    for number in range(present):
        (tmp_path / f"nvidia{number}").touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr(gpu_workers, "count_gpus", lambda: gpus.count_gpus(environment, tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_gpus() == names
