"""Evaluation of one model on preference pairs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from dpo_cli.api.arguments import OnProgress, Settings, as_overrides, ignore_progress, root_of
from dpo_cli.errors import UsageError
from dpo_cli.run.eval_config import find_eval_config
from dpo_cli.run.models import NamedModel, find_model

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import Evaluation


def evaluate_named(
    named: NamedModel,
    data: str | Path | None = None,
    *,
    reference: str | Path | None = None,
    profile: str | Path | None = None,
    tokenizer: str | Path | None = None,
    best: bool = False,
    settings: Settings | None = None,
    runs_dir: str | Path | None = None,
    on_progress: OnProgress | None = None,
) -> Evaluation:
    """Evaluate a model that was found; see `dpo_cli.api.evaluate`."""
    root = root_of(runs_dir)
    if best and named.run is None:
        raise UsageError(
            f"{named.title} is not a run, so it has no best checkpoint", "Leave out best."
        )
    eval_config = find_eval_config(
        [named],
        runs_root=root,
        data=None if data is None else Path(data),
        reference=None if reference is None else find_model(str(reference), root),
        profile_path=None if profile is None else Path(profile),
        tokenizer=None if tokenizer is None else Path(tokenizer),
        settings=as_overrides(settings),
    )
    if eval_config is None:
        owner = named.run.name if named.run else profile
        message = f"{owner} has no held-out pairs"
        remedy = "Name preference pairs: --data FILE (data=FILE in Python)."
        if not owner:
            message = f"{named.title} has no pairs of its own"
            remedy = (
                "Name preference pairs: --data FILE (data=FILE in Python), or the profile of a run"
                " that holds out pairs: --profile FILE."
            )
        raise UsageError(message, remedy)
    report = on_progress or ignore_progress
    report("loading", 0, 0, "")
    from dpo_cli.inference.evaluate import evaluate_models, model_settings  # loads torch
    from dpo_cli.inference.open_model import open_model

    opened = open_model(named, model_settings(eval_config), best=best)
    return evaluate_models(eval_config, [opened], report)
