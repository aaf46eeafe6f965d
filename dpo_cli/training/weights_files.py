"""The weights beside the states of a run, for other tools: of the newest state, and of the best."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_cli.models.convert import StateDict
from dpo_cli.models.saving import write_model
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_weights
from dpo_cli.training.plan import Prepared


def weights_file(prepared: Prepared) -> str:
    """The name of the weights in the run directory: of a file, or of a directory."""
    return prepared.model_weights.architecture.file_name(prepared.profile.export.prefix)


def best_weights_file(prepared: Prepared) -> str:
    """The same of the best state, by another prefix, which MiniMind's scripts can be told."""
    return prepared.model_weights.architecture.file_name(f"{prepared.profile.export.prefix}_best")


def write_results(run: RunDirectory, prepared: Prepared, state: StateDict, is_best: bool) -> Path:
    """Renew the weights from `state`, and the best ones where that is what it is."""
    path = run.path / weights_file(prepared)
    _write(path, state, prepared)
    if is_best:
        _write(run.path / best_weights_file(prepared), state, prepared)
    return path


def renew_best(run: RunDirectory, prepared: Prepared, best: BestSoFar) -> None:
    """Make the best weights those of the best state up to where a resumed run stands.

    Steps that were lost may have left others, which need not come again. Where the best state is
    damaged, they are all there is of it, and stay.
    """
    path = run.path / best_weights_file(prepared)
    kept = run.read_verified(best.optimizer_step, load_weights)
    if kept is not None:
        _write(path, kept[1], prepared)
    elif not best.optimizer_step:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write(path: Path, state: StateDict, prepared: Prepared) -> None:
    architecture = prepared.model_weights.architecture
    write_model(path, state, architecture, prepared.export_dtype, prepared.tokenizer)
