"""Tests of the process in front of a background launcher: signals in its first moments."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import pytest

from dpo_cli.errors import ExitCode
from dpo_cli.run import launch
from dpo_cli.run.background import in_background
from dpo_cli.run.directory import RunDirectory
from tests.support.cli import HANG_SECONDS


def test_a_signal_before_the_process_exists_is_relayed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A second thread receives a signal that the first one blocks."""
    end = threading.Event()
    thread = threading.Thread(target=end.wait)
    thread.start()
    reading, writing = os.pipe()

    def detach(*_: object) -> int:
        os.kill(os.getpid(), signal.SIGINT)
        pid = os.fork()
        if not pid:  # a stand-in of the launcher, which ends by the first signal
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
            os.write(writing, b"x")
            time.sleep(HANG_SECONDS)
            os._exit(0)
        os.read(reading, 1)
        return pid

    monkeypatch.setattr(launch, "detach", detach)
    try:
        with in_background(RunDirectory(tmp_path), 0, lambda: ExitCode.DONE) as supervisor:
            _, status = os.waitpid(supervisor.pid, 0)
    finally:
        end.set()
        os.close(reading)
        os.close(writing)
    assert os.waitstatus_to_exitcode(status) == -signal.SIGINT
