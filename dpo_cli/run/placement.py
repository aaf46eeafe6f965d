"""Which of several processes this one is, where torchrun or Slurm has started them all."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.files import write_text_atomically
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_runs

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MASTER = ("MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 10_000, 20_000
"""Below those that the kernel gives away."""
_MARK = "torchrun.json"


@dataclass(frozen=True)
class Place:
    """One of `world_size` processes, which `starter` has started.

    `environment` is what torch reads; of torchrun, `group` names the one that started this process.
    """

    starter: str
    rank: int
    world_size: int
    environment: Mapping[str, str]
    group: str = ""


def recognize(environment: Mapping[str, str]) -> Place | None:
    """The place that the environment gives this process; None where it stands alone.

    Raises:
        UsageError: the environment is half set, or makes no sense.
    """
    is_elastic = "TORCHELASTIC_RUN_ID" in environment
    if is_elastic or environment.get("WORLD_SIZE", "1") != "1":
        return _of_torchrun(environment)
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _of_slurm(environment)
    return None


def _of_torchrun(environment: Mapping[str, str]) -> Place:
    names = (*_RANK, *_MASTER)
    if missing := [name for name in names if name not in environment]:
        there = [name for name in names if name in environment]
        raise UsageError(
            f"the environment has {' and '.join(there)}, but not {' and '.join(missing)}",
            "torchrun sets all of them; unset them to train with [launch] of the profile",
        )
    rank, local_rank, world_size = (_number(environment, name) for name in _RANK)
    if not max(rank, local_rank) < world_size:
        raise UsageError(
            f"the environment has RANK={rank}, LOCAL_RANK={local_rank} and WORLD_SIZE={world_size}:"
            " ranks are counted from 0",
            "unset them, or start with torchrun, which sets them",
        )
    starter = f"{socket.gethostname()}:{os.getppid()}:{_started(os.getppid())}"
    group = f"{environment.get('TORCHELASTIC_RUN_ID', '')} {starter}"
    return Place("torchrun", rank, world_size, {}, group)


def _of_slurm(environment: Mapping[str, str]) -> Place:
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    if missing := [name for name in names if name not in environment]:
        raise UsageError(
            f"the environment has SLURM_STEP_NUM_TASKS, but not {' and '.join(missing)}",
            "srun sets all of them",
        )
    rank, local_rank, world_size = (_number(environment, name) for name in names)
    own = dict(zip(_RANK, map(str, (rank, local_rank, world_size)), strict=True))
    if "MASTER_ADDR" not in environment:
        nodes = environment.get("SLURM_STEP_NODELIST") or environment.get("SLURM_JOB_NODELIST", "")
        own["MASTER_ADDR"] = first_host(nodes)
    if "MASTER_PORT" not in environment:
        job, step = (int(environment.get(f"SLURM_{name}ID", "0")) for name in ("JOB_", "STEP_"))
        own["MASTER_PORT"] = str(_FIRST_PORT + (job + step) % _PORTS)
    return Place("srun", rank, world_size, own)


def first_host(nodes: str) -> str:
    """The first of a list of hosts as Slurm writes it: node[03-06,9],gpu1 is node03.

    Raises:
        UsageError: it names none.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else "")
    if not host:
        raise UsageError(
            f"Slurm's list of hosts names none: {nodes!r}",
            "set MASTER_ADDR to the host of the first task",
        )
    return host


def mark_run(run: RunDirectory, place: Place) -> None:
    """Write down which torchrun began a run, so that its next attempt goes on with it."""
    write_text_atomically(run.path / _MARK, json.dumps({"group": place.group}) + "\n")


def begun_run(root: Path, place: Place) -> RunDirectory | None:
    """The run under `root` that an earlier attempt of the same torchrun began; None if none did."""
    for run in find_runs(root):
        try:
            mark = json.loads((run.path / _MARK).read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            continue
        if mark.get("group") == place.group:
            return run
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UsageError(f"the environment has {name}={text!r}: no whole number", f"unset {name}")
    return int(text)


def _started(pid: int) -> str:
    """When a process was started, so that its id cannot be taken for that of an earlier one."""
    return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
