"""Plan of a run, made from its inputs; see `dpo_cli.run.plan`."""

from __future__ import annotations

import os
import platform

import torch
import transformers

from dpo_cli.data.groups import count_known_prompts
from dpo_cli.models.quantized import quantizer_version
from dpo_cli.objective.losses import loss_at_start
from dpo_cli.profile.resolved import to_tables
from dpo_cli.run.plan import Plan, PlannedModel, PlannedPairs, PlannedSteps
from dpo_cli.training.inputs import RunInputs

_KERNEL_VARIABLES = ("MKL_CBWR", "MKL_ENABLE_INSTRUCTIONS", "ONEDNN_MAX_CPU_ISA")
"""Environment variables that select the kernels of MKL and oneDNN, and with them the last bits."""

_TOKENS_PER_FORWARD = "max_tokens_per_forward"


def make_plan(inputs: RunInputs) -> Plan:
    """Return the plan of a run with these inputs, in this process's environment."""
    profile, weights, order = inputs.profile, inputs.weights, inputs.order
    return Plan(
        model=PlannedModel(
            architecture=weights.architecture.name,
            description=weights.description,
            parameters=weights.parameters,
            shape=weights.architecture.to_dict(),
            weights_dtype=weights.dtype_name,
            weights_file=inputs.trainable.file_name(profile.export.prefix),
            trained_parameters=inputs.trainable.parameters if profile.lora.is_on else None,
        ),
        pairs=PlannedPairs(
            kept=len(inputs.pairs),
            skipped_rows=len(inputs.skipped_rows),
            held_out=len(inputs.held_out),
            held_out_skipped_rows=len(inputs.held_out_skipped_rows),
            unread_columns=dict(inputs.unread_columns),
            truncated=int(inputs.pairs.shortened.sum()),
            held_out_truncated=int(inputs.held_out.shortened.sum()),
            held_out_known=count_known_prompts(inputs.held_out, inputs.pairs),
            whole_prompts=inputs.whole_prompts,
        ),
        steps=PlannedSteps(
            micro_batches=order.micro_batches,
            micro_batches_per_epoch=order.micro_batches_per_epoch,
            optimizer_steps=order.optimizer_steps,
            accumulation_steps=order.accumulation_steps,
        ),
        loss=profile.dpo.title,
        loss_at_start=loss_at_start(profile.dpo),
        router_aux_loss_coef=inputs.router_aux_loss_coef,
        settings=to_tables(profile),
        device=str(inputs.device.torch_device),
        dtype=inputs.device.dtype_name,
        fingerprints=inputs.fingerprints,
        environment={
            **environment(),
            **inputs.device.versions,
            **quantizer_version(weights.quantization),
            **_forward_limit(inputs),
            "ranks": f"{inputs.world_size}{', sharded' if inputs.shards > 1 else ''}",
        },
    )


def saved_max_tokens_per_forward(plan: Plan | None) -> int | None:
    """Return the default of `train.max_tokens_per_forward` that a run began with, if recorded."""
    saved = plan.environment.get(_TOKENS_PER_FORWARD) if plan else None
    return int(saved) if saved else None


def _forward_limit(inputs: RunInputs) -> dict[str, str]:
    """Return the tokens per forward if they follow from the free memory; else nothing."""
    # On a CPU the default is a constant.
    if inputs.device.type == "cpu" or inputs.profile.train.max_tokens_per_forward:
        return {}
    return {_TOKENS_PER_FORWARD: str(inputs.max_tokens_per_forward)}


def environment() -> dict[str, str]:
    """Return the versions and settings on which the last bits of a run depend."""
    kernels = [f"{name}={os.environ[name]}" for name in _KERNEL_VARIABLES if name in os.environ]
    cpu = [platform.machine(), torch.backends.cpu.get_cpu_capability(), *kernels]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        # Another number of threads sums in another order.
        "threads": str(torch.get_num_threads()),
        "float32_matmul": torch.get_float32_matmul_precision(),
        "cpu": " ".join(cpu),
    }
