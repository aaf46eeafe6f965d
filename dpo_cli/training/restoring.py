"""What trains, as a run begins it or as a saved state has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.distributed.process_group import ProcessGroup
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.run.checkpoints import Checkpoint
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_best, load_weights, restore_state
from dpo_cli.training.inputs import RunInputs
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.reference import open_references
from dpo_cli.training.samples import Sampler
from dpo_cli.training.setup import make_scorer
from dpo_cli.training.trainer import Trainer, TrainerHooks


def build_trainer(
    inputs: RunInputs,
    checkpoint: Checkpoint | None,
    directory: Path,
    hooks: TrainerHooks,
    save: Callable[[Trainer], None],
    group: ProcessGroup,
) -> Trainer:
    """Policy, reference and optimizer, in the state of `checkpoint`.

    Args:
        inputs: the run's inputs.
        checkpoint: None to begin with the checkpoint's weights.
        directory: the run's, where the reference's log-probs are kept.
        watch, save, group: see `Trainer`.

    Raises:
        DpoError: the state is damaged, or not of this model.
    """

    def load_reference() -> ResponseScorer:
        return make_scorer(inputs, inputs.reference_weights)

    references = open_references(inputs, load_reference, directory)
    model_weights = inputs.weights
    if checkpoint is not None and group.is_main:
        model_weights = replace(model_weights, state=load_weights(checkpoint.path))
    policy = make_scorer(inputs, model_weights)
    optimizer = make_optimizer(
        policy.model.parameters(), kahan_summation=inputs.profile.train.kahan_summation
    )
    scaler = torch.amp.GradScaler(inputs.device.type, enabled=inputs.device.dtype == torch.float16)
    trainer = Trainer(inputs, policy, *references, optimizer, scaler, hooks, save, group)
    if inputs.profile.eval.num_samples and inputs.held_out:
        trainer.sampler = Sampler(inputs, ChatTokenizer(inputs.tokenizer), load_reference)
    if checkpoint is not None:
        trainer.optimizer_step = restore_state(
            checkpoint.path,
            architecture=model_weights.architecture,
            model=policy.model,
            optimizer=optimizer,
            scaler=scaler,
            group=group,
        )
        best = group.broadcast_from_main("best", lambda: load_best(checkpoint.path).to_dict())
        trainer.best = BestSoFar.from_dict(best)
    return trainer
