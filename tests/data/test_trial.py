"""Tests of trials of untrusted input in a child process."""

from __future__ import annotations

import faulthandler
import os
import signal
import time
from pathlib import Path

import pytest

from dpo_cli.data import trial
from dpo_cli.data.trial import OUT_OF_MEMORY, in_child
from dpo_cli.errors import DpoError
from tests.support.cli import HANG_SECONDS


def crash() -> int:
    faulthandler.disable()  # pytest enables it, and it would print a long trace
    os.kill(os.getpid(), signal.SIGSEGV)
    return 0


def test_result_and_signals() -> None:
    assert in_child(lambda: 7, "it") == 7
    assert in_child(crash, "it") == -signal.SIGSEGV
    assert in_child(lambda: len(bytearray(4 << 30)), "it") == OUT_OF_MEMORY


def test_a_trial_without_processor_time_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(trial, "_WALL_SECONDS", 0.0)
    with pytest.raises(DpoError, match=r"pairs\.parquet could not be tried within 0 seconds"):
        in_child(lambda: time.sleep(HANG_SECONDS) or 0, "pairs.parquet")
    with pytest.raises(ChildProcessError):  # no child process is left
        os.waitpid(-1, os.WNOHANG)


def test_a_trial_ends_with_its_parent(tmp_path: Path) -> None:
    noted = tmp_path / "pid"

    def note_and_wait() -> int:
        noted.write_text(str(os.getpid()))
        time.sleep(HANG_SECONDS)
        return 0

    parent = os.fork()
    if not parent:
        try:
            in_child(note_and_wait, "it")
        finally:
            os._exit(0)
    deadline = time.monotonic() + HANG_SECONDS
    while not (noted.exists() and noted.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(parent, signal.SIGKILL)
    os.waitpid(parent, 0)
    status = Path("/proc", noted.read_text(), "stat")
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the trial is still running"
        time.sleep(0.01)
