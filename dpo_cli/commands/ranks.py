"""What `train` and `resume` share about ranks: how many, who starts them, which one this is."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer
from typer.core import TyperCommand

from dpo_cli.commands.session import plain_console
from dpo_cli.errors import ExitCode, UsageError
from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.schema import Profile
from dpo_cli.run import launch
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Alert
from dpo_cli.run.placement import Place, recognise
from dpo_cli.run.processes import die_with_parent
from dpo_cli.run.torchrun import agent_argv, processes_here, torchrun_arguments, usable_gpus
from dpo_cli.ui.terminal.plain import PlainReport

_TORCHRUN = "torchrun"
_OURS = "launch.timeout_seconds"
"""The key of [launch] that torchrun knows nothing of."""


class TorchrunCommand(TyperCommand):
    """A command whose words behind a -- are torchrun's."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Keep them aside: no argument of the command may take one of them."""
        split = args.index("--") if "--" in args else len(args)
        ctx.meta[_TORCHRUN] = args[split + 1 :]
        return super().parse_args(ctx, args[:split])


def torchrun_words(context: typer.Context) -> list[str]:
    """What stood behind the -- of the command line."""
    words: list[str] = context.meta[_TORCHRUN]
    return words


def nproc_setting(nproc: str | None) -> list[str]:
    """The option --nproc as one of --set."""
    return [] if nproc is None else [f"launch.nproc_per_node={nproc}"]


def take_place(refused: Sequence[str]) -> Place | None:
    """Recognise torchrun or Slurm, and be one of the ranks that it started.

    Rank 0 goes on as the launcher of the run; any other becomes a worker here and now.

    Args:
        refused: options of the command line that such a process cannot have.

    Returns:
        The place of rank 0; None if nobody started several.

    Raises:
        UsageError: the environment is half set, or options contradict it.
    """
    place = recognise(os.environ)
    if place is None:
        return None
    if refused:
        raise UsageError(
            f"{place.starter} has started {place.world_size} processes: {refused[0]} cannot be"
            " stated, too",
            f"give it to {place.starter}, or start one process by hand",
        )
    os.environ.update(place.environment)
    if place.rank:
        worker = [sys.executable, "-m", "dpo_cli.training.worker", "--join"]
        os.execv(sys.executable, worker)
    die_with_parent()
    return place


def refused_options(nproc: str | None, torchrun: Sequence[str], detach: bool) -> list[str]:
    """The options of a command line that only a process which starts others can have."""
    stated = {"--nproc": nproc is not None, "--": bool(torchrun), "--detach": detach}
    return [option for option, is_stated in stated.items() if is_stated]


def torchrun_call(
    profile: Profile, place: Place | None, torchrun: Sequence[str]
) -> list[str] | None:
    """The arguments of the torchrun that is to start the ranks; None where one worker will do.

    Args:
        profile: whose [launch] counts, unless this process has a `place` among ranks already.
        place: of rank 0, if it has one.
        torchrun: the user's own arguments of torchrun.

    Raises:
        UsageError: [launch] and train.device contradict each other.
    """
    if place:
        return None
    processes = processes_here(profile)
    if processes == 1 and profile.launch.nnodes == 1 and not torchrun:
        return None
    return torchrun_arguments(profile.launch, processes, torchrun)


def ranks_argv(
    run: RunDirectory, torchrun: Sequence[str] | None, worker: Sequence[str]
) -> Sequence[str]:
    """The command line to supervise: the worker's, or the agent's over several of them."""
    return worker if torchrun is None else agent_argv(run.path, torchrun, worker[1:])


def print_torchrun(
    profile: Profile, torchrun: Sequence[str], words: Sequence[str], settings: Sequence[str]
) -> None:
    """Print the command that starts the same by hand, on this machine.

    Args:
        profile: whose [launch] counts.
        torchrun: the user's own arguments of torchrun.
        words: the command line behind `dpo`, without settings.
        settings: of --set; what torchrun is told of [launch] is left out.
    """
    arguments = torchrun_arguments(profile.launch, processes_here(profile), torchrun)
    kept = [s for s in settings if not s.startswith("launch.") or s.startswith(_OURS)]
    words = [*words, *(word for setting in kept for word in ("--set", setting))]
    plain_console().print(shlex.join(["torchrun", *arguments, "-m", "dpo_cli", *words]))


def join_run(profile: Profile, torchrun: Sequence[str]) -> ExitCode:
    """Be a machine that joins the run of the first one, until its ranks end.

    Raises:
        DpoError: ranks of this machine were lost, or there was nobody to join.
    """
    processes, own = processes_here(profile), profile.launch
    console = plain_console()
    console.print(
        f"machine {own.node_rank} of {own.nnodes} joins with {processes} of the ranks; the run is"
        f" that of the first, at {own.rdzv_endpoint}: Ctrl-C saves and stops it"
    )
    arguments = torchrun_arguments(own, processes, torchrun)
    return launch.join(arguments, PlainReport(console, "", Path()))


def launch_alerts(
    loaded: LoadedProfile, place: Place | None, torchrun: Sequence[str]
) -> list[Alert]:
    """What there is to know about the number of ranks before they start."""
    own = loaded.profile.launch
    if place:
        asked = own.nnodes * processes_here(loaded.profile)
        if asked in (1, place.world_size):
            return []
        return [
            Alert(
                code="launch-ignored",
                message=f"[launch] asks for {asked} processes, but {place.starter} has started"
                f" {place.world_size}, and that counts",
            )
        ]
    cards = usable_gpus(loaded.profile)
    is_silent = loaded.origins["launch.nproc_per_node"] == "default" and not torchrun
    if cards < 2 or not is_silent:
        return []
    return [
        Alert(
            code="idle-cards",
            message=f"1 of {cards} GPUs used",
            remedy="--nproc auto uses all of them",
        )
    ]
