"""`dpo import`: a directory's weights in MiniMind's form, proved by loading them back."""

from __future__ import annotations

from pathlib import Path

from dpo_cli.errors import DpoError, UsageError
from dpo_cli.models.architecture import as_minimind
from dpo_cli.models.zoo import Checkpoint, load_checkpoint
from dpo_cli.profile import folder
from dpo_cli.run.disk import explain_disk_errors
from dpo_cli.training.export import require_same, told
from dpo_cli.training.rounding import round_weights
from dpo_cli.training.unproved import renamed_at_the_end
from dpo_cli.training.weights import write_weights

_PREFIX = "full_sft"
"""What MiniMind calls weights that are to be trained on preferences."""


def import_directory(
    directory: Path, destination: Path | None, dtype: str, force: bool
) -> tuple[Path, Checkpoint]:
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
    checkpoint = load_checkpoint(directory, {})
    minimind = as_minimind(checkpoint.architecture, str(directory))
    path = (destination or Path(minimind.file_name(_PREFIX))).absolute()
    if path.is_dir():
        raise DpoError(f"{path}: a directory", "name the file with --to")
    if not path.parent.is_dir():
        raise DpoError(
            f"{path.parent}: no such directory", "create it, or write elsewhere with --to"
        )
    if path.exists() and not force:
        raise DpoError(f"{path} exists", "replace it with --force, or write elsewhere with --to")
    rounded = round_weights(checkpoint.state, dtype, "nearest", 0)
    with explain_disk_errors(path.parent), renamed_at_the_end(path) as temporary:
        write_weights(temporary, rounded, minimind, dtype)
        written = load_checkpoint(temporary, told(minimind))
        require_same(path, written.state, rounded)
    return path, written
