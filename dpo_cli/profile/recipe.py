"""What a new profile proposes, and the arithmetic behind it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.text import show_value

BETA = 5.0
REACH = 1e-3
"""Sum of the learning rates over a run. On 492 judged pairs a mean with beta 5 came to a held-out
loss of 0.487 and an accuracy of 0.82 with it; with a fifth of it a run hardly leaves ln 2."""
USUAL_ROWS = 20_000
"""About what MiniMind's own dpo.jsonl holds: for when there is no file to count."""

_MEAN_OF_SCHEDULE = {"minimind2": 0.6, "minimind3": 0.55}
_SMALL_ROWS = 1000
_EVALUATIONS = 5


@dataclass(frozen=True)
class Draft:
    """What a new profile is to state, in TOML's values, and why: lines above some of the keys."""

    values: Mapping[str, Any]
    notes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


def reference_recipe(shipped: LoadedProfile) -> Draft:
    """The script's own values: whatever the shipped profile states that is no path or shape."""
    return Draft(
        {
            key: getattr(getattr(shipped.profile, table), name)
            for key, origin in shipped.origins.items()
            for table, name in [key.split(".")]
            if origin != "default" and table != "model" and key != "data.data_path"
        }
    )


def learning_recipe(shipped: LoadedProfile, rows: int | None) -> Draft:
    """Values under which the loss shows what is learned, and stops pushing when it is.

    Args:
        shipped: the reference's values for this kind of model.
        rows: of the data file, if it is known.
    """
    reference = reference_recipe(shipped)
    train = shipped.profile.train
    counted = rows or USUAL_ROWS
    fraction = 0.1 if counted < _SMALL_ROWS else 0.05
    held_out = round(fraction * counted)
    steps = math.ceil((counted - held_out) / train.batch_size)
    mean = _MEAN_OF_SCHEDULE[train.schedule]
    learning_rate = float(f"{REACH / (steps * mean):.1e}")
    values = {
        "data.shuffle": True,
        "dpo.beta": BETA,
        "dpo.reduction": "mean",
        "train.epochs": 1,
        "train.learning_rate": learning_rate,
        "train.log_interval": 10,
        "eval.fraction": fraction,
        "eval.interval": max(1, steps // _EVALUATIONS),
    }
    source = "rows" if rows else "rows, as many as MiniMind's own file has about (none was found)"
    notes = {
        "dpo.beta": (
            "The brake. With a mean and beta 0.1 the loss reads ln 2 = 0.693 while the weights",
            "move, and never stops pushing: only a tiny learning rate holds it. With 5 it falls",
            "visibly as the pairs are learned, and pushes less the better they are.",
        ),
        "train.learning_rate": (
            f"Chosen from a reach of {show_value(REACH)}, the sum of the learning rates over all"
            " updates:",
            "AdamW moves a weight by about the learning rate in an update, so none gets farther.",
            f"  {counted:,} {source}, less {held_out:,} held out,",
            f"  / {train.batch_size} a batch = {steps:,} updates; the schedule averages"
            f" {mean} times the learning rate:",
            f"  {show_value(REACH)} / ({steps:,} x {mean}) = {show_value(learning_rate)}",
            "More epochs or rows want a smaller one. If the model forgets: a reach of 2e-4.",
        ),
        "eval.fraction": (
            "Held-out pairs tell learning from learning by heart: watch their loss and accuracy.",
        ),
    }
    return Draft({**reference.values, **values}, notes)
