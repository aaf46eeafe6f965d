"""Forecast of the memory of a run by arithmetic, also for weights that are not downloaded yet."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.resources import estimate_memory, longest_forward
from dpo_cli.compute.device import Device
from dpo_cli.compute.memory import free_memory, process_bytes
from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_size
from dpo_cli.hub.download import PREFIX, is_on_hub
from dpo_cli.models.adapter import new_adapter
from dpo_cli.models.forward_size import CPU_TOKENS_PER_FORWARD, LEAST_TOKENS_PER_FORWARD
from dpo_cli.models.huggingface import read_settings
from dpo_cli.models.memory import MemoryNeed, model_size, need
from dpo_cli.profile import folder, hub
from dpo_cli.profile.schema import Profile
from dpo_cli.training.inputs import RunInputs

_CODE = "memory-need"
_LATER_BYTES = 350_000_000
"""Bytes of a process on a CPU beside the sums: libraries that are loaded with the optimizer, and
memory that the C allocator keeps. Measured by benchmarks/memory.py."""
_FILE_BYTES = 2
"""Bytes of a weight in a file, which stays in memory as it was read; most are bfloat16."""


def check_need(reporter: Reporter, inputs: RunInputs) -> dict[str, Any]:
    """Report the memory that the longest forward of a run needs; return it as plain values."""
    profile = inputs.profile
    found = estimate_memory(inputs)
    if inputs.device.type == "cpu":
        found = replace(found, process=process_bytes() + _LATER_BYTES)
    name = profile.model.weights or inputs.weights.architecture.name
    return _report(
        reporter, profile, inputs.device, Path(name).name, found, longest_forward(inputs)[1]
    )


def check_need_of_config(
    reporter: Reporter, profile: Profile, device: Device
) -> dict[str, Any] | None:
    """Report the memory of a model on the Hub by its configuration, without its weights.

    Returns:
        The need as plain values; None for other models, or if the configuration cannot be read.
    """
    name = profile.model.weights
    if name is None or not is_on_hub(name):
        return None
    with reporter.errors_as("weights-unusable", name):
        return _of_config(reporter, profile, device, name)
    return None


def _of_config(reporter: Reporter, profile: Profile, device: Device, name: str) -> dict[str, Any]:
    path = hub.fetch_config(name)
    if not folder.is_model(path):
        raise DpoError(f"{name} has no {folder.CONFIG}", "Name a model that transformers reads.")
    architecture = read_settings(folder.read_json(path / folder.CONFIG), {}, name)
    size = model_size(architecture)
    adapter = None
    if profile.lora.is_on:
        adapter = new_adapter(architecture, profile.lora, profile.train.seed).parameters
    has_reference = profile.dpo.needs_reference and adapter is None
    least = CPU_TOKENS_PER_FORWARD if device.type == "cpu" else LEAST_TOKENS_PER_FORWARD
    tokens = profile.train.max_tokens_per_forward or least
    found = need(
        architecture,
        size,
        train=profile.train,
        quantization=profile.model.quantization,
        weights_dtype=profile.model.weights_dtype,
        adapter_parameters=adapter,
        reference_parameters=size.parameters if has_reference else 0,
        dtype=device.dtype,
        tokens=tokens,
        scored_tokens=tokens,
    )
    if device.type == "cpu":
        as_read = _FILE_BYTES * size.parameters
        found = replace(found, process=process_bytes() + _LATER_BYTES + as_read)
    shown = name.removeprefix(PREFIX).partition("@")[0].rpartition("/")[2]
    return _report(reporter, profile, device, shown, found, tokens)


def _report(
    reporter: Reporter,
    profile: Profile,
    device: Device,
    name: str,
    found: MemoryNeed,
    tokens: int,
) -> dict[str, Any]:
    """Report a need, of a forward of `tokens`."""
    facts = [name, profile.model.quantization or profile.model.weights_dtype]
    if profile.lora.is_on:
        facts.append(f"rank {profile.lora.rank}")
    facts.append(f"{tokens:,} tokens per forward")
    parts = {
        "weights": found.weights + found.dequantized,
        "gradients and optimizer": found.optimizer,
        "reference": found.reference,
        "activations": found.activations,
        "head": found.head,
        "process": found.process,
    }
    listed = ", ".join(f"{part} {format_size(size)}" for part, size in parts.items() if size)
    message = f"{', '.join(facts)}: {format_size(found.total)} ({listed})"
    free = free_memory(device.torch_device)
    # What this process has already is not free.
    if found.total - found.process <= free:
        reporter.ok(_CODE, "", message)
    else:
        message += f"; {format_size(free)} of memory left on {device.torch_device}"
        reporter.warn(_CODE, "", message, _remedy(profile))
    return {**asdict(found), "total": found.total}


def _remedy(profile: Profile) -> str:
    ways = []
    if not profile.lora.is_on:
        ways.append("lora.rank = 16")
    if profile.model.quantization is None:
        ways.append('model.quantization = "nf4"')
    if not profile.train.activation_checkpointing:
        ways.append("train.activation_checkpointing = true")
    if ways:
        return f"Set {', '.join(ways)}, or use a device with more memory."
    return "Lower train.max_tokens_per_forward, or use a device with more memory."
