"""What may go wrong in torch and that a user can act on, in their words."""

from __future__ import annotations

import torch

from dpo_cli.errors import DpoError


def explain(error: Exception) -> DpoError | None:
    """What an exception of torch's means, and what to do; None where that is a bug of ours."""
    if is_out_of_memory(error):
        return DpoError(
            f"out of memory: {_first_line(error) or 'the system gave no more'}",
            "state train.activation_checkpointing = true, or a lower train.max_tokens_per_forward;"
            " with experts or dropout, a lower train.batch_size (and more train.accumulation_steps,"
            " to keep the recipe); or lower data.max_seq_len",
        )
    if isinstance(error, FileNotFoundError | PermissionError) and error.filename:
        # The launcher has looked before, on its own machine.
        return DpoError(
            f"{error.filename}: {error.strerror}",
            "put it there, or mount it, readable for this user on every machine that trains",
        )
    if type(error).__module__.startswith(("torch._dynamo", "torch._inductor")):
        return DpoError(
            f"torch.compile failed: {_first_line(error)}",
            "install what it misses (on a CPU a C++ compiler), or state train.compile = false",
        )
    return None


def is_out_of_memory(error: Exception) -> bool:
    """Whether a device, or the system, had no more to give."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and "can't allocate memory" in str(error)


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
