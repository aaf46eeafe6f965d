"""Tests of the number of threads: affinity, limits of cgroups, and explicit settings."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dpo_cli.compute import threads
from dpo_cli.compute.threads import set_threads, usable_cores

EIGHT = frozenset(range(8))


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def machine(root: Path, cpus: int = 8, threads_per_core: int = 1) -> Path:
    """Write the topology of one package."""
    for cpu in range(cpus):
        topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
        write(topology / "physical_package_id", "0\n")
        write(topology / "core_id", f"{cpu // threads_per_core}\n")
    return root


def test_cores_of_the_affinity(tmp_path: Path) -> None:
    root = machine(tmp_path, threads_per_core=2)
    assert usable_cores(root, EIGHT) == 4
    assert usable_cores(root, frozenset({0, 1})) == 1
    assert usable_cores(root, frozenset({0, 2, 3})) == 2
    assert usable_cores(tmp_path / "none", frozenset({0, 1, 5})) == 3  # no topology
    assert usable_cores() >= 1


@pytest.mark.parametrize(
    ("limit", "cores"),
    [("200000 100000", 2), ("150000 100000", 1), ("50000 100000", 1), ("max 100000", 8), ("x", 8)],
)
def test_limit_of_a_container(tmp_path: Path, limit: str, cores: int) -> None:
    root = machine(tmp_path)
    write(root / "proc/self/cgroup", "0::/\n")
    write(root / "sys/fs/cgroup/cpu.max", f"{limit}\n")
    assert usable_cores(root, EIGHT) == cores


def test_the_tightest_limit_of_all_groups_counts(tmp_path: Path) -> None:
    root = machine(tmp_path)
    write(root / "proc/self/cgroup", "0::/user.slice/job\n")
    write(root / "sys/fs/cgroup/user.slice/job/cpu.max", "max 100000\n")
    write(root / "sys/fs/cgroup/user.slice/cpu.max", "300000 100000\n")
    assert usable_cores(root, EIGHT) == 3


@pytest.mark.parametrize("path", ["/docker/1234", "/"])
def test_the_limit_of_cgroup_version_1(tmp_path: Path, path: str) -> None:
    """Inside a container the path of the group is that of the host, which does not exist there."""
    root = machine(tmp_path)
    write(root / "proc/self/cgroup", f"5:memory:{path}\n4:cpu,cpuacct:{path}\n")
    write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "400000\n")
    write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n")
    write(root / "sys/fs/cgroup/memory/cpu.max", "100000 100000\n")
    assert usable_cores(root, EIGHT) == 4
    write(root / "sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n")
    assert usable_cores(root, EIGHT) == 8


def test_the_order_of_what_decides(monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    monkeypatch.setattr(threads, "usable_cores", lambda: 6)
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    set_threads(None)
    set_threads(None, saved=4)
    assert found == []  # torch itself reads the variable
    set_threads(2, saved=4)
    monkeypatch.delenv("OMP_NUM_THREADS")
    set_threads(2, saved=4)
    set_threads(None, saved=4)
    set_threads(None)
    assert found == [2, 2, 4, 6]
