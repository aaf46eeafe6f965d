"""What trains, as a run begins it or as a saved state has it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.distributed.ranks import Ranks
from dpo_cli.models.scoring import ResponseScorer
from dpo_cli.run.checkpoints import Generation
from dpo_cli.training.best import BestSoFar
from dpo_cli.training.checkpointing import load_best, load_weights, restore_state
from dpo_cli.training.optimizer import make_optimizer
from dpo_cli.training.plan import Prepared
from dpo_cli.training.reference import open_references
from dpo_cli.training.samples import Sampler
from dpo_cli.training.setup import make_scorer
from dpo_cli.training.trainer import Trainer, Watch


def build_trainer(
    prepared: Prepared,
    generation: Generation | None,
    directory: Path,
    watch: Watch,
    save: Callable[[Trainer], None],
    ranks: Ranks,
) -> Trainer:
    """Policy, reference and optimizer, in the state of `generation`.

    Args:
        prepared: the run's inputs.
        generation: None to begin with the checkpoint's weights.
        directory: the run's, where the reference's log-probs are kept.
        watch, save, ranks: see `Trainer`.

    Raises:
        DpoError: the state is damaged, or not of this model.
    """

    def load_reference() -> ResponseScorer:
        return make_scorer(prepared, prepared.reference)

    references = open_references(prepared, load_reference, directory)
    checkpoint = prepared.checkpoint
    if generation is not None and ranks.is_leader:
        checkpoint = replace(checkpoint, state=load_weights(generation.path))
    policy = make_scorer(prepared, checkpoint)
    optimizer = make_optimizer(
        policy.model.parameters(), compensated=prepared.profile.train.compensated
    )
    scaler = torch.amp.GradScaler(
        prepared.compute.device.type, enabled=prepared.compute.dtype == torch.float16
    )
    trainer = Trainer(prepared, policy, *references, optimizer, scaler, watch, save, ranks)
    if prepared.profile.eval.samples and prepared.held_out:
        trainer.sampler = Sampler(prepared, ChatTokenizer(prepared.tokenizer), load_reference)
    if generation is not None:
        trainer.optimizer_step = restore_state(
            generation.path,
            architecture=checkpoint.architecture,
            model=policy.model,
            optimizer=optimizer,
            scaler=scaler,
            ranks=ranks,
        )
        best = ranks.from_leader("best", lambda: load_best(generation.path).to_dict())
        trainer.best = BestSoFar.from_dict(best)
    return trainer
