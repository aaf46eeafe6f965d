"""Fault 3: files after a power loss, derived from the system calls of a real worker.

A disk may keep or lose data that is not flushed, in any order. So before a file or a checkpoint
gets its final name, all its content must be flushed. Before the stream reports it, the directory
with the name must be flushed. strace records the calls of a whole run.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from dpo_cli.run.directory import RunDirectory
from tests.faults.conftest import arguments
from tests.support import worker_faults, workers

CALLS = "openat,write,pwrite64,writev,ftruncate,mmap,fsync,rename,renameat,mkdir,unlink,unlinkat"
_CALL = re.compile(r"(?:\d+ +)?(?P<call>\w+)\((?P<arguments>.*)\) += (?P<result>-?\w+)")
_OPENED = re.compile(r"^\d+<(?P<path>[^>]*)>")
_QUOTED = re.compile(r'"((?:[^"\\]|\\.)*)"')


def trace(run: RunDirectory, arm: workers.Arm, directory: Path) -> list[str]:
    """Return the system calls of a worker from its first line of code, one per line."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace")
    go, output = directory / "go", directory / "trace"
    worker = workers.start(run, partial(worker_faults.after_file, go, arm))
    command = ["strace", "-f", "-y", "-s", "40", "-o", output, "-e", f"trace={CALLS}"]
    tracer = subprocess.Popen([*command, "-p", str(worker.pid)], stderr=subprocess.PIPE, text=True)
    assert tracer.stderr is not None
    attached = tracer.stderr.readline()
    go.touch()
    code = workers.wait(worker, 120)
    tracer.communicate()
    if "attached" not in attached:
        pytest.skip(f"strace may not attach: {attached.strip()}")
    assert code == 0
    return output.read_text(errors="replace").splitlines()


class Disk:
    """Files and directories with changes that are not flushed yet."""

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.contents: set[str] = set()
        """Files that were written to."""
        self.entries: set[str] = set()
        """Directories in which names came or changed."""
        self.states = self.files = self.told = 0

    def take(self, line: str) -> None:
        """Process one system call, and check that earlier changes are flushed."""
        match = _CALL.match(line)
        if match is None or match["result"] == "-1":
            return
        call, rest = match["call"], match["arguments"]
        quoted = _QUOTED.findall(rest)
        opened = _OPENED.match(rest)
        on = opened["path"] if opened else ""
        if call == "mmap" and "PROT_WRITE" in rest and "MAP_SHARED" in rest:
            self.contents.update(re.findall(r"\d+<([^>]+)>", rest))
        elif call in ("write", "pwrite64", "writev", "ftruncate"):
            self.contents.add(on)
            if on == str(self.run.events_path) and "Saved" in quoted[0]:
                self._told()
        elif call == "fsync":
            self.contents.discard(on)
            self.entries.discard(on)
        elif (call == "openat" and "O_CREAT" in rest) or call == "mkdir":
            self.entries.add(str(Path(quoted[0]).parent))
        elif call in ("rename", "renameat"):
            self._renamed(*map(Path, quoted))

    def _renamed(self, source: Path, target: Path) -> None:
        if source.name.startswith("step-"):
            return  # a removed checkpoint may come back: newer ones take precedence
        within = [p for p in self.contents | self.entries if Path(p).is_relative_to(source)]
        is_state = target.parent == self.run.checkpoints_path
        if is_state and target.name.startswith("step-") and not target.name.endswith(".replaced"):
            assert not within, f"{target.name} gets its name before {within} are flushed"
            rows = str(self.run.events_path)
            assert rows not in self.contents, f"{target.name} would outlive the rows that made it"
            self.states += 1
        elif target.parent == self.run.path and not target.name.endswith(".tmp"):
            assert not within, f"{target.name} gets its name before it is flushed"
            self.files += 1
        self.contents -= set(within)
        self.entries |= {str(source.parent), str(target.parent)}

    def _told(self) -> None:
        names = {str(self.run.path), str(self.run.checkpoints_path)}
        assert not names & self.entries, "Saved is told before the names are flushed"
        self.told += 1


def disk_after(run: RunDirectory, arm: workers.Arm, directory: Path) -> Disk:
    disk = Disk(run)
    for line in trace(run, arm, directory):
        if str(run.path) in line:
            disk.take(line)
    return disk


def test_files_are_flushed_before_they_are_announced(shared: Path, tmp_path: Path) -> None:
    run = workers.new_run(tmp_path, arguments(shared, epochs=1))
    disk = disk_after(run, partial(worker_faults.own_cache, tmp_path / "cache"), tmp_path)
    assert disk.states == disk.told == 4
    # The weights of each checkpoint; the log-probs of the reference computed by then, and those of
    # the held-out pairs, each with a manifest; the plan, the skipped rows, COMPLETED.
    assert disk.files == 4 + 2 * (4 + 1) + 3


@pytest.mark.parametrize("kind", ["file", "directory", "stream"])
def test_a_flush_left_out_is_noticed(shared: Path, tmp_path: Path, kind: str) -> None:
    """Negative control: a missing flush is noticed."""
    run = workers.new_run(tmp_path, arguments(shared, epochs=1))
    with pytest.raises(AssertionError, match=r"flushed|outlive"):
        disk_after(run, partial(worker_faults.without_flushing, kind), tmp_path)
