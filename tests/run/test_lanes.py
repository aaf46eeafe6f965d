"""Several launchers at once: who gets what, which card each sees, and how they end together."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from dpo_cli.errors import ExitCode
from dpo_cli.run import cards, lanes
from dpo_cli.run.lanes import in_lanes, visible_cards
from dpo_cli.run.workers import Forked, fork
from tests.cli import HANG_SECONDS


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_each_is_given_once_and_each_lane_sees_its_card(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        for letter in letters:
            card = os.environ["CUDA_VISIBLE_DEVICES"]
            (tmp_path / f"{letter}-{card}-{os.getpid()}").touch()
            until(lambda: len({p.name.rpartition("-")[2] for p in tmp_path.iterdir()}) == 2)
        return ExitCode.DONE

    assert in_lanes(["2", "GPU-5"], "ABCDE", work) is ExitCode.DONE
    done = [path.name.split("-", 1) for path in tmp_path.iterdir()]
    assert sorted(letter for letter, _ in done) == list("ABCDE")
    assert {rest.rpartition("-")[0] for _, rest in done} == {"2", "GPU-5"}


def waits(
    folder: Path, letters: Iterator[str], then: Callable[[], object] = lambda: None
) -> ExitCode:
    """Until it is told to stop; what comes then may be what tells it."""
    told: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, _: told.append(number))
    signal.signal(signal.SIGINT, lambda number, _: told.append(number))
    next(letters)
    (folder / f"ready-{os.getpid()}").touch()
    then()
    until(lambda: told)
    return ExitCode.TERMINATED if told == [signal.SIGTERM] else ExitCode.INTERRUPTED


def test_where_one_cannot_go_on_the_others_stop(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
            until(lambda: list(tmp_path.glob("ready-*")))  # the other listens to signals
            return ExitCode.NO_SPACE
        return waits(tmp_path, letters)

    assert in_lanes(["0", "1"], "AB", work) is ExitCode.NO_SPACE


def test_signals_reach_every_lane(tmp_path: Path) -> None:
    def work(letters: Iterator[str]) -> ExitCode:
        def tell() -> None:
            if os.environ["CUDA_VISIBLE_DEVICES"] == "0":
                until(lambda: len(list(tmp_path.glob("ready-*"))) == 2)
                os.kill(os.getppid(), signal.SIGINT)

        return waits(tmp_path, letters, tell)

    assert in_lanes(["0", "1"], "AB", work) is ExitCode.INTERRUPTED


def test_a_lane_dies_with_who_started_it(tmp_path: Path) -> None:
    def stay() -> int:
        def work(letters: Iterator[str]) -> ExitCode:
            (tmp_path / str(os.getpid())).touch()
            time.sleep(60)
            return ExitCode.DONE

        return int(in_lanes(["0", "1"], "AB", work))

    parent = fork(stay)
    until(lambda: len(list(tmp_path.iterdir())) == 2)
    os.kill(parent.pid, signal.SIGKILL)
    until(lambda: parent.poll() is not None)
    assert parent.returncode == -signal.SIGKILL
    until(lambda: not any(Path(f"/proc/{path.name}").exists() for path in tmp_path.iterdir()))


def test_a_copy_ends_as_its_work_does(capfd: pytest.CaptureFixture[str]) -> None:
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
def test_the_cards_there_are(
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    visible: str | None,
    present: int,
    names: list[str],
) -> None:
    for number in range(present):
        (tmp_path / f"nvidia{number}").touch()
    environment = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    monkeypatch.setattr(lanes, "count_cards", lambda: cards.count_cards(environment, tmp_path))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert visible_cards() == names
