"""What is left to look at when a loss or a gradient is not a finite number."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn
from transformers import PreTrainedModel

from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.files import write_atomically, write_text_atomically
from dpo_cli.training.checkpointing import on_disk

_WEIGHTS = "weights.safetensors"


def write_nan_dump(
    directory: Path,
    window: GlobalBatch,
    lines: Sequence[int],
    losses: Sequence[float],
    model: PreTrainedModel,
) -> None:
    """Write what is needed to repeat a step whose update was refused.

    `window.json` has each micro-batch's lines of the data and its loss, and the parameters whose
    gradient is not finite; `weights.safetensors` the float32 weights that the step began with.

    Args:
        directory: is made; what it holds of an earlier time is replaced.
        window: the step's.
        lines: of the data file, by pair.
        losses: of each micro-batch of the window.
        model: with the gradients as the backward pass left them.

    Raises:
        OSError: there is no space, for example.
    """
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "epoch": window.epoch + 1,
        "micro_batches": [
            {"lines": [lines[index] for index in indices], "loss": repr(loss)}
            for indices, loss in zip(window.micro_batches, losses, strict=True)
        ],
        "gradients_not_finite": not_finite_gradients(model),
    }
    write_text_atomically(directory / "window.json", json.dumps(facts, indent=2) + "\n")
    weights = on_disk(model, model.state_dict())
    write_atomically(directory / _WEIGHTS, lambda temporary: save_file(weights, temporary))


def has_nan_dump(root: Path) -> bool:
    """Whether some step's evidence lies under `root`, whole: its weights are written last."""
    return any(root.glob(f"*/{_WEIGHTS}"))


def not_finite_gradients(model: nn.Module) -> list[str]:
    """The names of the parameters whose gradient has a NaN or an infinity."""
    return [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(parameter.grad.isfinite().all())
    ]
