"""The half-precision files beside the states of a run: of the newest state, and of the best."""

from __future__ import annotations

import shutil
from pathlib import Path

from dpo_cli.files import write_atomically
from dpo_cli.models.convert import StateDict
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.plan import Prepared
from dpo_cli.training.state import load_weights
from dpo_cli.training.weights import write_weights


def weights_file(prepared: Prepared) -> str:
    """The name of the half-precision weights in the run directory."""
    return prepared.checkpoint.architecture.file_name(prepared.profile.export.prefix)


def best_weights_file(prepared: Prepared) -> str:
    """The same of the best state: a prefix that MiniMind's scripts can be told, and the shape."""
    return prepared.checkpoint.architecture.file_name(f"{prepared.profile.export.prefix}_best")


def write_results(run: RunDirectory, prepared: Prepared, state: StateDict, is_best: bool) -> Path:
    """Renew the weights' file from `state`, and the best one's where that is what it is."""
    path = run.path / weights_file(prepared)
    _write(path, state, prepared)
    if is_best:
        best = run.path / best_weights_file(prepared)
        write_atomically(best, lambda temporary: _copy(path, temporary))
    return path


def renew_best(run: RunDirectory, prepared: Prepared, best: BestSoFar) -> None:
    """Make the best weights' file that of the best state up to where a resumed run stands.

    Steps that were lost may have left one, which need not come again. Where the best state is
    damaged, the file is all there is of it, and stays.
    """
    path = run.path / best_weights_file(prepared)
    kept = run.read_verified(best.optimizer_step, load_weights)
    if kept is not None:
        _write(path, kept[1], prepared)
    elif not best.optimizer_step:
        path.unlink(missing_ok=True)


def _copy(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def _write(path: Path, state: StateDict, prepared: Prepared) -> None:
    architecture = prepared.checkpoint.architecture
    write_weights(path, state, architecture, prepared.profile.export.dtype)
