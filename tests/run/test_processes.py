"""Tests of child processes: imports, and their end when the parent dies."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dpo_cli.run.child_environment import child_environment
from dpo_cli.run.processes import module_argv, start_child
from tests.support.cli import DPO, HANG_SECONDS, REPOSITORY, run_in

DIES_WITH_PARENT = "from dpo_cli.run.processes import die_with_parent; die_with_parent()"


SHADOWED = ("torch", "argparse", "typer", "json", "sitecustomize")


@pytest.fixture
def shadowed(tmp_path: Path) -> Path:
    """Working directory with modules that create a file when they are imported."""
    for name in SHADOWED:
        (tmp_path / f"{name}.py").write_text("open('imported', 'w')\n")
    return tmp_path


@pytest.mark.parametrize("module", ["dpo_cli.training.worker", "dpo_cli.distributed.agent"])
def test_no_module_of_the_working_directory_is_imported(
    shadowed: Path, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """This holds even if PYTHONPATH has an empty entry, which Python takes for that directory."""
    monkeypatch.chdir(shadowed)
    monkeypatch.setenv("PYTHONPATH", f"{os.pathsep}{REPOSITORY}{os.pathsep}.")
    argv = module_argv(module, "--help", *(["--"] if module.endswith("agent") else []))
    assert start_child(argv, output=subprocess.DEVNULL).wait(60) == 0
    assert not (shadowed / "imported").exists()


@pytest.mark.parametrize("entries", ["", f"{os.pathsep}."])
def test_dpo_itself_imports_nothing_of_the_working_directory(shadowed: Path, entries: str) -> None:
    """It holds for `python -m dpo_cli` (used by torchrun), and for an empty entry in PYTHONPATH."""
    (
        shadowed / "sitecustomize.py"
    ).unlink()  # Python imports sitecustomize before any code of this package
    done = run_in(shadowed, [*DPO, "--version"], PYTHONPATH=f"{REPOSITORY}{entries}")
    assert done.returncode == 0, done.stderr
    assert not (shadowed / "imported").exists()


def test_the_worker_imports_the_installed_torch(tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("open('imported', 'w')\n")
    environment = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0"}
    environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "OMP_NUM_THREADS": "1"}
    environment |= {"TORCHELASTIC_ERROR_FILE": str(tmp_path / "error.json")}
    argv = module_argv("dpo_cli.distributed.probe", "cpu")
    child = {**child_environment(), **environment}
    done = subprocess.run(argv, cwd=tmp_path, env=child, timeout=HANG_SECONDS, check=False)
    assert not (tmp_path / "imported").exists()
    assert done.returncode == 0


def test_one_module_starts_all_children() -> None:
    """Any other start would lack `-P`, open streams, or the pid of the parent.

    The fork of `trial.py` starts no program; it calls `die_with` (`tests/data/test_trial.py`).
    """
    of_os = r"os\.(fork|spawn|system|popen|posix_spawn)\w*\("
    starts = rf"sys\.executable|Popen\(|subprocess\.(run|call|check)|{of_os}"
    for path in (REPOSITORY / "dpo_cli").rglob("*.py"):
        if path.name not in ("processes.py", "trial.py"):
            found = re.search(starts, path.read_text())
            assert not found, (path, found)


def test_an_orphan_of_a_dead_parent_exits_at_once(tmp_path: Path) -> None:
    alive = tmp_path / "alive"
    late = f"import time; time.sleep(1); {DIES_WITH_PARENT}; open({str(alive)!r}, 'w')"
    parent = "\n".join(
        [
            "import os, sys",
            "from dpo_cli.run.processes import start_child",
            f"child = start_child([sys.executable, '-c', {late!r}])",
            "print(child.pid, flush=True)",
            "os._exit(0)",  # before the child has called die_with_parent
        ]
    )
    done = subprocess.run(
        [sys.executable, "-c", parent],
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
        check=True,
    )
    status = Path("/proc", done.stdout.strip(), "stat")
    deadline = time.monotonic() + 60
    while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline, "the orphan is still running"
        time.sleep(0.05)
    assert not alive.exists()


def test_a_child_of_a_living_parent_runs_and_does_not_hand_the_pid_on() -> None:
    check = f"{DIES_WITH_PARENT}; import os, sys; sys.exit('DPO_PARENT_PID' in os.environ)"
    assert start_child([sys.executable, "-c", check]).wait(60) == 0


def test_a_child_with_another_parent_dies() -> None:
    environment = {**os.environ, "DPO_PARENT_PID": str(os.getpid() + 1)}
    argv = [sys.executable, "-c", DIES_WITH_PARENT]
    done = subprocess.run(argv, env=environment, timeout=HANG_SECONDS, check=False)
    assert done.returncode == -signal.SIGKILL


def test_agent_and_worker_import_no_torch_before_their_signal_handlers() -> None:
    """Torch takes seconds: a Ctrl-C or the launcher's death in that time must be handled."""
    code = (
        "import sys, dpo_cli.distributed.agent, dpo_cli.training.worker\n"
        "sys.exit('torch' in sys.modules or 'pydantic' in sys.modules)"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], timeout=HANG_SECONDS, check=False).returncode
        == 0
    )
