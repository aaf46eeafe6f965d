"""Options of `train` and `resume` about several processes: --nproc, --print-launch, and --."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import typer

from dpo_cli.commands.help import HelpCommand
from dpo_cli.errors import ExitCode
from dpo_cli.profile.schema import Profile
from dpo_cli.run import launch
from dpo_cli.run.torchrun import processes_here, torchrun_arguments
from dpo_cli.shell import join
from dpo_cli.ui.terminal.console import line_console
from dpo_cli.ui.terminal.plain import PlainReport

_META_KEY = "torchrun"
_WITHOUT_OPTION = "launch.timeout_seconds"
"""The only key of [launch] for which torchrun has no option."""


class TorchrunCommand(HelpCommand):
    """Command that passes the words after -- to torchrun."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Remove the words after -- before the command's own arguments are parsed."""
        split = args.index("--") if "--" in args else len(args)
        ctx.meta[_META_KEY] = args[split + 1 :]
        return super().parse_args(ctx, args[:split])


def torchrun_words(context: typer.Context) -> list[str]:
    """Return the words after -- on the command line."""
    words: list[str] = context.meta[_META_KEY]
    return words


def nproc_setting(nproc: str | None) -> list[str]:
    """Return the option --nproc in the form of --set."""
    return [] if nproc is None else [f"launch.nproc_per_node={nproc}"]


def starter_options(nproc: str | None, torchrun: Sequence[str], detach: bool) -> list[str]:
    """Return the options in use that make no sense in a process that torchrun has started."""
    used = {"--nproc": nproc is not None, "--": bool(torchrun), "--detach": detach}
    return [option for option, is_used in used.items() if is_used]


def print_torchrun(
    profile: Profile, torchrun: Sequence[str], words: Sequence[str], settings: Sequence[str]
) -> None:
    """Print the torchrun command that starts the same training by hand.

    Args:
        profile: only its [launch] table is used.
        torchrun: extra arguments of torchrun.
        words: command line after `dpo`, without settings.
        settings: values of --set. Keys that torchrun gets as arguments are left out.
    """
    arguments = torchrun_arguments(profile.launch, processes_here(profile), torchrun)
    kept = [s for s in settings if not s.startswith("launch.") or s.startswith(_WITHOUT_OPTION)]
    words = [*words, *(word for setting in kept for word in ("--set", setting))]
    # A line break would end the command where it is pasted.
    line_console().print(join(["torchrun", *arguments, "-m", "dpo_cli", *words]), soft_wrap=True)


def join_run(profile: Profile, torchrun: Sequence[str]) -> ExitCode:
    """Run this machine's ranks of the first machine's run until they end.

    Raises:
        DpoError: ranks of this machine were lost, or the first machine was not found.
    """
    processes, own = processes_here(profile), profile.launch
    console = line_console()
    ranks = "1 rank joins" if processes == 1 else f"{processes} ranks join"
    console.print(
        f"machine {own.node_rank} of {own.nnodes}: {ranks} the run of the first machine at"
        f" {own.rdzv_endpoint}; Ctrl-C saves and stops it"
    )
    arguments = torchrun_arguments(own, processes, torchrun)
    return launch.join(arguments, PlainReport(console, "", Path()))
