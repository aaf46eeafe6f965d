"""Rank of this process, if torchrun or Slurm has started it."""

from __future__ import annotations

import json
import os
import re
import socket
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dpo_cli.errors import UsageError
from dpo_cli.files import read_regular, write_text_atomically
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.lookup import find_runs

_RANK = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_MASTER = ("MASTER_ADDR", "MASTER_PORT")
_FIRST_PORT, _PORTS = 10_000, 20_000  # below the kernel's ephemeral ports, from 32768
_MARK = "torchrun.json"


@dataclass(frozen=True)
class Place:
    """Place of this process among those that another program started.

    Args:
        starter: "torchrun" or "srun".
        rank: rank of this process.
        world_size: number of processes.
        environment: variables to add for torch.
        group: identifies the torchrun process that started this one, across its restarts of ranks;
            empty for srun.
    """

    starter: str
    rank: int
    world_size: int
    environment: Mapping[str, str]
    group: str = ""


def recognize(environment: Mapping[str, str]) -> Place | None:
    """Return the place of this process; None if it was started alone.

    Raises:
        UsageError: the environment is incomplete or contradictory.
    """
    is_elastic = "TORCHELASTIC_RUN_ID" in environment
    if is_elastic or environment.get("WORLD_SIZE", "1") != "1":
        return _from_torchrun(environment)
    if environment.get("SLURM_STEP_NUM_TASKS", "1") != "1":
        return _from_slurm(environment)
    return None


def _from_torchrun(environment: Mapping[str, str]) -> Place:
    names = (*_RANK, *_MASTER)
    if missing := [name for name in names if name not in environment]:
        there = [name for name in names if name in environment]
        raise UsageError(
            f"the environment sets {' and '.join(there)}, but not {' and '.join(missing)}",
            "Start with torchrun, which sets all of them, or unset them to train with [launch] of"
            " the profile.",
        )
    rank, local_rank, world_size = (_number(environment, name) for name in _RANK)
    if not max(rank, local_rank) < world_size:
        raise UsageError(
            f"the environment sets RANK={rank}, LOCAL_RANK={local_rank} and"
            f" WORLD_SIZE={world_size}: ranks are counted from 0",
            "Unset them, or start with torchrun, which sets them.",
        )
    starter = f"{socket.gethostname()}:{os.getppid()}:{_start_time(os.getppid())}"
    group = f"{environment.get('TORCHELASTIC_RUN_ID', '')} {starter}"
    return Place("torchrun", rank, world_size, {}, group)


def _from_slurm(environment: Mapping[str, str]) -> Place:
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_STEP_NUM_TASKS")
    if missing := [name for name in names if name not in environment]:
        raise UsageError(
            f"the environment sets SLURM_STEP_NUM_TASKS, but not {' and '.join(missing)}",
            "Start with srun, which sets all of them.",
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
    """Return the first host of a list in Slurm's syntax: node03 for node[03-06,9],gpu1.

    Raises:
        UsageError: the list contains no host.
    """
    first = re.match(r"(?:[^,\[]|\[[^\]]*\])*", nodes)
    host = re.sub(r"\[(\w+)[^\]]*\]", r"\1", first[0] if first else "")
    if not host:
        raise UsageError(
            f"Slurm's list of hosts contains no host: {nodes!r}",
            "Set MASTER_ADDR to the host of the first task.",
        )
    return host


def mark_run(run: RunDirectory, place: Place) -> None:
    """Record which torchrun started a run, so that its next attempt resumes the run."""
    write_text_atomically(run.path / _MARK, json.dumps({"group": place.group}) + "\n")


def begun_run(root: Path, place: Place) -> RunDirectory | None:
    """Return the run under `root` that an earlier attempt of this torchrun started, or None."""
    for run in find_runs(root):
        try:
            mark = json.loads(read_regular(run.path / _MARK))
        except (OSError, ValueError, RecursionError):
            continue
        if mark == {"group": place.group}:
            return run
    return None


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment[name]
    if not text.isdecimal():
        raise UsageError(
            f"the environment sets {name}={text!r}, which is no whole number", f"Unset {name}."
        )
    return int(text)


def _start_time(pid: int) -> str:
    """Return the start time of a process, in clock ticks since boot or in seconds since 1970.

    Together with the process id it identifies the process: ids are reused.
    """
    # Field 22 of /proc/PID/stat; the command name before it may contain spaces and parentheses.
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8")
    except FileNotFoundError:  # not Linux
        import psutil

        return str(psutil.Process(pid).create_time())
    return text.rpartition(")")[2].split()[19]
