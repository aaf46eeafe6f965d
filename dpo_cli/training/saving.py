"""Saving of checkpoints, and of the weights beside them for other tools."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from torch import Tensor

from dpo_cli.data.sampler import BatchSampler
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.files import remove_path
from dpo_cli.models.convert import StateDict
from dpo_cli.models.saving import size_bytes
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Saved, history
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_weights, save_state
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.reference import CachedReference
from dpo_cli.training.trainer import Trainer


def commit(
    run: RunDirectory,
    trainer: Trainer,
    state: StateDict,
    rng: Mapping[str, Tensor],
    flush: Callable[[], None],
) -> Saved:
    """Write the weights of a run, then commit a checkpoint. Only the main rank calls this.

    With shards, the other ranks take part in `save_state` in the meantime.

    Args:
        run: directory of the run.
        trainer: between two optimizer steps.
        state: state of the trained weights, from `whole_state`.
        rng: random number states of all ranks, from `rng_states`.
        flush: flushes the event stream to the disk.
    """
    began = time.perf_counter()
    model, inputs = trainer.policy.model, trainer.inputs
    keeps_best, best = inputs.profile.eval.keep_best, trainer.best.optimizer_step
    is_best = keeps_best and best == trainer.optimizer_step
    # The weights come first: a run whose last checkpoint exists is complete, so after a crash in
    # between nothing would write them again.
    weights = write_results(run, inputs, state, is_best)
    for reference in (trainer.reference, trainer.held_out_reference):
        if isinstance(reference, CachedReference):
            reference.save()
    # Before the checkpoint, too: a resume continues after it and would never write the events of
    # earlier steps again, should a power loss take them.
    flush()
    checkpoint = run.commit_checkpoint(
        trainer.optimizer_step,
        lambda directory: save_state(
            directory,
            trainable=inputs.trainable,
            model=model,
            optimizer=trainer.optimizer,
            scaler=trainer.scaler,
            optimizer_step=trainer.optimizer_step,
            best=trainer.best,
            rng=rng,
            weights=state,
            group=trainer.group,
        ),
        # Two while the run trains: should the newest be damaged, a resume uses the one before.
        keep=1 if trainer.is_over else 2,
        best=best if keeps_best else None,
    )
    return Saved(
        step=trainer.step,
        optimizer_step=trainer.optimizer_step,
        checkpoint=checkpoint.name,
        weights=weights.name,
        size_bytes=size_bytes(checkpoint.path) + size_bytes(weights),
        seconds=time.perf_counter() - began,
        is_best=is_best,
    )


def find_checkpoint(
    run: RunDirectory, order: BatchSampler, group: ProcessGroup
) -> tuple[Checkpoint | None, list[str]]:
    """Return the checkpoint to resume from (None if none was ever saved), and why not a newer one.

    Raises:
        DpoError: all checkpoints are damaged or gone, or the newest lies beyond the end of `order`.
    """
    name, optimizer_step, stamp, passed_over = group.broadcast_from_main(
        "checkpoint", lambda: _newest_checkpoint(run, order)
    )
    if name is None:
        return None, passed_over
    # The stamp is of the main rank's files; only that rank reads them.
    stamp = stamp if group.is_main else ""
    return Checkpoint(run.checkpoints_path / name, optimizer_step, stamp), passed_over


def _newest_checkpoint(
    run: RunDirectory, order: BatchSampler
) -> tuple[str | None, int, str, list[str]]:
    """Return what `find_checkpoint` returns, in values that can be sent to other ranks."""
    checkpoint, passed_over = run.newest_verified()
    was_saved = any(isinstance(event, Saved) for event in history(run.events_path))
    if checkpoint is None and (passed_over or was_saved):
        # To start over silently would throw away what was trained.
        raise DpoError(
            f"{run.name}: all checkpoints are damaged or gone",
            "Restore the directory from a backup, or start a new run.",
            passed_over,
        )
    if checkpoint is not None and checkpoint.optimizer_step > order.optimizer_steps:
        raise DpoError(
            f"{run.name} has done {checkpoint.optimizer_step} optimizer steps, and train.epochs ="
            f" {order.epochs} makes only {order.optimizer_steps}",
            "Set train.epochs to the number of epochs begun, or more.",
        )
    if checkpoint is None:
        return None, 0, "", passed_over
    return checkpoint.name, checkpoint.optimizer_step, checkpoint.stamp, passed_over


# --- weights for other tools -----------------------------------------------------------------


def weights_file(inputs: RunInputs) -> str:
    """Return the name of the weights in the run directory: a file, or a directory."""
    return inputs.trainable.file_name(inputs.profile.export.prefix)


def best_weights_file(inputs: RunInputs) -> str:
    """Return the name of the best weights; MiniMind's scripts accept its prefix as an option."""
    return inputs.trainable.file_name(f"{inputs.profile.export.prefix}_best")


def write_results(run: RunDirectory, inputs: RunInputs, state: StateDict, is_best: bool) -> Path:
    """Write the weights, and the best weights if `is_best`; return the path of the first."""
    path = run.path / weights_file(inputs)
    _write(path, state, inputs)
    if is_best:
        _write(run.path / best_weights_file(inputs), state, inputs)
    return path


def restore_best_weights(run: RunDirectory, inputs: RunInputs, best: BestSoFar) -> None:
    """Make the best weights of a resumed run those of its best checkpoint.

    A crash may have lost steps after the checkpoint whose weights were the best; training again may
    not reach them. If the best checkpoint is damaged, its weights file is all that is left, and is
    kept.
    """
    path = run.path / best_weights_file(inputs)
    kept = run.read_verified(best.optimizer_step, load_weights)
    if kept is not None:
        _write(path, kept[1], inputs)
    elif not best.optimizer_step:  # the starting weights are the best
        remove_path(path)


def _write(path: Path, state: StateDict, inputs: RunInputs) -> None:
    """Write weights for other tools, rounded as `dpo export` rounds them by default."""
    dtype, seed = inputs.export_dtype, inputs.profile.train.seed
    inputs.trainable.write(path, state, dtype, inputs.export_rounding, seed, inputs.tokenizer)
