"""Options of a built model: experts, activation checkpointing, compilation."""

from __future__ import annotations

import contextlib

import transformers
from torch import nn

from dpo_cli.errors import DpoError
from dpo_cli.models import experts

_COMPILED_CLASSES = ("RMSNorm", "MLP")
"""Suffixes of the classes in transformers that `compile_blocks` compiles."""


def use_experts_for(
    model: transformers.PreTrainedModel, *, float32: bool, is_on_cpu: bool = True
) -> None:
    """Choose the implementation of the experts.

    The grouped matrix product is the fastest in float32. It does not support float64, and under
    autocast it would compute in float32; the loop over experts follows autocast. On a GPU that loop
    would wait for each expert, so there the grouped product casts (`dpo_cli.models.experts`).
    """
    half_precision = "eager" if is_on_cpu else experts.NAME
    # A few models have a single implementation and raise ValueError.
    with contextlib.suppress(ValueError):
        model.set_experts_implementation("grouped_mm" if float32 else half_precision)


def decoder_blocks(model: transformers.PreTrainedModel) -> list[nn.Module]:
    """Return the decoder blocks in the order of the forward.

    Raises:
        DpoError: the model's code does not name their class.
    """
    # transformers names the class of the blocks that one device must hold whole.
    names = set(model._no_split_modules or ())
    blocks = [module for module in model.modules() if type(module).__name__ in names]
    if not blocks:
        raise DpoError(
            f'launch.strategy = "shard": {type(model).__name__} does not name its blocks',
            'Set launch.strategy = "replicate".',
        )
    return blocks


def checkpoint_activations(model: transformers.PreTrainedModel) -> None:
    """Enable activation checkpointing: keep only each block's input and recompute the rest.

    Random numbers of the forward pass are restored for the recomputation, so no bit of a gradient
    changes.

    Raises:
        DpoError: the model's code does not support it.
    """
    if not model.supports_gradient_checkpointing:
        raise DpoError(
            f"train.activation_checkpointing: {type(model).__name__} does not support it",
            "Remove the key. A lower train.max_tokens_per_forward or data.max_seq_len saves memory,"
            " too.",
        )
    # The first name is that of newer versions of transformers.
    enable = getattr(model, "activation_checkpointing_enable", None)
    (enable or model.gradient_checkpointing_enable)({"use_reentrant": False})


def compile_blocks(model: transformers.PreTrainedModel) -> None:
    """Compile the norms and the feed-forward parts of all blocks with torch.compile.

    Attention and experts are left out, because their control flow depends on the batch. With
    `dynamic=True` one compilation serves all blocks and all lengths.
    """
    for module in model.modules():
        if type(module).__name__.endswith(_COMPILED_CLASSES):
            module.compile(dynamic=True)
