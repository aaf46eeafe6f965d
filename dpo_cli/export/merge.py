"""`dpo merge`: weights between those of two models."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError
from dpo_cli.export.rounding import round_weights
from dpo_cli.export.verified_write import check_place, verified_write
from dpo_cli.inference.open_model import OpenedModel
from dpo_cli.models.huggingface import HuggingFace
from dpo_cli.models.minimind import MiniMind
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
    """Write (1 - weight) * first + weight * second in their makers' form, as `dpo export` does.

    Where both stem from one start, the loss mostly stays low all along the line between them, and
    on it is what gives back some of what training has made forget (WiSE-FT, Wortsman et al. 2022,
    arXiv:2109.01903).

    Args:
        first, second: of one architecture.
        weight: the share of the second, 0 to 1.
        path: of the file or directory; replaced, or left as it is.
        dtype: a key of `DTYPES`; None for that of the first.
        tokenizer: the folder that a directory gets its tokenizer from.

    Returns:
        What the file holds.

    Raises:
        DpoError: the architectures differ (naming in what), a weight is beyond what the format
            holds, or the file cannot be written.
    """
    architecture = _common_architecture(first, second)
    check_place(path, architecture)
    if isinstance(architecture, HuggingFace) and tokenizer is None:
        raise DpoError(
            f"{first.title}: has no tokenizer, and a directory needs one",
            "name its folder: --tokenizer DIR",
        )
    theirs = second.model_weights.state
    merged = {
        name: (1 - weight) * tensor.double() + weight * theirs[name].double()
        for name, tensor in first.model_weights.state.items()
    }
    dtype = dtype or first.export_dtype
    rounded = round_weights(merged, dtype, "nearest", seed=0)
    with verified_write(path, rounded, architecture, dtype, tokenizer) as (_, written):
        return OpenedModel(show_path(path), written)


def _common_architecture(first: OpenedModel, second: OpenedModel) -> Architecture:
    """The architecture of both: MiniMind's, if one of them is."""
    found = [model.model_weights.architecture for model in (first, second)]
    if any(isinstance(its, MiniMind) for its in found):
        found = [
            as_minimind(its, model.title) for its, model in zip(found, (first, second), strict=True)
        ]
    if different := differences(*found):
        raise DpoError(
            "models of different architectures cannot be merged",
            "merge a model with the one that it was trained from, or with one that was, too",
            [
                f"{name}: {its} in {first.title}, {other} in {second.title}"
                for name, (its, other) in different.items()
            ],
        )
    return found[0]
