"""Checks of a run on several ranks: devices, network, and the recipe that results."""

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
from dpo_cli.machine import usable_cpus
from dpo_cli.profile.launch import Launch
from dpo_cli.profile.schema import Profile
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import EventReader, Failed, RankEnded
from dpo_cli.run.exit_reason import rank_ending
from dpo_cli.run.placement import recognize
from dpo_cli.run.processes import module_argv, run_child
from dpo_cli.run.torchrun import agent_argv, processes_here, require_shards, torchrun_arguments
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.sources import OnProgress

_PROBE_TIMEOUT = 120.0


def check_launch(
    reporter: Reporter, profile: Profile, device: Device, on_progress: OnProgress
) -> int | None:
    """Check devices and network if there are several ranks.

    Returns:
        Number of ranks on all machines; None if it is unknown.
    """
    place = None
    before = len(reporter.findings)
    with reporter.errors_as("launch-environment", "environment"):
        place = recognize(os.environ)
    if place:
        message = f"rank {place.rank} of {place.world_size}; [launch] is ignored"
        reporter.ok("launch-environment", place.starter, message)
        with reporter.errors_as("launch-strategy", "launch.strategy"):
            require_shards(profile, place.world_size)
        return place.world_size
    processes = None
    with reporter.errors_as("launch-devices", "launch.nproc_per_node"):
        processes = processes_here(profile)
    if processes is None or len(reporter.findings) > before:
        return None
    world_size = processes * profile.launch.nnodes
    with reporter.errors_as("launch-strategy", "launch.strategy"):
        require_shards(profile, world_size)
    if world_size == 1:
        _check_idle_gpus(reporter, device)
        return 1
    if profile.launch.nnodes > 1:
        _check_endpoint(reporter, profile.launch)
    if _check_devices(reporter, processes, device):
        on_progress(f"starting {processes} ranks", 0, 0, "")
        _check_all_reduce(reporter, processes, device)
    else:
        reporter.skip("all-reduce", "a device for each process")
    return world_size


def check_world_size(reporter: Reporter, inputs: RunInputs, world_size: int) -> None:
    """Compare steps and lr_sum on `world_size` ranks with those on one process."""
    train, subject = inputs.profile.train, "train.global_batch_size"
    alone = inputs.order
    together = None
    with reporter.errors_as("launch-batches", subject):
        accumulation_steps = train.accumulation_on(world_size) * world_size
        together = replace(alone, accumulation_steps=accumulation_steps)
    if together is None:
        return
    message = (
        f"1 process: {alone.optimizer_steps:,} steps of {_pairs(alone)} pairs, lr_sum"
        f" {inputs.current_recipe.lr_sum:.2g}; {world_size} processes:"
        f" {together.optimizer_steps:,} steps of {_pairs(together)} pairs, lr_sum"
        f" {inputs.learning_rate.lr_sum(together.last_steps):.2g}"
    )
    if together.accumulation_steps == alone.accumulation_steps:
        reporter.ok("launch-lr-sum", subject, f"{message}: the same recipe")
        return
    remedy = f"Set train.global_batch_size = {_pairs(alone)} for the same recipe on any number"
    if alone.accumulation_steps % world_size:
        remedy += f", and lower train.batch_size, because {world_size} processes share it"
    reporter.warn("launch-lr-sum", subject, message, f"{remedy}.")


def _check_idle_gpus(reporter: Reporter, device: Device) -> None:
    gpus = torch.cuda.device_count() if device.type == "cuda" else 0
    if gpus > 1:
        reporter.warn(
            "idle-gpus",
            "launch.nproc_per_node",
            f"1 of {gpus} GPUs used",
            'Use --nproc auto or set launch.nproc_per_node = "auto" to use all of them.',
        )


def _check_endpoint(reporter: Reporter, launch: Launch) -> None:
    """Check that the rendezvous host resolves and, on the first machine, that the port is free."""
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
            "Set the address of the first machine, or a name that all machines can resolve.",
        )
        return
    if launch.node_rank or launch.rdzv_backend == "etcd-v2":
        reporter.ok("endpoint", subject, f"{host} is {address[0]}")
        return
    try:
        with socket.socket(family, kind) as probe:
            # As torchrun's store does: a port in TIME_WAIT counts as free.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
    except OSError as error:
        reporter.error(
            "endpoint-taken",
            subject,
            f"this is the first machine (launch.node_rank = 0), but it cannot listen on"
            f" {address[0]} port {port}: {error.strerror}",
            "Choose a free port, and an address of this machine.",
        )
    else:
        reporter.ok("endpoint", subject, f"{host} is {address[0]}, and port {port} is free")


def _check_devices(reporter: Reporter, processes: int, device: Device) -> bool:
    """Check that each process of this machine has a device; return True if so."""
    subject, backend = f"launch.nproc_per_node = {processes}", backend_for(device.type)
    if device.type == "cpu":
        cores = len(usable_cpus())
        message = f"{processes} processes on {cores} cores, over {backend}"
        if processes > cores:
            reporter.warn("launch-devices", subject, message, f"Use at most {cores}.")
        else:
            reporter.ok("launch-devices", subject, message)
        return True
    gpus = torch.cuda.device_count()
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    available = f"{gpus} GPUs" + (
        f" (CUDA_VISIBLE_DEVICES={visible})" if visible is not None else ""
    )
    if not distributed.is_nccl_available():
        message = f"this torch ({torch.__version__}) has no NCCL, which several GPUs need"
        reporter.error("launch-devices", subject, message, "Install a torch build with NCCL.")
        return False
    if processes > gpus:
        reporter.error(
            "launch-devices",
            subject,
            f"{processes} processes, but this machine has {available}: each process needs its own",
            f"Use --nproc {gpus} or --nproc auto.",
        )
        return False
    reporter.ok("launch-devices", subject, f"{processes} processes on {available}, over {backend}")
    return True


def _check_all_reduce(reporter: Reporter, processes: int, device: Device) -> None:
    """Start the ranks of this machine as a run would, and check the result of an all-reduce."""
    kind = device.type
    arguments = torchrun_arguments(Launch(), processes)
    subject = f"{processes} ranks, {backend_for(kind)}"
    with tempfile.TemporaryDirectory(prefix="dpo-check-") as scratch:
        command = agent_argv(
            Path(scratch), arguments, module_argv("dpo_cli.distributed.probe", kind)
        )
        try:
            returncode, output = run_child(command, _PROBE_TIMEOUT)
        except subprocess.TimeoutExpired:
            reporter.error(
                "all-reduce",
                subject,
                f"no all-reduce on this machine within {_PROBE_TIMEOUT:.0f} s",
                _network_remedy(kind),
            )
            return
        if returncode == 0:
            reporter.ok("all-reduce", subject, "an all-reduce on this machine gives the right sum")
            return
        reasons = _failures(RunDirectory(Path(scratch)))
    reasons = reasons or (output.splitlines() or ["no output"])[-1:]
    reporter.error("all-reduce", subject, "\n".join(reasons), _network_remedy(kind))


def _failures(scratch: RunDirectory) -> list[str]:
    """Return the failures that the agent has recorded."""
    reasons = []
    for event in EventReader(scratch.events_path).read_new():
        if isinstance(event, RankEnded):
            reasons.append(rank_ending(event))
        elif isinstance(event, Failed):
            reasons.append(event.message)
    return reasons


def _network_remedy(device: str) -> str:
    prefix = "NCCL" if device == "cuda" else "GLOO"
    remedy = f"Set {prefix}_SOCKET_IFNAME to the network interface to use, for example lo or eth0."
    if device == "cuda":
        # Consumer GPUs often cannot read each other's memory, although NCCL tries it.
        remedy += " On one machine, NCCL_P2P_DISABLE=1 often helps."
    return remedy


def _pairs(order: BatchSampler) -> int:
    return order.batch_size * order.accumulation_steps
