"""Defaults that depend on the kind of the model: MiniMind's own, or any other.

The schema has MiniMind's defaults. For a Hugging Face model a key that a profile leaves out has
the usual default of Hugging Face users, in every command.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from dpo_cli.errors import DpoError
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import folder
from dpo_cli.profile.losses import LOSSES

ModelKind = Literal["minimind", "huggingface"]

KIND_TITLES: Mapping[ModelKind, str] = {
    "minimind": "MiniMind weights",
    "huggingface": "a Hugging Face model",
}
"""Kinds in words."""
_MINIMIND = "minimind"
_REDUCTION = "dpo.reduction"
_DEFAULTS: Mapping[ModelKind, Mapping[str, Any]] = {
    "minimind": {},
    "huggingface": {"data.empty_think_ratio": 1.0, _REDUCTION: "sum"},
}
"""Defaults by key, where they differ from the schema's."""


def kind_of_weights(weights: object, out_dir: object = None) -> ModelKind:
    """Return the kind of the model that a profile names.

    A Hugging Face directory and a model on the Hub are of the kind "huggingface"; files, the
    directories that MiniMind published (model_type "minimind") and earlier runs are MiniMind's.

    Args:
        weights: value of `model.weights`, with an absolute path if it is one; None for the weights
            in `out_dir`.
        out_dir: value of `model.out_dir`.
    """
    if not isinstance(weights, str | Path):
        return "minimind"
    name = str(weights)
    if is_on_hub(name):
        return "huggingface"
    path = Path(name)
    if isinstance(out_dir, str | Path):
        path = Path(out_dir) / path
    if not folder.is_model(path):
        return "minimind"
    try:
        settings = folder.read_json(path / folder.CONFIG)
    except DpoError:  # reported by the reader of the weights
        return "minimind"
    return "minimind" if settings.get("model_type") == _MINIMIND else "huggingface"


def defaults_of(kind: ModelKind, losses: object) -> dict[str, Any]:
    """Return the defaults, by key, that differ from the schema's.

    Args:
        kind: of the model.
        losses: value of `dpo.loss`; some losses are means.
    """
    defaults = dict(_DEFAULTS[kind])
    names = losses if isinstance(losses, list) else [losses]
    if any(needs.mean for name, needs in LOSSES.items() if name in names):
        defaults.pop(_REDUCTION, None)
    return defaults
