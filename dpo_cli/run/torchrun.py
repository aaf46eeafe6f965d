"""Command lines of torchrun and of the agent that runs it, from a profile's [launch] table."""

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
_ONE_MACHINE = "localhost:0"  # a free port; no other machine has to find it
_LOOPBACK = ("localhost", "127.", "[::1]")


def usable_gpus(profile: Profile) -> int:
    """Return the number of CUDA GPUs that ranks of this profile could use."""
    device = profile.train.device
    return count_gpus() if device in ("auto", "cuda") else int(device.startswith("cuda"))


def processes_here(profile: Profile) -> int:
    """Return the number of processes that [launch] asks for on this machine.

    Raises:
        UsageError: [launch] asks for several, and train.device names one GPU.
    """
    asked = profile.launch.nproc_per_node
    processes = max(1, usable_gpus(profile)) if asked == "auto" else asked
    if processes > 1 and profile.train.device.startswith("cuda:"):
        raise UsageError(
            f"launch.nproc_per_node = {asked}: train.device = {profile.train.device!r} is one GPU",
            'Set train.device = "cuda": each process then takes its own GPU.',
        )
    return processes


def require_shards(profile: Profile, world_size: int | None) -> None:
    """Refuse `launch.strategy = "shard"` for a run that cannot be sharded.

    Args:
        profile: profile of the run.
        world_size: number of processes on all machines; None if it is unknown.

    Raises:
        UsageError: a single process trains, or a setting does not work with shards.
    """
    if profile.launch.strategy != "shard":
        return
    what, train = 'launch.strategy = "shard"', profile.train
    if world_size == 1:
        raise UsageError(
            f"{what}: a single process trains, and shards need two or more",
            'Set launch.nproc_per_node to 2 or more, or launch.strategy = "replicate".',
        )
    unsupported = {
        "lora.rank": profile.lora.is_on,
        "model.quantization": profile.model.quantization is not None,
        'model.weights_dtype = "bfloat16"': profile.model.weights_dtype != "float32",
        f'train.optimizer = "{train.optimizer}"': train.optimizer not in ("adamw", "sgd"),
        'train.dtype = "float16"': train.dtype == "float16",
        "train.compile": train.compile,
    }
    if found := [setting for setting, is_set in unsupported.items() if is_set]:
        raise UsageError(
            f"{what} does not work with {' and '.join(found)}",
            'Remove the setting, or set launch.strategy = "replicate". Shards train all weights'
            ' with "adamw" or "sgd", in float32 or bfloat16.',
        )


def torchrun_arguments(launch: Launch, processes: int, more: Sequence[str] = ()) -> list[str]:
    """Return the arguments of torchrun, without the command of the ranks.

    Args:
        launch: [launch] table of the profile.
        processes: number of ranks on this machine.
        more: arguments of the user; the last value of an option counts.
    """
    words = ["--nnodes", str(launch.nnodes), "--nproc-per-node", str(processes)]
    words += ["--rdzv-backend", launch.rdzv_backend]
    words += ["--rdzv-endpoint", launch.rdzv_endpoint or _ONE_MACHINE]
    words += ["--rdzv-id", _RENDEZVOUS]
    if launch.rdzv_backend == "static":
        words += ["--node-rank", str(launch.node_rank)]
    elif launch.rdzv_backend == "c10d" and launch.nnodes > 1:
        # Torchrun would guess from the machine's own name, which is often a loopback address.
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
    """Return the address of this machine on the way to `endpoint`; None if that is unclear.

    The other machines connect to it. Torchrun would send them this machine's full name, which not
    every network can resolve.
    """
    host, _, port = endpoint.rpartition(":")
    is_loopback = host.startswith(_LOOPBACK)
    try:
        [(family, _, _, _, address), *_] = socket.getaddrinfo(
            host.strip("[]"), int(port) or 1, type=socket.SOCK_DGRAM
        )
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            probe.connect(address)  # for UDP this chooses a route and sends nothing
            own = str(probe.getsockname()[0])
    except (OSError, OverflowError):
        return None
    # A loopback address is useful only if all machines are this one.
    if own.startswith("127.") or own == "::1":
        return own if is_loopback else None
    return own
