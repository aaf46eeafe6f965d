"""Number of CPU threads: by default one per physical core that this process may use."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from pathlib import Path

import torch

from dpo_cli.machine import usable_cpus

_CPU_CONTROLLERS = ("cpu", "cpu,cpuacct", "cpuacct,cpu")
"""Names under which cgroup v1 is mounted."""


def set_threads(wanted: int | None, saved: int | None = None) -> None:
    """Set the number of threads of this process's computations.

    The number decides the last bits, because sums are split among the threads. So it
    depends on no clock and no load of the machine. It is the first of these that is set: the
    profile's key, the user's OMP_NUM_THREADS, the number in the plan of a resumed run; else the
    number of physical cores.

    Args:
        wanted: `train.threads` of the profile.
        saved: the number in the plan of a resumed run; None at the start of one.
    """
    if wanted is None and os.environ.get("OMP_NUM_THREADS"):
        return  # torch has read it
    torch.set_num_threads(wanted or saved or usable_cores())


def usable_cores(root: Path = Path("/"), cpus: frozenset[int] | None = None) -> int:
    """Return the number of physical cores that this process may use, at least 1.

    Two hardware threads of a core share its arithmetic units, so a second thread per core gains
    nothing for matrix products. The limit of a container is a share of the time of all cores; more
    threads than that would be stopped in the middle of a step, and the others would wait for them.

    Args:
        root: root of the file system, which tests replace.
        cpus: CPUs of the process; None for those of its affinity.
    """
    if cpus is None:
        cpus = usable_cpus()
    cores = {_core_of(root, cpu) for cpu in cpus}
    return max(1, math.floor(min(len(cores), _cgroup_limit(root))))


def _core_of(root: Path, cpu: int) -> tuple[str, str]:
    topology = root / f"sys/devices/system/cpu/cpu{cpu}/topology"
    try:
        package, core = (
            (topology / name).read_text(encoding="ascii").strip()
            for name in ("physical_package_id", "core_id")
        )
    except (OSError, ValueError):
        return "cpu", str(cpu)
    return package, core


def _cgroup_limit(root: Path) -> float:
    """Return the number of CPUs whose time the cgroups of this process allow; inf if unlimited."""
    limits = [math.inf]
    for directory, is_v2 in _cgroups(root):
        with contextlib.suppress(OSError, ValueError):
            if is_v2:
                quota, period = (directory / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota, period = (
                    (directory / f"cpu.cfs_{name}_us").read_text(encoding="ascii").strip()
                    for name in ("quota", "period")
                )
            if quota != "max" and int(quota) > 0 and int(period) > 0:
                limits.append(int(quota) / int(period))
    return min(limits)


def _cgroups(root: Path) -> Iterator[tuple[Path, bool]]:
    """Yield the directories of this process's cgroup and of its ancestors, and True for v2.

    Inside a container the path may be that of the host and not exist; the mounted root is then the
    container's own group.
    """
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except (OSError, ValueError):
        return
    for line in lines:
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controllers and "cpu" not in controllers.split(","):
            continue
        mounts = _CPU_CONTROLLERS if controllers else ("", "unified")
        for mount in mounts:
            top = root / "sys/fs/cgroup" / mount
            group = top / path.lstrip("/")
            while group != top and top in group.parents:
                yield group, not controllers
                group = group.parent
            yield top, not controllers
