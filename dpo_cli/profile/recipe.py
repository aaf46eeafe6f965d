"""Values that `dpo init` proposes in a new profile, with their arithmetic."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value

BETA = 5.0
TARGET_LR_SUM = 1e-3
"""Sum of the learning rates over a run. On 492 judged pairs, a mean with beta 5 reached a held-out
loss of 0.482 and an accuracy of 0.825; with a thirtieth of it, the loss hardly leaves ln 2. See
docs/recipes.md for all trials."""
MAX_SATURATION_MARGIN = 1.0
"""Largest useful saturation margin, in nats per token. Runs that learned well end at a margin of
0.1 to 0.3. A model with a margin of 1 already answers gibberish, so a loss that saturates only
there does not limit the training."""
ASSUMED_ROWS = 20_000
"""Assumed number of pairs if there is no file to count: about that of MiniMind's dpo.jsonl."""

# Mean of the cosine schedules, as a factor of the learning rate: 0.1 + 0.5 and 0.1 + 0.45.
_MEAN_OF_SCHEDULE = {"minimind2": 0.6, "minimind3": 0.55}
_SMALL_ROWS = 1000
_EVALUATIONS = 5
_USUAL_TOKENS = 200
_USUAL_PAIRS = "dataset/dpo.jsonl"
_MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
_FILL_IN = ("FILL IN: no file was found.",)
_WATCH = ("Watch their loss and accuracy: they show overfitting.",)
_FAR_AWAY = os.path.join(*[os.pardir] * 4)


@dataclass(frozen=True)
class Inputs:
    """Files of a new profile and number of pairs; None if unknown."""

    model_weights: Path | None
    tokenizer: Path | None
    pairs: Path | None
    rows: int | None = None


@dataclass(frozen=True)
class Draft:
    """Values to set in a new profile, and notes to print above some of the keys."""

    values: Mapping[str, Any]
    notes: Mapping[str, Sequence[str]]

    @property
    def missing(self) -> list[str]:
        """Keys that the user has to fill in."""
        return [key for key, notes in self.notes.items() if notes == _FILL_IN]


def copy_profile(shipped: LoadedProfile, folder: Path) -> Draft:
    """Copy all values that a shipped profile sets, for a profile in `folder`."""
    values = {
        key: path_value(Path(value), folder)
        if KEYS[key].kind is not Kind.PLAIN and "/" in str(value)
        else value
        for key, value in _explicit_values(shipped).items()
    }
    return Draft(values, {})


def minimind_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """Draft a profile with the values of MiniMind's script and the user's files.

    The model's shape is left out, because it is inferred from the weights. A file that was not
    found gets the path that it has in MiniMind's repository.
    """
    values = _explicit_values(shipped, without_model=True)
    values["model.out_dir"] = _place(
        inputs.model_weights and inputs.model_weights.parent, folder, "out"
    )
    if inputs.model_weights:
        values["model.weights"] = inputs.model_weights.name
    values["model.tokenizer"] = _place(inputs.tokenizer, folder, "model")
    values["data.data_path"] = _place(inputs.pairs, folder, _USUAL_PAIRS)
    paths = {
        "model.out_dir": inputs.model_weights,
        "model.tokenizer": inputs.tokenizer,
        "data.data_path": inputs.pairs,
    }
    return Draft(values, _to_fill_in(paths))


def huggingface_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """Draft a profile with the usual values for a Hugging Face model, which has its own tokenizer.

    If no model was found, a small one on the Hub is set.
    """
    held_out, steps = _held_out(inputs.rows or ASSUMED_ROWS, shipped.profile.train.batch_size)
    learning_rate = shipped.profile.train.learning_rate
    lr_sum = steps * _MEAN_OF_SCHEDULE[shipped.profile.train.schedule] * learning_rate
    values = {
        **_explicit_values(shipped, without_model=True),
        "model.weights": path_value(inputs.model_weights, folder)
        if inputs.model_weights
        else _MODEL,
        "data.data_path": _place(inputs.pairs, folder, _USUAL_PAIRS),
        "eval.fraction": held_out,
        "eval.interval": max(1, steps // _EVALUATIONS),
    }
    margin = saturation_margin(shipped.profile.dpo.beta, "sum", _USUAL_TOKENS)
    notes = {
        "dpo.beta": (
            f"With a sum over {_USUAL_TOKENS} response tokens, the loss gradient halves at a",
            f"margin of {margin:.2f} nats per token between chosen and rejected.",
        ),
        "train.learning_rate": (
            f"Usual for such models. Over {steps:,} steps the learning rates add up to"
            f" {float(f'{lr_sum:.1e}'):g}",
            "(lr_sum): AdamW moves no weight farther than about that. Small models can take more.",
            "If the model forgets: lower it, or raise beta.",
        ),
        "eval.fraction": _WATCH,
    }
    paths = {"model.weights": inputs.model_weights, "data.data_path": inputs.pairs}
    return Draft(values, {**notes, **_to_fill_in(paths)})


def learning_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """Draft a profile in which the loss falls visibly, and saturates when the pairs are learned."""
    minimind = minimind_recipe(shipped, inputs, folder)
    train = shipped.profile.train
    rows = inputs.rows or ASSUMED_ROWS
    fraction, steps = _held_out(rows, train.batch_size)
    held_out = round(fraction * rows)
    mean = _MEAN_OF_SCHEDULE[train.schedule]
    learning_rate = float(f"{TARGET_LR_SUM / (steps * mean):.1e}")
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
    why = "the file could not be counted" if inputs.pairs else "no file was found"
    assumption = "" if inputs.rows else f" (as in MiniMind's own file; {why})"
    notes = {
        "dpo.beta": (
            "With a mean and beta 0.1 the loss stays at ln 2 = 0.693 while the weights move, and",
            "its gradient does not shrink, so that only a tiny learning rate limits the training.",
            "With beta 5 the loss falls visibly as pairs are learned, and its gradient shrinks.",
        ),
        "train.learning_rate": (
            f"Chosen for an lr_sum (sum of the learning rates over all steps) of"
            f" {show_value(TARGET_LR_SUM)}.",
            "AdamW moves a weight by about the learning rate per step, so none moves farther.",
            f"  {rows:,} rows{assumption}",
            f"  less {held_out:,} held out, {train.batch_size} per batch: up to {steps:,} steps",
            f"  mean of the schedule: {mean} times the learning rate",
            f"  {show_value(TARGET_LR_SUM)} / ({steps:,} x {mean}) = {show_value(learning_rate)}",
            "More rows or epochs need a smaller one. If the model forgets: an lr_sum of 0.0002.",
        ),
        "eval.fraction": _WATCH,
    }
    return Draft({**minimind.values, **values}, {**minimind.notes, **notes})


def saturation_margin(beta: float, reduction: str, response_tokens: float) -> float:
    """Return the margin, in nats per token, at which the gradient of the DPO loss halves.

    The gradient is proportional to sigmoid(-u) with u = beta * margin. It is 1/2 at u = 0 and half
    of that, 1/4, at u = ln 3. A sum multiplies the margin per token by `response_tokens`.
    """
    return math.log(3) / (beta * (response_tokens if reduction == "sum" else 1.0))


def suggest_lr_and_beta(learning_rate: float, lr_sum: float) -> str:
    """Return a remedy that sets learning rate and beta together.

    Args:
        learning_rate: the run's own.
        lr_sum: sum of the run's learning rates; the suggestion scales it to `TARGET_LR_SUM`.
    """
    suggested = float(f"{TARGET_LR_SUM / lr_sum * learning_rate:.1e}")
    return (
        f'Set dpo.reduction = "mean", dpo.beta = {BETA:g} and train.learning_rate ='
        f" {show_value(suggested)} together (lr_sum {show_value(TARGET_LR_SUM)}, as dpo init"
        " proposes). Do not raise the learning rate alone."
    )


def path_value(path: Path, folder: Path) -> str:
    """Format `path` for a profile in `folder`: relative, or absolute if it is far away."""
    relative = os.path.relpath(path, folder)
    text = str(path.absolute()) if relative.startswith(_FAR_AWAY) else relative
    return (f"./{text}" if text.startswith("~") else text).replace("$", "$$")


def _held_out(rows: int, batch_size: int) -> tuple[float, int]:
    """Return the share of rows to hold out, and the optimizer steps of one epoch over the rest."""
    fraction = 0.1 if rows < _SMALL_ROWS else 0.05
    return fraction, math.ceil((rows - round(fraction * rows)) / batch_size)


def _to_fill_in(paths: Mapping[str, Path | None]) -> dict[str, Sequence[str]]:
    return {key: _FILL_IN for key, path in paths.items() if path is None}


def _place(path: Path | None, folder: Path, usual: str) -> str:
    return path_value(path, folder) if path else f"../{usual}"


def _explicit_values(shipped: LoadedProfile, *, without_model: bool = False) -> dict[str, Any]:
    """Return the values that a profile sets, by key."""
    tables = {table: dict(getattr(shipped.profile, table)) for table in TABLES}
    keys = [key for key, origin in shipped.origins.items() if origin != "default"]
    return {
        key: tables[table][name]
        for key, table, name in ((key, *key.split(".")) for key in keys)
        if not (without_model and table == "model")
    }
