"""Tests of macOS and Windows as far as Linux allows: without functions that only Linux has.

`stub/sitecustomize.py` hides functions, modules and files from the project's own modules. No test
here ran on a Mac or on Windows; see `docs/machines.md`.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_runs
from dpo_cli.training.checkpointing import load_weights
from tests.support.cli import HANG_SECONDS, REPOSITORY
from tests.support.platforms import Result, run_on, stub_environment

# Statements that a platform must refuse, and the exception. They are the negative control: if one
# of them passes, the stub hides nothing and every other test here proves nothing.
MISSING_ON_BOTH = {
    "open('/proc/self/statm', 'rb')": "FileNotFoundError",
    "from pathlib import Path; Path('/proc/meminfo').read_text('utf-8')": "FileNotFoundError",
    "import os; os.listdir('/proc/self/fd')": "FileNotFoundError",
    "import os; os.stat('/sys/fs/cgroup')": "FileNotFoundError",
    "import os; os.sched_getaffinity(0)": "AttributeError",
    "import os; os.memfd_create('x')": "AttributeError",
    "from os import posix_fadvise": "ImportError",
    "import signal; signal.SIGRTMIN": "AttributeError",
    "import select; select.epoll()": "AttributeError",
    "import time; time.pthread_getcpuclockid(0)": "AttributeError",
}
MISSING = {
    "darwin": {
        **MISSING_ON_BOTH,
        "import ctypes; ctypes.CDLL(None).prctl": "AttributeError",
        "import ctypes; ctypes.CDLL(None).renameat2": "AttributeError",
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (1, 1))": "ValueError",
        "import sys; assert sys.platform == 'linux'": "AssertionError",
    },
    "win32": {
        **MISSING_ON_BOTH,
        "import fcntl": "ModuleNotFoundError",
        "from fcntl import flock": "ModuleNotFoundError",
        "import resource": "ModuleNotFoundError",
        "import termios": "ModuleNotFoundError",
        "import pty": "ModuleNotFoundError",
        "import pwd": "ModuleNotFoundError",
        "import os; os.fork()": "AttributeError",
        "import os; os.killpg": "AttributeError",
        "import os; os.O_NOFOLLOW": "AttributeError",
        "import os; os.pread": "AttributeError",
        "import os; os.tcgetpgrp": "AttributeError",
        "import os; os.sysconf": "AttributeError",
        "import signal; signal.SIGKILL": "AttributeError",
        "import signal; signal.SIGHUP": "AttributeError",
        "import signal; signal.pthread_sigmask": "AttributeError",
        "import signal; signal.Signals(9)": "ValueError",
        "import signal; signal.signal(1, signal.SIG_IGN)": "ValueError",
        "import ctypes; ctypes.CDLL(None)": "TypeError",
        "import os; os.open('.', os.O_RDONLY)": "PermissionError",
        "import os; os.fsync(os.open('/dev/null', os.O_RDONLY))": "OSError",
        "import os, tempfile; d = tempfile.mkdtemp(); os.rename(d, tempfile.mkdtemp())": (
            "FileExistsError"
        ),
        "import os, tempfile; f = tempfile.NamedTemporaryFile(); os.replace(f.name, '/tmp/x')": (
            "PermissionError"
        ),
        "import os; from tempfile import mkdtemp as new; d = new(); f = open(d + '/x', 'wb');"
        "os.rename(d, d + 'y')": "PermissionError",
        "open(__import__('os').devnull)": "EncodingWarning",
    },
}
PRESENT = {
    "darwin": (
        "import os; os.O_NOFOLLOW; os.killpg; os.WNOHANG; os.pread; os.sysconf",
        "import fcntl, resource, termios, signal; signal.SIGHUP; signal.pthread_sigmask",
        "import ctypes; ctypes.CDLL(None); ctypes.pythonapi",
        "import torch, multiprocessing, subprocess",
    ),
    "win32": (
        "import os, sys; os.getpid(); os.waitpid; os.O_CREAT; assert sys.platform == 'win32'",
        "import signal; signal.signal(signal.SIGTERM, signal.SIG_DFL); signal.Signals(2).name",
        "import torch, multiprocessing, subprocess",
    ),
}

TRAIN = """
import dpo_cli
from dpo_cli.run.events import StepDone
run = dpo_cli.train("demo", {settings}, name="stopped", wait=False)
steps = (event.optimizer_step for event in run.events(follow=True) if isinstance(event, StepDone))
assert next(step for step in steps if step >= 3) < 24
assert str(run.stop()) == "stopped", run.view
"""
TRIAL = """
import os, time
from dpo_cli.data import trial
assert not trial.HAS_MEMORY_LIMIT
assert trial.in_child(lambda: 7, "it") == 7
trial.TRIAL_BYTES = 64 << 20
assert trial.in_child(lambda: len(b"x" * (256 << 20)) and time.sleep(60) or 0, "it") == 3
"""
MEMORY = """
import torch
from dpo_cli.compute import memory
cpu = torch.device("cpu")
assert 1 << 20 < memory.process_bytes() <= memory.peak_process_bytes() < memory.total_memory(cpu)
assert 1 << 20 < memory.free_memory(cpu) < memory.total_memory(cpu)
"""
PLACE = """
import os
from dpo_cli.run import placement
assert float(placement._start_time(os.getpid())) > 0
"""
SIGNALS = """
import sys
from dpo_cli.run.exit_reason import death, exit_text
expected = "signal 9" if sys.platform == "win32" else "SIGKILL (killed, often"
assert death(9).startswith(expected), death(9)
assert exit_text(-11).startswith("died of SIGSEGV (a crash")
"""
CPUS = """
from dpo_cli.machine import usable_cpus
assert len(usable_cpus()) >= 1
"""
IMPORTS = """
import importlib, pkgutil
import dpo_cli
for module in pkgutil.walk_packages(dpo_cli.__path__, "dpo_cli."):
    if not module.name.endswith("__main__"):
        importlib.import_module(module.name)
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Directory with 48 pairs of the demo."""
    folder = tmp_path_factory.mktemp("platforms")
    lines = (REPOSITORY / "demo/pairs.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
    (folder / "pairs.jsonl").write_text("".join(lines[:48]), encoding="utf-8")
    return folder


SETTINGS = {
    "data.data_path": "pairs.jsonl",
    "train.epochs": 1,
    "train.batch_size": 2,
    "train.save_interval": 8,
    "train.device": "cpu",
    "eval.interval": 1000,
}
SET = [word for key, value in SETTINGS.items() for word in ("--set", f"{key}={value}")]


@pytest.fixture(scope="module")
def on_macos(folder: Path) -> dict[str, Result]:
    """Results by command or statement; leaves the runs "whole" and "stopped"."""
    items: list[list[str] | str] = [
        *MISSING["darwin"],
        *PRESENT["darwin"],
        TRIAL,
        MEMORY,
        PLACE,
        SIGNALS,
        CPUS,
        IMPORTS,
        ["sweep", "demo", "--grid", "dpo.beta=[40.0,1.0]", "--name", "whole", *SET],
        TRAIN.format(settings=SETTINGS),
        ["resume", "stopped"],
        ["check", "demo", *SET],
        ["data", "demo", *SET],
        ["runs"],
        ["show", "stopped"],
        ["clean", "stopped"],
        ["export", "stopped", "--to", "macos.pth"],
        ["eval", "macos.pth", "--data", "pairs.jsonl", "--profile", "demo"],
        ["train", "demo", *SET, "--print-launch"],
    ]
    return _by_name(items, run_on("darwin", items, folder))


READING_ON_WINDOWS = [
    ["--help"],
    ["--version"],
    ["train", "--help"],
    ["init", "my-run", "--template", "demo"],
    ["config", "show", "demo"],
    ["schema"],
    ["runs"],
    ["runs", "--json"],
    ["show", "stopped"],
    ["watch", "stopped"],
    ["stop", "stopped"],
    ["data", "demo", *SET],
    ["check", "demo", "--quick", *SET],
    ["check", "demo", *SET],
    ["compare", "stopped", "whole-A"],
    ["plot", "stopped", "--out", "plot.svg"],
    ["report", "stopped", "--out", "report.html"],
    ["report", "stopped", "--json"],
    ["chat", "stopped", "--prompt", "How are you?", "--max-new-tokens", "4"],
    ["eval", "stopped"],
    ["export", "stopped", "--to", "windows.pth"],
    ["export", "stopped", "--to", "windows.pth", "--force"],
    ["export", "stopped", "--to", "windows", "--format", "hf"],
    ["export", "stopped", "--to", "windows", "--format", "hf", "--force"],
    ["merge", "macos.pth", "stopped", "--to", "merged.pth", "--data", "pairs.jsonl"],
    ["import", "windows", "--to", "imported.pth"],
    ["clean", "--dry-run"],
    ["cache", "dir"],
    ["cache", "size"],
    ["cache", "clean"],
    ["sweep", "demo", "--grid", "dpo.beta=[1.0,2.0]", "--dry-run", *SET],
]
REFUSED_ON_WINDOWS = [
    ["train", "demo", *SET],
    ["train", "demo", *SET, "--detach"],
    ["resume", "stopped", "--set", "train.epochs=2", "--allow-changes"],
    ["sweep", "demo", "--grid", "dpo.beta=[1.0,2.0]", "--name", "other", *SET],
    ["clean", "whole-A"],
]


@pytest.fixture(scope="module")
def on_windows(folder: Path, on_macos: dict[str, Result]) -> dict[str, Result]:
    """Results of commands on the runs that the stub of macOS has trained."""
    (_newest(folder, "whole-A").checkpoints_path / "tmp-of-a-killed-worker").mkdir()
    items: list[list[str] | str] = [
        *MISSING["win32"],
        *PRESENT["win32"],
        MEMORY,
        SIGNALS,
        CPUS,
        IMPORTS,
        *READING_ON_WINDOWS,
        *REFUSED_ON_WINDOWS,
    ]
    return _by_name(items, run_on("win32", items, folder))


def _by_name(items: list[list[str] | str], results: list[Result]) -> dict[str, Result]:
    return {_name(item): result for item, result in zip(items, results, strict=True)}


def _name(item: list[str] | str) -> str:
    return item if isinstance(item, str) else shlex.join(item)


class TestControl:
    """Tests that the stub hides what it should, and nothing else."""

    @pytest.mark.parametrize("statement", MISSING["darwin"])
    def test_missing_on_macos(self, on_macos: dict[str, Result], statement: str) -> None:
        assert on_macos[statement].raised == MISSING["darwin"][statement]

    @pytest.mark.parametrize("statement", MISSING["win32"])
    def test_missing_on_windows(self, on_windows: dict[str, Result], statement: str) -> None:
        assert on_windows[statement].raised == MISSING["win32"][statement]

    @pytest.mark.parametrize("platform", PRESENT)
    def test_present(
        self, on_macos: dict[str, Result], on_windows: dict[str, Result], platform: str
    ) -> None:
        results = on_macos if platform == "darwin" else on_windows
        for statement in PRESENT[platform]:
            assert not results[statement].trace


class TestMacos:
    @pytest.mark.parametrize("statements", [TRIAL, MEMORY, PLACE, SIGNALS, CPUS, IMPORTS])
    def test_modules(self, on_macos: dict[str, Result], statements: str) -> None:
        assert not on_macos[statements].trace

    def test_commands(self, on_macos: dict[str, Result]) -> None:
        for name, result in on_macos.items():
            assert not result.code, (name, result.out, result.err)
            assert "unexpected" not in result.err, (name, result.err)

    def test_a_resumed_run_ends_with_the_same_weights(
        self, on_macos: dict[str, Result], folder: Path
    ) -> None:
        """The uninterrupted run is from a sweep, whose worker is a new process here, not a fork."""
        assert not on_macos[TRAIN.format(settings=SETTINGS)].trace
        stopped, whole = (_newest(folder, name) for name in ("stopped", "whole-A"))
        assert stopped.is_completed
        assert whole.is_completed
        states = [_final_state(run) for run in (stopped, whole)]
        assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])

    def test_a_process_ends_with_its_parent(self, tmp_path: Path) -> None:
        """Without PR_SET_PDEATHSIG a thread compares the parent's process id."""
        child = (
            "from dpo_cli.run.processes import die_with_parent; die_with_parent()\n"
            "from dpo_cli import parent_death; assert parent_death.sys.platform == 'darwin'\n"
            "import time; print('watching', flush=True); time.sleep(3600)"
        )
        parent = (
            "import sys, time\n"
            "from dpo_cli.run.processes import start_child\n"
            f"child = start_child([sys.executable, '-P', '-c', {child!r}])\n"
            "print(child.pid, flush=True); time.sleep(3600)"
        )
        process = subprocess.Popen(
            [sys.executable, "-P", "-c", parent],
            stdout=subprocess.PIPE,
            text=True,
            cwd=tmp_path,
            env=stub_environment("darwin"),
        )
        assert process.stdout is not None
        pid = int(process.stdout.readline())
        assert process.stdout.readline() == "watching\n"
        process.send_signal(signal.SIGKILL)
        process.wait()
        _wait_until(lambda: not _is_alive(pid))


class TestWindows:
    @pytest.mark.parametrize("statements", [MEMORY, SIGNALS, CPUS, IMPORTS])
    def test_modules(self, on_windows: dict[str, Result], statements: str) -> None:
        assert not on_windows[statements].trace

    @pytest.mark.parametrize("command", READING_ON_WINDOWS, ids=shlex.join)
    def test_a_command_that_trains_nothing(
        self, on_windows: dict[str, Result], command: list[str]
    ) -> None:
        result = on_windows[shlex.join(command)]
        assert not result.code, (result.out, result.err)
        assert "unexpected" not in result.err, result.err

    @pytest.mark.parametrize("command", REFUSED_ON_WINDOWS, ids=shlex.join)
    def test_a_command_that_needs_wsl(
        self, on_windows: dict[str, Result], command: list[str]
    ) -> None:
        result = on_windows[shlex.join(command)]
        assert result.code
        text = result.out + result.err
        assert "does not train or clean runs on Windows" in text
        assert "WSL" in text
        assert "unexpected" not in text

    def test_a_refusal_leaves_nothing(self, on_windows: dict[str, Result], folder: Path) -> None:
        assert len(find_runs(folder / "runs")) == 3
        assert not (folder / "runs/other.sweep").exists()


def _newest(folder: Path, name: str) -> RunDirectory:
    [run] = [
        RunDirectory(path)
        for path in (folder / "runs").rglob(f"{name}*")
        if (path / "plan.json").exists()
    ]
    return run


def _final_state(run: RunDirectory) -> dict[str, torch.Tensor]:
    plan = run.read_plan()
    assert plan is not None
    [checkpoint] = sorted(run.checkpoints_path.glob("step-*"))[-1:]
    return dict(load_weights(checkpoint))


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    state = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0]
    return state != "Z"


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + HANG_SECONDS
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
