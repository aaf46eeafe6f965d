"""Command line of the agent, torchrun's with the profile's [launch] as options."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from dpo_cli.errors import UsageError
from dpo_cli.run.gpus import count_gpus
from dpo_cli.run.processes import module_argv

if TYPE_CHECKING:
    from dpo_cli.profile.launch import Launch
    from dpo_cli.profile.schema import Profile

_RENDEZVOUS = "dpo"
_ONE_MACHINE = "localhost:0"
"""A port is found, and nobody else needs to know it."""
_LOOPBACK = ("localhost", "127.", "[::1]")


def usable_gpus(profile: Profile) -> int:
    """CUDA cards that ranks of this profile could spread over."""
    device = profile.train.device
    return count_gpus() if device in ("auto", "cuda") else int(device.startswith("cuda"))


def processes_here(profile: Profile) -> int:
    """Processes that [launch] asks for on this machine.

    Raises:
        UsageError: there are to be several, and train.device names one card.
    """
    asked = profile.launch.nproc_per_node
    processes = max(1, usable_gpus(profile)) if asked == "auto" else asked
    if processes > 1 and profile.train.device.startswith("cuda:"):
        raise UsageError(
            f"launch.nproc_per_node = {asked}: train.device = {profile.train.device!r} is one card",
            'each process takes a card of its own with train.device = "cuda"',
        )
    return processes


def torchrun_arguments(launch: Launch, processes: int, more: Sequence[str] = ()) -> list[str]:
    """The arguments of torchrun, without what it is to run.

    Args:
        launch: of the profile.
        processes: on this machine.
        more: from the user, which override those before them.
    """
    words = ["--nnodes", str(launch.nnodes), "--nproc-per-node", str(processes)]
    words += ["--rdzv-backend", launch.rdzv_backend]
    words += ["--rdzv-endpoint", launch.rdzv_endpoint or _ONE_MACHINE]
    words += ["--rdzv-id", _RENDEZVOUS]
    if launch.rdzv_backend == "static":
        words += ["--node-rank", str(launch.node_rank)]
    elif launch.rdzv_backend == "c10d" and launch.nnodes > 1:
        # Else torchrun guesses by the machine's name, which may stand for a loopback address.
        words += ["--rdzv-conf", f"is_host={'false' if launch.node_rank else 'true'}"]
    if address := _own_address(launch.rdzv_endpoint or _ONE_MACHINE):
        words += ["--local-addr", address]
    return [*words, "--max-restarts", str(launch.max_restarts), *more]


def agent_argv(run: Path, arguments: Sequence[str], command: Sequence[str]) -> list[str]:
    """Return the command line of the process that starts and watches the ranks.

    Args:
        run: run directory, to whose event stream the agent appends lost ranks.
        arguments: of torchrun.
        command: command line of each rank, which begins with a Python interpreter.
    """
    # With --no-python torchrun runs the command as it is; its own `python -m` would lack `-P`.
    # `-u` is what torchrun adds itself: a rank's last lines must not be lost in a buffer.
    agent = module_argv("dpo_cli.distributed.agent", "--run", str(run))
    python, *rest = command
    return [*agent, "--", *arguments, "--no-python", python, "-u", *rest]


def _own_address(endpoint: str) -> str | None:
    """The address of this machine that others who meet at `endpoint` reach it by, if that shows.

    Torchrun would take the machine's full name, which not every network can resolve.
    """
    host, _, port = endpoint.rpartition(":")
    is_loopback = host.startswith(_LOOPBACK)
    try:
        [(family, _, _, _, place), *_] = socket.getaddrinfo(
            host.strip("[]"), int(port) or 1, type=socket.SOCK_DGRAM
        )
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(place)  # sends nothing
            address = str(probe.getsockname()[0])
    except (OSError, OverflowError):
        return None
    if address.startswith("127.") or address == "::1":
        return address if is_loopback else None
    return address
