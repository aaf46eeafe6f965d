"""Number of ranks of a run and the command line that starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from dpo_cli.errors import UsageError
from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.schema import Profile
from dpo_cli.run import processes
from dpo_cli.run.child_environment import PARENT_PID, child_environment
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.run.placement import Place, recognize
from dpo_cli.run.torchrun import (
    agent_argv,
    processes_here,
    require_shards,
    torchrun_arguments,
    usable_gpus,
)


def take_place(refused: Sequence[str]) -> Place | None:
    """Detect torchrun or Slurm and take the place of the rank that it gave this process.

    Rank 0 continues as the launcher of the run. Every other rank replaces itself by a worker.

    Args:
        refused: options of the command line that such a process cannot have.

    Returns:
        The place of rank 0; None if no other program started this process as a rank.

    Raises:
        UsageError: the environment is incomplete, or contradicts an option.
    """
    place = recognize(os.environ)
    if place is None:
        return None
    if refused:
        raise UsageError(
            f"{place.starter} has started {place.world_size} processes; {refused[0]} has no effect"
            " here",
            f"Give the option to {place.starter}, or start one process by hand.",
        )
    os.environ.update(place.environment)
    starter = os.getppid()
    processes.die_with_parent(starter)  # holds across execve, too
    if place.rank:
        worker = processes.module_argv("dpo_cli.training.worker", "--join")
        os.execve(worker[0], worker, {**child_environment(), PARENT_PID: str(starter)})
    return place


def torchrun_call(
    profile: Profile, place: Place | None, torchrun: Sequence[str]
) -> list[str] | None:
    """Return the arguments of the torchrun that starts the ranks; None for a single worker.

    Args:
        profile: its [launch] table is used; if this process has a `place`, only the strategy.
        place: place of rank 0 if torchrun or Slurm started this process.
        torchrun: extra arguments of torchrun.

    Raises:
        UsageError: [launch] contradicts train.device, or asks for shards that are not possible.
    """
    if place:
        require_shards(profile, place.world_size)
        return None
    count = processes_here(profile)
    # Arguments of torchrun may set another number.
    require_shards(profile, None if torchrun else count * profile.launch.nnodes)
    if count == 1 and profile.launch.nnodes == 1 and not torchrun:
        return None
    return torchrun_arguments(profile.launch, count, torchrun)


def ranks_argv(
    run: RunDirectory, torchrun: Sequence[str] | None, worker: Sequence[str]
) -> Sequence[str]:
    """Return the command line to launch: the worker's, or the agent's over several workers."""
    return worker if torchrun is None else agent_argv(run.path, torchrun, worker)


def launch_alerts(
    loaded: LoadedProfile, place: Place | None, torchrun: Sequence[str]
) -> list[Alert]:
    """Return alerts about the number of ranks: an ignored [launch] table, idle GPUs."""
    own = loaded.profile.launch
    if place:
        asked = own.nnodes * processes_here(loaded.profile)
        if asked in (1, place.world_size):
            return []
        return [
            Alert(
                code="launch-ignored",
                message=f"[launch] asks for {asked} processes, but {place.starter} has started"
                f" {place.world_size}: [launch] is ignored",
            )
        ]
    gpus = usable_gpus(loaded.profile)
    is_default = loaded.origins["launch.nproc_per_node"] == "default" and not torchrun
    if gpus < 2 or not is_default:
        return []
    return [
        Alert(
            code="idle-gpus",
            message=f"1 of {gpus} GPUs used",
            remedy="Use all of them with --nproc auto.",
        )
    ]
