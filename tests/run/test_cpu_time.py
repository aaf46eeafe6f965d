"""Tests of contention of the CPU: when it is reported, and with which words."""

from __future__ import annotations

from pathlib import Path

import pytest

from dpo_cli.run.cpu_time import StolenTime, contention, contention_message, contention_remedy


@pytest.mark.parametrize(
    ("seconds", "cpu_seconds", "times"),
    [
        (10.0, 10.0, None),
        (10.0, 8.0, None),  # waits for a disk
        (10.0, 5.0, 2.0),  # the fair share beside one busy loop
        (150.0, 10.0, 15.0),
        (10.0, 0.0, None),  # a GPU, or a stream of an earlier version
        (0.0, 0.0, None),
    ],
)
def test_contention(seconds: float, cpu_seconds: float, times: float | None) -> None:
    assert contention(seconds, cpu_seconds) == times


def test_the_message_names_the_factor_and_what_helps() -> None:
    assert contention_message(15.04, 0.02) == (
        "the CPU is busy with other processes: a step takes 15.0 times its CPU time"
    )
    assert contention_message(2.0, 0.25).endswith(
        "; the host of this virtual machine takes 25 % of the CPU time"
    )
    assert contention_remedy(2).startswith("Set train.threads = 1, or stop the other processes")
    assert "train.threads" not in contention_remedy(1)
    assert "fewer pairs" in contention_remedy(1)


def test_stolen_time(tmp_path: Path) -> None:
    path = tmp_path / "stat"
    path.write_text("cpu  100 0 50 800 10 0 0 40 7 0\ncpu0 1 2 3\n")
    stolen = StolenTime(path)
    path.write_text("cpu  160 0 60 810 10 0 0 60 9 0\n")
    assert stolen.share() == pytest.approx(0.2)
    assert stolen.share() == 0.0
    path.unlink()
    assert stolen.share() == 0.0
    assert StolenTime(path).share() == 0.0
