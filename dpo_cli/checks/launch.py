"""Whether several ranks can train together here, and what their number does to the recipe."""

from __future__ import annotations

import os
import socket
import subprocess
import tempfile
from dataclasses import replace
from pathlib import Path

import torch
from torch import distributed

from dpo_cli.checks.reporter import Reporter
from dpo_cli.compute.device import Device
from dpo_cli.data.sampler import BatchSampler
from dpo_cli.distributed.probe import backend_for
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Failed, RankEnded
from dpo_cli.run.exit_reason import rank_ending
from dpo_cli.run.placement import recognize
from dpo_cli.run.processes import child_environment, module_argv
from dpo_cli.run.torchrun import agent_argv, processes_here, torchrun_arguments
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.sources import OnProgress

_PROBE_SECONDS = 120.0


def check_launch(
    reporter: Reporter, profile: Profile, device: Device, on_progress: OnProgress
) -> int | None:
    """Look at all that several ranks need; one alone needs nothing.

    Returns:
        How many ranks there would be over all machines; None where that is not clear.
    """
    place = None
    before = len(reporter.findings)
    with reporter.errors_as("launch-environment", "environment"):
        place = recognize(os.environ)
    if place:
        message = f"rank {place.rank} of {place.world_size}; [launch] does not count"
        reporter.ok("launch-environment", place.starter, message)
        return place.world_size
    processes = None
    with reporter.errors_as("launch-devices", "launch.nproc_per_node"):
        processes = processes_here(profile)
    if processes is None or len(reporter.findings) > before:
        return None
    world_size = processes * profile.launch.nnodes
    if world_size == 1:
        _note_idle_cards(reporter, device)
        return 1
    if profile.launch.nnodes > 1:
        _check_endpoint(reporter, profile.launch)
    if _check_devices(reporter, processes, device):
        on_progress(f"starting {processes} ranks", 0, 0, "")
        _check_sum(reporter, processes, device)
    else:
        reporter.skip("all-reduce", "a device for each process")
    return world_size


def check_world_size(reporter: Reporter, inputs: RunInputs, world_size: int) -> None:
    """What so many ranks make of the recipe: updates, and how far they can move the weights."""
    train, subject = inputs.profile.train, "train.global_batch_size"
    alone = inputs.order
    together = None
    with reporter.errors_as("launch-batches", subject):
        window = train.accumulation_on(world_size) * world_size
        together = replace(alone, accumulation_steps=window)
    if together is None:
        return
    message = (
        f"1 process: {alone.optimizer_steps:,} updates of {_pairs(alone)} pairs, learning rates add"
        f" up to {_reach(inputs, alone):.2g}; {world_size}: {together.optimizer_steps:,} of"
        f" {_pairs(together)}, {_reach(inputs, together):.2g}"
    )
    if together.accumulation_steps == alone.accumulation_steps:
        reporter.ok("launch-reach", subject, f"{message}: the same recipe")
        return
    remedy = f"train.global_batch_size = {_pairs(alone)} trains the same recipe on any number"
    if alone.accumulation_steps % world_size:
        remedy += f", with a lower train.batch_size: {world_size} processes have to share it"
    reporter.warn("launch-reach", subject, message, remedy)


def _note_idle_cards(reporter: Reporter, device: Device) -> None:
    cards = torch.cuda.device_count() if device.type == "cuda" else 0
    if cards > 1:
        reporter.warn(
            "idle-cards",
            "launch.nproc_per_node",
            f"1 of {cards} GPUs used",
            '--nproc auto, or launch.nproc_per_node = "auto", uses all of them',
        )


def _check_endpoint(reporter: Reporter, launch: Launch) -> None:
    """Where the machines meet: a name that resolves, and on the first machine a free port."""
    endpoint = launch.rdzv_endpoint or ""
    host, _, port = endpoint.rpartition(":")
    subject = f"launch.rdzv_endpoint = {endpoint}"
    try:
        [(family, kind, _, _, address), *_] = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM
        )
    except (OSError, OverflowError) as error:
        reporter.error(
            "endpoint-unknown",
            subject,
            f"{host} cannot be resolved: {error}",
            "state the address of the first machine, or a name that all of them know",
        )
        return
    if launch.node_rank or launch.rdzv_backend == "etcd-v2":
        reporter.ok("endpoint", subject, f"{host} is {address[0]}")
        return
    try:
        with socket.socket(family, kind) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        reporter.error(
            "endpoint-taken",
            subject,
            f"this is the first machine (launch.node_rank = 0), but it cannot listen on"
            f" {address[0]} port {port}: {error.strerror}",
            "choose a port that is free, and an address of this machine",
        )
    else:
        reporter.ok("endpoint", subject, f"{host} is {address[0]}, and port {port} is free")


def _check_devices(reporter: Reporter, processes: int, device: Device) -> bool:
    """Whether each process of this machine has a device."""
    subject, backend = f"launch.nproc_per_node = {processes}", backend_for(device.type)
    if device.type == "cpu":
        cores = len(os.sched_getaffinity(0))
        message = f"{processes} processes on {cores} cores, over {backend}"
        if processes > cores:
            reporter.warn("launch-devices", subject, message, f"at most {cores} are of use here")
        else:
            reporter.ok("launch-devices", subject, message)
        return True
    cards = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    seen = f"{cards} GPUs" + (f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else "")
    if not distributed.is_nccl_available():
        message = f"this torch ({torch.__version__}) has no NCCL, which GPUs talk over"
        reporter.error("launch-devices", subject, message, "install a build of torch that has it")
        return False
    if processes > cards:
        reporter.error(
            "launch-devices",
            subject,
            f"{processes} processes, but this machine shows {seen}: each needs one of its own",
            f"--nproc {cards}, or --nproc auto",
        )
        return False
    reporter.ok("launch-devices", subject, f"{processes} processes on {seen}, over {backend}")
    return True


def _check_sum(reporter: Reporter, processes: int, device: Device) -> None:
    """Let the ranks of this machine add something up, started as those of a run would be."""
    kind = device.type
    arguments = torchrun_arguments(Launch(), processes)
    subject = f"{processes} ranks, {backend_for(kind)}"
    with tempfile.TemporaryDirectory(prefix="dpo-check-") as scratch:
        command = agent_argv(
            Path(scratch), arguments, module_argv("dpo_cli.distributed.probe", kind)
        )
        try:
            done = subprocess.run(
                command,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                timeout=_PROBE_SECONDS,
                env=child_environment(),
                check=False,
            )
        except subprocess.TimeoutExpired:
            reporter.error(
                "all-reduce",
                subject,
                f"no sum over all ranks of this machine after {_PROBE_SECONDS:.0f} s",
                _network_remedy(kind),
            )
            return
        if done.returncode == 0:
            reporter.ok("all-reduce", subject, "a sum over all ranks of this machine is right")
            return
        told = _told(RunDirectory(Path(scratch)))
    said = told or [next(reversed(done.stderr.split("\n")[-2:-1]), "nothing was said")]
    reporter.error("all-reduce", subject, "\n".join(said), _network_remedy(kind))


def _told(scratch: RunDirectory) -> list[str]:
    """What the agent wrote of the ranks."""
    told = []
    for event in EventReader(scratch.events_path).read_new():
        if isinstance(event, RankEnded):
            told.append(rank_ending(event))
        elif isinstance(event, Failed):
            told.append(event.message)
    return told


def _network_remedy(device: str) -> str:
    prefix = "NCCL" if device == "cuda" else "GLOO"
    return f"state {prefix}_SOCKET_IFNAME, the network interface to use, such as lo or eth0"


def _pairs(order: BatchSampler) -> int:
    return order.batch_size * order.accumulation_steps


def _reach(inputs: RunInputs, order: BatchSampler) -> float:
    """The sum of the learning rates of all updates, each that of its last micro-batch."""
    return sum(map(inputs.learning_rate.at, order.last_steps))
