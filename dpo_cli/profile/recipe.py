"""What a new profile proposes, and the arithmetic behind it."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.schema import KEYS
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import show_value

BETA = 5.0
TARGET_LR_SUM = 1e-3
"""Sum of the learning rates over a run. On 492 judged pairs a mean with beta 5 came to a held-out
loss of 0.482 and an accuracy of 0.825 with it; with a thirtieth a run hardly leaves ln 2. All that
was tried is in docs/recipes.md."""
MAX_SATURATION_MARGIN = 1.0
"""Nats a token; answers that far apart are long gibberish. Runs that learned well held 0.1 to 0.3
between chosen and rejected: a loss that brakes only beyond this never does."""
ASSUMED_ROWS = 20_000
"""About what MiniMind's own dpo.jsonl holds: for when there is nothing to count."""

_MEAN_OF_SCHEDULE = {"minimind2": 0.6, "minimind3": 0.55}
_SMALL_ROWS = 1000
_EVALUATIONS = 5
_USUAL_TOKENS = 200
_USUAL_PAIRS = "dataset/dpo.jsonl"
_MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
_FILL_IN = ("FILL IN: none was found.",)
_WATCH = ("They tell learning from learning by heart: watch their loss and accuracy.",)
_FAR_AWAY = os.path.join(*[os.pardir] * 4)


@dataclass(frozen=True)
class Inputs:
    """The files of a new profile, and the number of pairs; None where nothing is known."""

    model_weights: Path | None
    tokenizer: Path | None
    pairs: Path | None
    rows: int | None = None


@dataclass(frozen=True)
class Draft:
    """What a new profile is to state, as TOML has it, and why: lines above some of the keys."""

    values: Mapping[str, Any]
    notes: Mapping[str, Sequence[str]]

    @property
    def missing(self) -> list[str]:
        """The keys that the user has to fill in."""
        return [key for key, notes in self.notes.items() if notes == _FILL_IN]


def copy_profile(shipped: LoadedProfile, folder: Path) -> Draft:
    """All that a shipped profile states, for a file in `folder`."""
    stated = {key: _value(shipped, key) for key in KEYS if shipped.origins[key] != "default"}
    values = {
        key: path_value(Path(value), folder)
        if KEYS[key].kind is not Kind.PLAIN and "/" in str(value)
        else value
        for key, value in stated.items()
    }
    return Draft(values, {})


def minimind_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """The script's own values, which the shipped profile states, and the user's files.

    Shapes are left to the weights; a file that was not found is where MiniMind has it.
    """
    stated = [key for key, origin in shipped.origins.items() if origin != "default"]
    values = {key: _value(shipped, key) for key in stated if not key.startswith("model.")}
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
    """The usual values for a model in a Hugging Face directory, which has its own tokenizer.

    A model that was not found is one of the Hub's.
    """
    stated = [key for key, origin in shipped.origins.items() if origin != "default"]
    held_out, updates = _held_out(inputs.rows or ASSUMED_ROWS, shipped.profile.train.batch_size)
    learning_rate = shipped.profile.train.learning_rate
    reach = updates * _MEAN_OF_SCHEDULE[shipped.profile.train.schedule] * learning_rate
    values = {
        **{key: _value(shipped, key) for key in stated if not key.startswith("model.")},
        "model.weights": path_value(inputs.model_weights, folder)
        if inputs.model_weights
        else _MODEL,
        "data.data_path": _place(inputs.pairs, folder, _USUAL_PAIRS),
        "eval.fraction": held_out,
        "eval.interval": max(1, updates // _EVALUATIONS),
    }
    gap = saturation_margin(shipped.profile.dpo.beta, "sum", _USUAL_TOKENS)
    notes = {
        "dpo.beta": (
            f"With a sum, the loss pushes half as hard once chosen and rejected are {gap:.2f} nats",
            f"a token apart, at {_USUAL_TOKENS} response tokens: a gentle brake.",
        ),
        "train.learning_rate": (
            f"Usual for such models. Over {updates:,} updates it comes to a reach, the sum of the"
            " learning",
            f"rates, of {float(f'{reach:.1e}'):g}: AdamW moves no weight farther than about that.",
            "Small models bear more. Should the model forget: less, or a larger beta.",
        ),
        "eval.fraction": _WATCH,
    }
    paths = {"model.weights": inputs.model_weights, "data.data_path": inputs.pairs}
    return Draft(values, {**notes, **_to_fill_in(paths)})


def learning_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """Values under which the loss shows what is learned, and stops pushing when it is."""
    reference = minimind_recipe(shipped, inputs, folder)
    train = shipped.profile.train
    rows = inputs.rows or ASSUMED_ROWS
    fraction, updates = _held_out(rows, train.batch_size)
    held_out = round(fraction * rows)
    mean = _MEAN_OF_SCHEDULE[train.schedule]
    learning_rate = float(f"{TARGET_LR_SUM / (updates * mean):.1e}")
    values = {
        "data.shuffle": True,
        "dpo.beta": BETA,
        "dpo.reduction": "mean",
        "train.epochs": 1,
        "train.learning_rate": learning_rate,
        "train.log_interval": 10,
        "eval.fraction": fraction,
        "eval.interval": max(1, updates // _EVALUATIONS),
    }
    why = "they could not be counted" if inputs.pairs else "none was found"
    guessed = "" if inputs.rows else f" (about what MiniMind's own file has; {why})"
    notes = {
        "dpo.beta": (
            "The brake: with a mean and beta 0.1 the loss reads ln 2 = 0.693 while the weights",
            "move, and never stops pushing, so that only a tiny learning rate holds it. With 5 it",
            "falls visibly as the pairs are learned, and pushes less the better they are.",
        ),
        "train.learning_rate": (
            f"Chosen for an lr_sum of {show_value(TARGET_LR_SUM)}, the sum of the learning rates over"
            " all steps:",
            "AdamW moves a weight by about the learning rate in an update, so none gets farther.",
            f"  {rows:,} rows{guessed}",
            f"  less {held_out:,} held out, {train.batch_size} a batch: up to {updates:,} updates",
            f"  the schedule's mean is {mean} times the learning rate",
            f"  {show_value(TARGET_LR_SUM)} / ({updates:,} x {mean}) = {show_value(learning_rate)}",
            "More rows or epochs want a smaller one. Should the model forget: a reach of 0.0002.",
        ),
        "eval.fraction": _WATCH,
    }
    return Draft({**reference.values, **values}, {**reference.notes, **notes})


def saturation_margin(beta: float, reduction: str, response_tokens: float) -> float:
    """How far apart chosen and rejected must be, in nats a token, for the loss to push half as
    hard as it does at first.

    The loss pushes with sigmoid(-u), u = beta * margin (see `objective/losses.py`), which is half
    of its first value at u = ln 3; the margin is in nats a token where it is a mean, and
    `response_tokens` times that where it is a sum.
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
    """`path` as a profile in `folder` states it: relative, unless that is far away."""
    relative = os.path.relpath(path, folder)
    text = str(path.absolute()) if relative.startswith(_FAR_AWAY) else relative
    return (f"./{text}" if text.startswith("~") else text).replace("$", "$$")


def _held_out(rows: int, batch_size: int) -> tuple[float, int]:
    """A share to hold out of so many rows, and the updates that the others make in one epoch."""
    fraction = 0.1 if rows < _SMALL_ROWS else 0.05
    return fraction, math.ceil((rows - round(fraction * rows)) / batch_size)


def _to_fill_in(paths: Mapping[str, Path | None]) -> dict[str, Sequence[str]]:
    return {key: _FILL_IN for key, path in paths.items() if path is None}


def _place(path: Path | None, folder: Path, usual: str) -> str:
    return path_value(path, folder) if path else f"../{usual}"


def _value(shipped: LoadedProfile, key: str) -> Any:
    table, name = key.split(".")
    return getattr(getattr(shipped.profile, table), name)
