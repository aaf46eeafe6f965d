"""The weights beside the states of a run, for other tools: of the newest state, and of the best."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_cli.models.convert import StateDict
from dpo_cli.models.saving import write_model
from dpo_cli.run.directory import RunDirectory
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_weights
from dpo_cli.training.inputs import RunInputs


def weights_file(inputs: RunInputs) -> str:
    """The name of the weights in the run directory: of a file, or of a directory."""
    return inputs.weights.architecture.file_name(inputs.profile.export.prefix)


def best_weights_file(inputs: RunInputs) -> str:
    """The same of the best state, by another prefix, which MiniMind's scripts can be told."""
    return inputs.weights.architecture.file_name(f"{inputs.profile.export.prefix}_best")


def write_results(run: RunDirectory, inputs: RunInputs, state: StateDict, is_best: bool) -> Path:
    """Renew the weights from `state`, and the best ones where that is what it is."""
    path = run.path / weights_file(inputs)
    _write(path, state, inputs)
    if is_best:
        _write(run.path / best_weights_file(inputs), state, inputs)
    return path


def renew_best(run: RunDirectory, inputs: RunInputs, best: BestSoFar) -> None:
    """Make the best weights those of the best state up to where a resumed run stands.

    Steps that were lost may have left others, which need not come again. Where the best state is
    damaged, they are all there is of it, and stay.
    """
    path = run.path / best_weights_file(inputs)
    kept = run.read_verified(best.optimizer_step, load_weights)
    if kept is not None:
        _write(path, kept[1], inputs)
    elif not best.optimizer_step:
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)


def _write(path: Path, state: StateDict, inputs: RunInputs) -> None:
    architecture = inputs.weights.architecture
    write_model(path, state, architecture, inputs.export_dtype, inputs.tokenizer)
