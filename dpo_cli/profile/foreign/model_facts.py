"""Facts about the model that the settings of a tool name: its directory and its usual targets."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.files import expanded
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile.folder import CONFIG, is_model, read_json
from dpo_cli.profile.hub import cached

_ATTENTION = ("q_proj", "v_proj")
PEFT_TARGETS: Mapping[str, Sequence[str]] = {
    **dict.fromkeys(("llama", "llama4", "mistral", "mixtral", "stablelm"), _ATTENTION),
    **dict.fromkeys(("gemma", "gemma2", "gemma3_text", "qwen2", "qwen3"), _ATTENTION),
    **dict.fromkeys(("opt", "gptj", "gpt_neo"), _ATTENTION),
    "phi": (*_ATTENTION, "fc1", "fc2"),
    **dict.fromkeys(("gpt_neox", "bloom", "falcon"), ("query_key_value",)),
}
"""Layers that peft adapts if a LoraConfig names none, by the model_type in config.json."""
_OF_ANOTHER_TYPE = re.compile(r"vision|-?vl(?![a-z])|moe|-a\d+(\.\d+)?b")
"""Parts of the names of models with images or experts, which have types of their own."""
_TYPES_BY_NAME: Mapping[str, str] = {
    r"qwen-?(1\.5|2|2\.5)(?![\d.])": "qwen2",
    r"qwen-?3(?![\d.])(?!.*-a\d+b)": "qwen3",
    r"smollm2?(?!\d)": "llama",
    r"llama-?[23](?!\d)|tinyllama": "llama",
    r"mistral|zephyr": "mistral",
    r"mixtral": "mixtral",
    r"gemma-?2(?=-)": "gemma2",
}
"""Model types by a part of the name on the Hub, for a model that is not on this machine."""


def model_folder(weights: str, folder: Path) -> Path | None:
    """Return the directory of a Hugging Face model, if it is on this machine.

    Args:
        weights: value of model.weights.
        folder: of the new profile, which need not exist.
    """
    if is_on_hub(weights):
        return cached(weights)
    # ".." is removed, not followed, because the folder may be missing.
    path = Path(os.path.normpath(folder / expanded(weights))) if weights else None
    return path if path and is_model(path) else None


def default_targets(weights: str, directory: Path | None) -> tuple[str, Sequence[str]] | None:
    """Return the type of a model and the layers that peft adapts by default; None if unknown."""
    if directory is not None:
        try:
            kind = str(read_json(directory / CONFIG).get("model_type"))
        except DpoError:
            return None
    else:
        name = weights.partition("@")[0].rpartition("/")[2].lower() if is_on_hub(weights) else ""
        name = "" if _OF_ANOTHER_TYPE.search(name) else name
        kind = next((kind for part, kind in _TYPES_BY_NAME.items() if re.search(part, name)), "")
    return (kind, PEFT_TARGETS[kind]) if kind in PEFT_TARGETS else None


def choose_targets(
    given: Mapping[str, Any], weights: str, directory: Path | None
) -> tuple[Sequence[str] | None, str]:
    """Return the layers that TRL adapts where its settings name none, and a remark for the report.

    Args:
        given: settings of TRL.
        weights: value of model.weights.
        directory: see `model_folder`.
    """
    switch = "use_peft" if "use_peft" in given else "peft_config"
    found = default_targets(weights, directory)
    if found is None:
        return None, (
            f"{switch}: all linear layers of the blocks get an adapter, because the model's type is"
            " not known here, and with it peft's default for it; name TRL's layers in"
            ' lora.target_modules, often ["q_proj", "v_proj"]'
        )
    kind, targets = found
    how = f"type {kind}" if directory else f"by its name of type {kind}"
    return targets, (
        f"lora.target_modules: {', '.join(targets)} are peft's default for this model ({how});"
        ' "all-linear" adapts all linear layers of the blocks'
    )
