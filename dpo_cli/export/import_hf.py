"""`dpo import`: converts a Hugging Face directory to MiniMind's weights file."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.export.verified_write import check_destination, verified_write
from dpo_cli.models.loading import ModelWeights, load_model_weights
from dpo_cli.models.rounding import round_weights
from dpo_cli.models.spec import as_minimind
from dpo_cli.profile import folder
from dpo_cli.run.protected import files_of_model, require_free_of_inputs

_PREFIX = "full_sft"
"""MiniMind's prefix of SFT weights, from which DPO starts."""


def import_directory(
    directory: Path, destination: Path | None, dtype: str, force: bool
) -> tuple[Path, ModelWeights]:
    """Write the weights of a Hugging Face directory as a file for MiniMind's own scripts.

    Args:
        directory: contains config.json.
        destination: file; by default MiniMind's name for it, in the working directory.
        dtype: dtype of the file, a key of `DTYPES`.
        force: replace an existing file.

    Returns:
        Path of the file, and its weights as loaded back.

    Raises:
        DpoError: `directory` has no model, MiniMind has no equal architecture, the file exists, or
            it does not load back.
    """
    if not folder.is_model(directory):
        raise UsageError(
            f"{directory}: not a Hugging Face directory", f"Choose one that has a {folder.CONFIG}."
        )
    model_weights = load_model_weights(directory, {})
    minimind = as_minimind(model_weights.architecture, str(directory))
    path = (destination or Path(minimind.file_name(_PREFIX))).absolute()
    check_destination(path, minimind)
    require_free_of_inputs(path, files_of_model(directory, "the imported directory"), "--to")
    if path.exists() and not force:
        raise DpoError(f"{path} exists", "Replace it with --force, or choose another path.")
    rounded = round_weights(model_weights.state, dtype, "nearest", 0)
    with verified_write(path, rounded, minimind, dtype) as (_, written):
        return path, written
