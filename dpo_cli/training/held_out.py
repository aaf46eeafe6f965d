"""The held-out pairs of a run, scored by any weights exactly as the run's own evaluations do it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from dpo_cli.data.order import Window
from dpo_cli.errors import DpoError
from dpo_cli.models.convert import StateDict
from dpo_cli.profile.load import load_profile
from dpo_cli.run.events import Evaluated, Event, history
from dpo_cli.run.store import RunDirectory
from dpo_cli.training.building import configure_torch, make_scorer
from dpo_cli.training.device import resolve, tune
from dpo_cli.training.inputs import OnProgress
from dpo_cli.training.optim import make_optimizer
from dpo_cli.training.plan import Prepared, prepare
from dpo_cli.training.promises import refuse_other_inputs
from dpo_cli.training.reference import Reference, open_references
from dpo_cli.training.trainer import Trainer


def evaluation_seconds(run: RunDirectory) -> float | None:
    """How long the newest evaluation of a run took; None if it made none."""
    evaluations = [event for event in history(run.events_path) if isinstance(event, Evaluated)]
    return evaluations[-1].seconds if evaluations else None


def score_held_out(
    run: RunDirectory,
    settings: Sequence[str],
    weights: Sequence[StateDict],
    on_progress: OnProgress,
) -> list[Evaluated]:
    """What a run's evaluation says of weights, on its device and in its precision.

    Args:
        run: has held-out pairs.
        settings: keys of its profile that are others here, such as where the data lies now.
        weights: each in the Hugging Face layout, of any float type.
        on_progress: hears how far it is.

    Returns:
        Of each weights, the event that the run would have written.

    Raises:
        DpoError: an input is gone or has changed, or the run's device is not here.
    """
    profile, promised = load_profile(run.profile_path, settings).profile, run.read_plan()
    if promised is None:
        raise DpoError(f"{run.name} has no plan")
    configure_torch(profile)
    compute = resolve(profile.train.device, profile.train.dtype)
    tune(compute, promised["environment"].get("float32_matmul"), tf32=profile.train.tf32)
    prepared = prepare(profile, compute, run, on_progress)
    refuse_other_inputs(promised, prepared.plan())
    references = open_references(
        prepared, lambda: make_scorer(prepared, prepared.reference), run.path
    )
    return [_evaluate(prepared, references, state, on_progress) for state in weights]


def _evaluate(
    prepared: Prepared,
    references: tuple[Reference, Reference],
    state: StateDict,
    on_progress: OnProgress,
) -> Evaluated:
    policy = make_scorer(prepared, replace(prepared.checkpoint, state=state))
    listener = _Listener(on_progress)
    trainer = Trainer(
        prepared,
        policy,
        *references,
        make_optimizer(policy.model.parameters()),
        torch.amp.GradScaler(prepared.compute.device.type, enabled=False),
        watch=listener,
        save=lambda trainer: None,
    )
    trainer.evaluate()
    [evaluated] = listener.heard
    return evaluated


class _Listener:
    """Hears what an evaluation comes to."""

    def __init__(self, on_progress: OnProgress) -> None:
        self.heard: list[Evaluated] = []
        self._on_progress = on_progress

    def emit(self, event: Event) -> None:
        """Keep the evaluation."""
        if isinstance(event, Evaluated):
            self.heard.append(event)

    def asked(self) -> set[str]:
        """Nothing."""
        return set()

    def progress(self, phase: str, done: int, total: int, unit: str) -> None:
        """Pass it on."""
        self._on_progress(phase, done, total, unit)

    def not_finite(self, trainer: Trainer, window: Window, losses: Sequence[float]) -> None:
        """Nothing is trained."""
