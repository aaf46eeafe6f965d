"""Names of weights in files of other tools: wrappers, adapters, and buffers of older code."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import TypeVar

from dpo_cli.errors import DpoError
from dpo_cli.profile.folder import how_to_merge

_WRAPPERS = (
    *("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"),
    *("_forward_module", "_flat_param_wrapped_module"),
)
"""Names of the wrapper modules of torch.compile, FSDP, activation checkpointing and Fabric."""
_OUTER = ("module.", "base_model.model.", "model.module.")
"""Prefixes of a whole model inside DistributedDataParallel, DeepSpeed or PEFT."""
_ADAPTER = re.compile(
    r"(^|\.)(lora_\w+|ia3_l|hada_w\d_\w|lokr_w\d\w*|oft_[rs]|vera_lambda_\w|prompt_encoder"
    r"|prompt_embeddings|base_layer|modules_to_save|original_module)(\.|$)"
)
_OLD_BUFFERS = re.compile(
    r"(^|\.)(masked_bias|inv_freq|original_inv_freq|cos_cached|sin_cached|causal_mask"
    r"|position_ids|attn_mask)$"
)
"""Tensors beside the weights in files of older versions, which later versions compute."""
_OLD_MASK = re.compile(r"(^|\.)(attn|attention|self_attn|self_attention)\.bias$")
_MASK_DIMENSIONS = 4

Value = TypeVar("Value")


def unwrap(tensors: Mapping[str, Value], embedding: str = "") -> tuple[dict[str, Value], str]:
    """Rename weights that were saved from inside a wrapper.

    Args:
        tensors: by name, as in the file.
        embedding: name of a weight of the model itself; any prefix before it that all names share
            is removed. "" removes the prefixes of known wrappers only.

    Returns:
        The weights under the model's own names, and the removed parts for the user, "" if none.
    """
    renamed = {name: _without_wrappers(name) for name in tensors}
    removed = [f"{part}." for part in _WRAPPERS if any(part in name.split(".") for name in tensors)]
    while prefix := _outer_prefix(list(renamed.values()), embedding):
        renamed = {name: inner.removeprefix(prefix) for name, inner in renamed.items()}
        removed.append(prefix)
    if len({*renamed.values()}) < len(renamed):  # for example weights beside their average
        return dict(tensors), ""
    return {renamed[name]: tensor for name, tensor in tensors.items()}, ", ".join(removed)


def common_prefixes(names: Collection[str]) -> list[str]:
    """Return the prefixes, by whole parts, that all names share, the longest first."""
    if not names:
        return []
    first, last = min(names).split("."), max(names).split(".")
    same = 0
    while same < min(len(first), len(last)) - 1 and first[same] == last[same]:
        same += 1
    return [".".join(first[:count]) + "." for count in range(same, 0, -1)]


def refuse_adapter(names: Iterable[str], path: Path) -> None:
    """Refuse weights of an adapter, which need a base model.

    Raises:
        DpoError: a name is that of an adapter's weight.
    """
    found = next((name for name in names if _ADAPTER.search(name)), None)
    if found is not None:
        place = path if path.is_dir() else path.parent
        raise DpoError(
            f"{path}: weights of an adapter ({found}), not of a whole model",
            how_to_merge(place),
        )


def is_old_buffer(name: str, dimensions: int) -> bool:
    """Return True for a tensor that older versions saved beside the weights.

    Args:
        name: name of a tensor that the model does not have.
        dimensions: number of its dimensions.
    """
    is_mask = bool(_OLD_MASK.search(name)) and dimensions == _MASK_DIMENSIONS
    return is_mask or bool(_OLD_BUFFERS.search(name))


def _without_wrappers(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _outer_prefix(names: Collection[str], embedding: str) -> str:
    """Return a prefix that all names share and that belongs to no model; "" if there is none."""
    if embedding and embedding not in names:
        inner = [name for name in names if name.endswith(f".{embedding}")]
        prefix = inner[0].removesuffix(embedding) if len(inner) == 1 else ""
        if prefix and all(name.startswith(prefix) for name in names):
            return prefix
    for prefix in _OUTER:
        if names and all(name.startswith(prefix) for name in names):
            return prefix
    return ""
