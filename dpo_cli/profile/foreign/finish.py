"""Last steps of a translation: what several settings, the model or their lack decide together."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dpo_cli.profile.folder import longest_input
from dpo_cli.profile.foreign.model_facts import choose_targets
from dpo_cli.profile.foreign.translation import Translation, shown
from dpo_cli.profile.losses import LOSSES
from dpo_cli.profile.pairs import Data
from dpo_cli.profile.text import show_value
from dpo_cli.profile.train import Train


def choose_reduction(title: str, result: Translation) -> None:
    """Set the reduction of the log-probs: a sum, unless the loss needs a mean."""
    if "dpo.reduction" in result.values:  # MiniMind's own
        return
    loss = result.values.get("dpo.loss", "sigmoid")
    names = loss if isinstance(loss, list) else [loss]
    means = [name for name in names if name in LOSSES and LOSSES[name].mean]
    if not means:
        result.values["dpo.reduction"] = "sum"
        result.origins["dpo.reduction"] = f"{title} sums the log-probs of a response"
        return
    result.values["dpo.reduction"] = "mean"
    result.origins["dpo.reduction"] = f"the loss {means[0]} uses means"
    if sums := [name for name in names if name not in means and name != "sft"]:
        result.differences.append(
            f"dpo.reduction: {means[0]} needs a mean, so {sums[0]} has one, too, where {title} has"
            " a sum"
        )


def cap_length(result: Translation, directory: Path | None) -> None:
    """Shorten pairs to the positions of the model, if its configuration is on this machine."""
    key = "data.max_seq_len"
    positions = longest_input(directory) if directory else None
    wanted = result.values.get(key, Data.model_fields["max_seq_len"].default)
    if positions is None or wanted <= positions:
        return
    name = result.setters.get(key, [key])[-1]
    result.values[key] = positions
    result.origins[key] = f"the model has {positions:,} positions; {name} = {wanted:,}"
    result.differences.append(
        f"{name} = {wanted:,}: the model has {positions:,} positions, so {key} = {positions}"
    )


def choose_layers(given: Mapping[str, Any], directory: Path | None, result: Translation) -> None:
    """Adapt the layers that peft adapts by default, if TRL's settings name none."""
    key = "lora.target_modules"
    if "lora.rank" not in result.values or key in result.values:
        return
    targets, remark = choose_targets(given, str(result.values.get("model.weights", "")), directory)
    if targets:
        result.values[key] = list(targets)
        result.origins[key] = "peft's default for this model"
    result.differences.append(remark)


def require_held_out(given: Mapping[str, Any], result: Translation) -> None:
    """Refuse held-out pairs that are those of the training; list evaluations without any."""
    key, data = "eval.path", result.values.get("data.data_path")
    held_out = result.values.get(key)
    if held_out is not None and held_out in (data if isinstance(data, list) else [data]):
        name = result.setters.get(key, ["the held-out pairs"])[-1]
        del result.values[key], result.origins[key]
        result.missing.append(f"{name}: would hold out the training pairs; set {key} to others")
    strategy = str(given.get("eval_strategy", "no")).lower()
    has_pairs = {key, "eval.fraction"} & result.values.keys()
    if strategy not in ("no", "false", "none") and not has_pairs:
        given_as = f"eval_strategy = {shown(given['eval_strategy'])}"
        result.without_effect = [e for e in result.without_effect if not e.startswith(given_as)]
        result.missing.append(
            f"{given_as}: no held-out pairs are set; set {key} to their file, or eval.fraction to a"
            " share of the training pairs"
        )


def require_rate(title: str, result: Translation) -> None:
    """Name the learning rate that is used where the settings have none."""
    key = "train.learning_rate"
    if key in result.values:
        return
    result.values[key] = Train.model_fields["learning_rate"].default
    result.origins[key] = "not given, so the default here"
    result.missing.insert(
        0,
        f"learning_rate: {title} gets none from these settings, so {key} ="
        f" {show_value(result.values[key])}, for tiny steps; set it",
    )
