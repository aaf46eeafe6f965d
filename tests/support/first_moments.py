"""Child processes that are paused right after their start while their parent is killed.

A parent is a new process that starts one child as this package does, stops it (SIGSTOP) after
`delay` seconds, and prints the child's process id. The parent is killed, and only then the child
goes on: it never sees its parent alive again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time

from dpo_cli.run.directory import RunDirectory
from tests.support.cli import HANG_SECONDS, environment
from tests.support.process_faults import is_gone

_BEGIN = """
import os, signal, sys, time
from pathlib import Path
from dpo_cli.run import launch, processes, spawn
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.torchrun import agent_argv

run = RunDirectory(Path(sys.argv[1]))
lock = run.lock()
log = os.open(run.worker_log_path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
worker = launch.worker_argv(run)

def train():
    time.sleep(600)
"""
_END = """
time.sleep(float(sys.argv[2]))
os.kill(pid, signal.SIGSTOP)
print(pid, flush=True)
time.sleep(600)
"""
# How the launcher, the agent and a sweep start each kind of child.
KINDS = {
    "worker": "pid = processes.start_worker(worker, log, lock).pid",
    "agent": "agent = agent_argv(run.path, ['--nproc-per-node', '2'], worker)\n"
    "pid = processes.start_worker(agent, log, lock).pid",
    # Torchrun starts the ranks with the environment of the agent.
    "rank": "import subprocess\nprocesses.hand_down_pid()\n"
    "pid = subprocess.Popen(worker, stdout=log, stderr=log, pass_fds=(lock,)).pid",
    "probe": "import subprocess\nprocesses.hand_down_pid()\n"
    "pid = subprocess.Popen(processes.module_argv('dpo_cli.distributed.probe', 'cpu')).pid",
    "sweep": "pid = processes.fork(train).pid",
    "trackers": "from dpo_cli.run.tracking.supervisor import feeder_argv\n"
    "import subprocess\n"
    "feeder = processes.start_child(feeder_argv(run), stdin=subprocess.PIPE, output=log)\n"
    "pid = feeder.pid",
}


def orphan(kind: str, run: RunDirectory, delay: float = 0.0) -> float:
    """Kill the parent of a stopped child, and let the child continue.

    Args:
        kind: a key of `KINDS`.
        run: run without a worker; with trackers for "trackers".
        delay: seconds between the start of the child and its stop.

    Returns:
        The seconds until the child has ended.

    Raises:
        AssertionError: the child does not end, or keeps the lock of the run.
    """
    script = f"{_BEGIN}\n{KINDS[kind]}\n{_END}"
    command = [sys.executable, "-c", script, str(run.path), str(delay)]
    with subprocess.Popen(
        command, env=environment(), cwd=run.path, stdout=subprocess.PIPE, text=True
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.kill()
    began = time.monotonic()
    with contextlib.suppress(ProcessLookupError):  # killed by the kernel though it was stopped
        os.kill(pid, signal.SIGCONT)
    while not is_gone(pid):
        assert time.monotonic() - began < HANG_SECONDS, f"the {kind} lives on"
        time.sleep(0.005)
    seconds = time.monotonic() - began
    while run.holder() is not None:  # for an instant, until the last thread has ended
        assert time.monotonic() - began < HANG_SECONDS, f"the {kind} held the lock"
        time.sleep(0.005)
    return seconds
