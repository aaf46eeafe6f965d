"""`dpo merge`: interpolates the weights of two models."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.export.verified_write import check_destination, verified_write
from dpo_cli.inference.open_model import OpenedModel
from dpo_cli.models.adapted import merge_adapter
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
from dpo_cli.models.rounding import default_rounding, round_weights
from dpo_cli.models.spec import Architecture, as_minimind, differences
from dpo_cli.profile.text import show_path


def merge_models(
    first: OpenedModel,
    second: OpenedModel,
    weight: float,
    path: Path,
    dtype: str | None,
    tokenizer: Path | None,
) -> OpenedModel:
    """Write (1 - weight) * first + weight * second as a file or directory, and verify it.

    If both models share their starting weights, the loss mostly stays low on the line between them,
    and an average regains some of what training has made the model forget (WiSE-FT, Wortsman et al.
    2022, arXiv:2109.01903).

    Args:
        first, second: models of one architecture.
        weight: share of the second model, 0 to 1.
        path: file or directory, which is replaced only on success.
        dtype: a key of `DTYPES`; None for the dtype of the first model.
        tokenizer: folder of the tokenizer that a directory gets.

    Returns:
        The merged model, as loaded back.

    Raises:
        DpoError: the architectures differ, a weight exceeds the range of the dtype, or the file
            cannot be written.
    """
    architecture = _common_architecture(first, second)
    check_destination(path, architecture)
    if isinstance(architecture, HuggingFace) and tokenizer is None:
        raise DpoError(
            f"{first.title} has no tokenizer, and a directory needs one",
            "Choose a tokenizer with --tokenizer DIR.",
        )
    other = merge_adapter(second.model_weights).state
    # In float64, so that the average is rounded only once, to the dtype of the file.
    merged = {
        name: (1 - weight) * tensor.double() + weight * other[name].double()
        for name, tensor in merge_adapter(first.model_weights).state.items()
    }
    dtype = dtype or first.export_dtype
    rounding = default_rounding(dtype, first.export_dtype)
    rounded = round_weights(merged, dtype, rounding, 0, architecture.own_dtypes(dtype))
    with verified_write(path, rounded, architecture, dtype, tokenizer) as (_, written):
        return OpenedModel(show_path(path), written)


def _common_architecture(first: OpenedModel, second: OpenedModel) -> Architecture:
    """Return the architecture of both models, as MiniMind's if one of them is MiniMind's."""
    models = (first, second)
    architectures = [model.model_weights.architecture for model in models]
    if any(isinstance(architecture, MiniMind) for architecture in architectures):
        architectures = [
            as_minimind(model.model_weights.architecture, model.title) for model in models
        ]
    if different := differences(*architectures):
        raise DpoError(
            "models of different architectures cannot be merged",
            "Merge a model with its starting weights, or with another model trained from them.",
            [
                f"{name}: {one} in {first.title}, {other} in {second.title}"
                for name, (one, other) in different.items()
            ],
        )
    return architectures[0]
