"""The saved states of a run: one is committed, and the newest is found again."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from torch import Tensor

from dpo_cli.data.sampler import BatchSampler
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.errors import DpoError
from dpo_cli.models.loading import to_disk_names
from dpo_cli.models.saving import size_bytes
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.run.directory import RunDirectory
from dpo_cli.run.events import Saved, history
from dpo_cli.training.checkpointing import save_state
from dpo_cli.training.reference import CachedReference
from dpo_cli.training.trainer import Trainer
from dpo_cli.training.weights_files import write_results


def commit(
    run: RunDirectory, trainer: Trainer, rng: Mapping[str, Tensor], flush: Callable[[], None]
) -> Saved:
    """Save where a run stands, and renew the weights beside it.

    Args:
        run: gets both.
        trainer: stands between two optimizer steps.
        rng: of all ranks, see `rng_states`.
        flush: brings to disk what was told of the steps so far.

    Returns:
        What there is to tell.
    """
    began = time.perf_counter()
    model, inputs = trainer.policy.model, trainer.inputs
    keeps_best, best = inputs.profile.eval.keep_best, trainer.best.optimizer_step
    is_best = keeps_best and best == trainer.optimizer_step
    # First, so that a run whose last checkpoint is there has its result, too.
    state = to_disk_names(model, model.state_dict())
    weights = write_results(run, inputs, state, is_best)
    for reference in (trainer.reference, trainer.held_out_reference):
        if isinstance(reference, CachedReference):
            reference.keep()
    # A state must not outlive the rows of the steps that made it.
    flush()
    checkpoint = run.commit_checkpoint(
        trainer.optimizer_step,
        lambda directory: save_state(
            directory,
            model=model,
            optimizer=trainer.optimizer,
            scaler=trainer.scaler,
            optimizer_step=trainer.optimizer_step,
            best=trainer.best,
            rng=rng,
        ),
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
    """The state to go on from, and those passed over; none if nothing was ever saved.

    Raises:
        DpoError: what was saved is damaged or gone, all of it; or it lies beyond the end of
            `order`.
    """
    name, optimizer_step, passed_over = group.broadcast_from_main(
        "checkpoint", lambda: _newest(run, order)
    )
    if name is None:
        return None, passed_over
    return Checkpoint(run.checkpoints_path / name, optimizer_step), passed_over


def _newest(run: RunDirectory, order: BatchSampler) -> tuple[str | None, int, list[str]]:
    """What `find_checkpoint` returns, in words that can be sent: None and 0 for no state."""
    checkpoint, passed_over = run.newest_verified()
    was_saved = any(isinstance(event, Saved) for event in history(run.events_path))
    if checkpoint is None and (passed_over or was_saved):
        raise DpoError(
            f"{run.name}: every saved state is damaged or gone, and a run never starts over by"
            " itself",
            "restore the directory from a backup, or start a new run",
            passed_over,
        )
    if checkpoint is not None and checkpoint.optimizer_step > order.optimizer_steps:
        raise DpoError(
            f"{run.name} has done {checkpoint.optimizer_step} optimizer steps, and train.epochs ="
            f" {order.epochs} makes only {order.optimizer_steps}",
            "state as many epochs as are begun, or more",
        )
    if checkpoint is None:
        return None, 0, passed_over
    return checkpoint.name, checkpoint.optimizer_step, passed_over
