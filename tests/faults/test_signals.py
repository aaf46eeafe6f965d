"""Faults 12, 13, 15, 16, 17, 28: signals, and a screen, terminal or launcher that disappears.

All tests run real `dpo` processes; only the resumes after them use `tests.support.workers`. A
signal in the middle of a save (14) is in test_kills; a panel that raises, or is killed, in
tests/commands/test_panel.py, and an observer that raises in tests/run/test_launch.py.
"""

from __future__ import annotations

import contextlib
import os
import signal
from pathlib import Path

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Saved, Stopped
from tests.faults.conftest import STEPS, arguments
from tests.support import workers
from tests.support.cli import HANG_SECONDS, Run
from tests.support.process_faults import (
    assert_goes_on_and_ends_equal,
    awaits,
    held,
    hold_at,
    is_gone,
    started,
    steps,
    the_run,
    until,
    worker_of,
)
from tests.support.terminal import Terminal

ON_TERMINAL = "from dpo_cli.__main__ import main; main()"


def stopped_after_its_window(run: Run, steps_before: int) -> Saved:
    """Return the save of a run that finished at most the current step before it stopped."""
    saved = [event for event in run.events if isinstance(event, Saved)][-1]
    [stop] = [event for event in run.events if isinstance(event, Stopped)]
    assert steps_before <= len(run.steps) <= steps_before + 1 < STEPS
    assert saved.optimizer_step == stop.optimizer_step == len(run.steps)
    return saved


def test_sigterm_finishes_the_step_and_saves(
    shared: Path, tmp_path: Path, whole: RunDirectory
) -> None:
    with started(*arguments(shared), cwd=tmp_path, changes=hold_at(3)) as process:
        run = Run(the_run(tmp_path))
        with held(run.directory, steps(3)) as worker:
            before = run.steps
            process.send_signal(signal.SIGTERM)
            until(lambda: awaits(worker, signal.SIGTERM))
        output, _ = process.communicate(timeout=HANG_SECONDS)
    assert process.returncode == 143
    assert f"resume: dpo resume {run.directory.name}" in output.decode()
    stopped_after_its_window(run, len(before))
    assert_goes_on_and_ends_equal(run.directory, whole)


def test_ctrl_c_finishes_the_step_and_saves(
    shared: Path, tmp_path: Path, whole: RunDirectory
) -> None:
    command = (*arguments(shared), "--plain")
    with Terminal(ON_TERMINAL, *command, cwd=tmp_path, columns=200, **hold_at(3)) as terminal:
        run = Run(the_run(tmp_path))
        with held(run.directory, steps(3)) as worker:
            before = run.steps
            terminal.press("\x03")
            until(lambda: awaits(worker, signal.SIGINT))
            terminal.until(lambda: "Ctrl-C again to stop now" in terminal.raw)
        assert terminal.wait() == 130
        assert terminal.lines[-1] == f"resume: dpo resume {run.directory.name}"
    stopped_after_its_window(run, len(before))
    assert_goes_on_and_ends_equal(run.directory, whole)


def test_ctrl_c_twice_ends_at_once(shared: Path, tmp_path: Path, whole: RunDirectory) -> None:
    command = (*arguments(shared), "--plain")
    with Terminal(ON_TERMINAL, *command, cwd=tmp_path, columns=200, **hold_at(5)) as terminal:
        run = the_run(tmp_path)
        with held(run, steps(5)) as worker:
            terminal.press("\x03")
            terminal.until(lambda: "Ctrl-C again to stop now" in terminal.raw)
            terminal.press("\x03")
            # The worker is stopped, so only its death can end the launcher.
            assert terminal.wait() == 130
        assert is_gone(worker)
        assert f"help: Continue with: dpo resume {run.name}" in terminal.lines
    assert_goes_on_and_ends_equal(run, whole)


def test_the_terminal_dies_and_another_one_watches(
    shared: Path, tmp_path: Path, whole: RunDirectory
) -> None:
    with Terminal(ON_TERMINAL, *arguments(shared), cwd=tmp_path, **hold_at(3)) as terminal:
        run = the_run(tmp_path)
        with contextlib.ExitStack() as elsewhere:
            with held(run, steps(3)):
                terminal.until_shown("elapsed")
                terminal.hang_up()
                terminal.process.wait(HANG_SECONDS)
                assert run.holder() is not None
                watch = elsewhere.enter_context(started("watch", "--plain", run.name, cwd=tmp_path))
                assert watch.stdout is not None
                until_line(watch.stdout.fileno(), b"step 2")
            output, _ = watch.communicate(timeout=HANG_SECONDS)
        assert watch.returncode == 0
        assert b"done: 12 steps" in output
    log = run.launcher_log_path.read_text()
    assert "done: 12 steps" in log
    assert "Traceback" not in log
    assert "Errno" not in log
    workers.assert_equal(run, whole)


def test_standard_output_is_closed(shared: Path, tmp_path: Path, whole: RunDirectory) -> None:
    """Output is closed during training; tests/commands/test_bad_input.py closes it at the start."""
    with started(*arguments(shared), "--plain", cwd=tmp_path, changes=hold_at(3)) as process:
        run = the_run(tmp_path)
        assert process.stdout is not None
        with held(run, steps(3)):
            until_line(process.stdout.fileno(), b"step 2")
            process.stdout.close()
        assert process.wait(HANG_SECONDS) == 0
    assert "BrokenPipeError" in run.launcher_log_path.read_text()
    workers.assert_equal(run, whole)


def test_standard_output_is_not_read(shared: Path, tmp_path: Path, whole: RunDirectory) -> None:
    """The pipe is full: the launcher blocks on it, the run does not."""
    reader, writer = os.pipe()
    try:
        with started(*arguments(shared), "--plain", cwd=tmp_path, stdout=writer) as process:
            until_line(reader, b"Ctrl-C saves and stops")
            fill(writer)
            os.close(writer)
            run = the_run(tmp_path)
            until(lambda: run.is_completed)
            until(lambda: is_gone(worker_of(run)))
            assert process.poll() is None
            output = read_all(reader)
            assert process.wait(HANG_SECONDS) == 0
    finally:
        os.close(reader)
    assert b"done: 12 steps" in output
    workers.assert_equal(run, whole)


def test_the_launcher_is_killed(shared: Path, tmp_path: Path, whole: RunDirectory) -> None:
    with started(*arguments(shared), "--plain", cwd=tmp_path, changes=hold_at(4)) as process:
        run = the_run(tmp_path)
        with held(run, steps(4)) as worker:  # so that the worker cannot end by itself
            process.kill()
            until(lambda: is_gone(worker))
    assert run.holder() is None
    assert_goes_on_and_ends_equal(run, whole)


def test_the_launcher_behind_the_panel_is_killed(
    shared: Path, tmp_path: Path, whole: RunDirectory
) -> None:
    with Terminal(
        ON_TERMINAL, *arguments(shared), cwd=tmp_path, columns=200, **hold_at(4)
    ) as terminal:
        run = the_run(tmp_path)
        with held(run, steps(4)) as worker:
            _, launcher, *_ = (run.holder() or "").split()
            assert int(launcher) != terminal.process.pid
            os.kill(int(launcher), signal.SIGKILL)
            until(lambda: is_gone(worker))
        assert terminal.wait() == 1
        assert f"help: Continue with: dpo resume {run.name}" in terminal.lines
    assert_goes_on_and_ends_equal(run, whole)


# --- pipes ----------------------------------------------------------------------------------------


def until_line(pipe: int, words: bytes) -> None:
    """Read from a pipe until these words appear."""
    read = b""
    while words not in read:
        data = os.read(pipe, 4096)
        assert data, read
        read += data


def read_all(pipe: int) -> bytes:
    """Read a pipe to its end."""
    return b"".join(iter(lambda: os.read(pipe, 65536), b""))


def fill(pipe: int) -> None:
    """Fill a pipe to the last byte."""
    # Opened again, because O_NONBLOCK belongs to the open file, which `dpo` shares with `pipe`.
    descriptor = os.open(f"/proc/self/fd/{pipe}", os.O_WRONLY | os.O_NONBLOCK)
    for size_bytes in (4096, 1):
        with contextlib.suppress(BlockingIOError):
            while True:
                os.write(descriptor, b" " * size_bytes)
    os.close(descriptor)
