"""`dpo import`: a directory's weights in MiniMind's form, proved by loading them back."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.rounding import round_weights
from dpo_cli.export.verified_write import check_place, verified_write
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.spec import as_minimind
from dpo_cli.profile import folder

_PREFIX = "full_sft"
"""What MiniMind calls weights that are to be trained on preferences."""


def import_directory(
    directory: Path, destination: Path | None, dtype: str, force: bool
) -> tuple[Path, ModelWeights]:
    """Write the weights of a Hugging Face directory for MiniMind's own scripts.

    Args:
        directory: with config.json.
        destination: the file; by default MiniMind's name, in the working directory.
        dtype: of the file, a key of `DTYPES`.
        force: replace a file.

    Returns:
        The file, and its weights as loaded back.

    Raises:
        DpoError: it is no such directory, MiniMind computes no such function, a file is in the way,
            or it does not load back.
    """
    if not folder.is_model(directory):
        raise UsageError(
            f"{directory}: no Hugging Face directory", f"name one that has a {folder.CONFIG}"
        )
    model_weights = load_model_weights(directory, {})
    minimind = as_minimind(model_weights.architecture, str(directory))
    path = (destination or Path(minimind.file_name(_PREFIX))).absolute()
    check_place(path, minimind)
    if path.exists() and not force:
        raise DpoError(f"{path} exists", "replace it with --force, or write elsewhere with --to")
    rounded = round_weights(model_weights.state, dtype, "nearest", 0)
    with verified_write(path, rounded, minimind, dtype) as (_, written):
        return path, written
