"""Dump of a step whose loss or gradient is not a finite number."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Sequence
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from dpo_cli.data.sampler import GlobalBatch
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.distributed.shards import own_part
from dpo_cli.files import write_atomically, write_text_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.training.checkpointing import copies

_WEIGHTS = "weights.safetensors"


def write_nan_dump(
    directory: Path,
    global_batch: GlobalBatch,
    lines: Sequence[int],
    losses: Sequence[float],
    gradients: Sequence[str],
    state: StateDict,
) -> None:
    """Write what is needed to repeat a step whose update was not made.

    `global_batch.json` has the data lines and the loss of each micro-batch, and the parameters
    whose gradient is not finite; `weights.safetensors` has the trained weights before the step, in
    float32.

    Args:
        directory: is created; files of an earlier dump are replaced.
        global_batch: the pairs of the step.
        lines: line in the data of each pair.
        losses: loss of each micro-batch.
        gradients: parameters whose gradient is not finite.
        state: trained weights.

    Raises:
        OSError: the disk is full, for example, or a directory is a link (ELOOP).
    """
    for each in (directory, directory.parent):
        if each.is_symlink():
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(each))
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "epoch": global_batch.epoch + 1,
        "micro_batches": [
            # JSON has no NaN, so losses are strings.
            {"lines": [lines[index] for index in indices], "loss": repr(loss)}
            for indices, loss in zip(global_batch.micro_batches, losses, strict=True)
        ],
        "gradients_not_finite": [*gradients],
    }
    write_text_atomically(directory / "global_batch.json", json.dumps(facts, indent=2) + "\n")
    # Last, because `has_nan_dump` takes this file as the sign of a complete dump.
    weights = copies(state)
    write_atomically(directory / _WEIGHTS, lambda temporary: save_file(weights, temporary))


def has_nan_dump(root: Path) -> bool:
    """Return True if a complete dump of any step lies under `root`."""
    return any(root.glob(f"*/{_WEIGHTS}"))


def not_finite_gradients(model: nn.Module, group: ProcessGroup, step: int) -> list[str]:
    """Return the names of the parameters whose gradient contains NaN or infinity on any rank.

    Args:
        model: with the gradients of the backward pass, which may be shards.
        group: the ranks that train together; collective.
        step: optimizer step, as the name of the exchange.
    """
    own = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is not None and not bool(own_part(parameter.grad).isfinite().all())
    ]
    found = set().union(*group.all_gather_object(f"gradients-not-finite-{step}", own))
    return [name for name, _ in model.named_parameters() if name in found]
