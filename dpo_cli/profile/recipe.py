"""Drafts of new profiles: the user's files, and the values of `dpo_cli.profile.doctrine`."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dpo_cli.formatting import format_count, format_percent
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import doctrine
from dpo_cli.profile.doctrine import Proposal
from dpo_cli.profile.load import LoadedProfile
from dpo_cli.profile.schema import KEYS, TABLES
from dpo_cli.profile.table import Kind
from dpo_cli.profile.text import path_value, show_value

ASSUMED_ROWS = 20_000
"""Assumed number of pairs if there is no file to count: about that of MiniMind's dpo.jsonl."""

_USUAL_TOKENS = 200
_USUAL_PAIRS = "dataset/dpo.jsonl"
_MODEL = "hf:HuggingFaceTB/SmolLM2-135M-Instruct"
FILL_IN = ("FILL IN: no file was found.",)
_WATCH = ("Watch their loss and accuracy: they show overfitting.",)
_MEASURED_RATE = ("A larger one can ruin the model; docs/recipes.md has the measurements.",)
_ADAPTER_RATE = (
    f"Adapters take about {doctrine.LORA_FACTOR} times the rate of full training: usual in the",
    "field, not measured here (docs/lora.md).",
)
_WIDTH = 90


@dataclass(frozen=True)
class Inputs:
    """Files of a new profile, and what is known of them.

    Attributes:
        model_weights: weights file or directory on this machine; None if unknown.
        tokenizer: directory; None if unknown, or if the model has its own.
        pairs: file, folder, or name on the Hub; None if unknown.
        rows: number of pairs; None if unknown.
        counted: how `rows` is known, if not by counting.
        lengths: tokens of the first pairs, see `doctrine.propose_max_seq_len`; empty if unknown.
        measured: how `lengths` is known.
        format, columns: values of `data.format` and `data.columns` to write; empty for none.
        parameters: number of weights of a model that is not on this machine; None if unknown.
    """

    model_weights: Path | None
    tokenizer: Path | None
    pairs: Path | None
    rows: int | None = None
    counted: str = ""
    lengths: Sequence[int] = ()
    measured: str = ""
    format: str = ""
    columns: Mapping[str, str] = field(default_factory=dict)
    parameters: int | None = None


@dataclass(frozen=True)
class Draft:
    """Values to set in a new profile.

    Attributes:
        values: by key.
        notes: to print above some of the keys.
        caution: what so few pairs cannot show; empty for enough pairs.
        origins: where a value comes from, to print beside its key, even if it is the default.
        remarks: lines to print above all keys.
    """

    values: Mapping[str, Any]
    notes: Mapping[str, Sequence[str]]
    caution: str = ""
    origins: Mapping[str, str] = field(default_factory=dict)
    remarks: Sequence[str] = ()

    @property
    def missing(self) -> list[str]:
        """Keys that the user has to fill in."""
        return [key for key, notes in self.notes.items() if notes == FILL_IN]


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
    values |= _pairs(inputs, folder)
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
    learning = _learning(shipped, inputs)
    values = {
        **_explicit_values(shipped, without_model=True),
        "model.weights": path_value(inputs.model_weights, folder)
        if inputs.model_weights
        else _MODEL,
        **_pairs(inputs, folder),
    }
    paths = {"model.weights": inputs.model_weights, "data.data_path": inputs.pairs}
    notes = {**learning.notes, **_to_fill_in(paths)}
    return Draft({**values, **learning.values}, notes, learning.caution)


def learning_recipe(shipped: LoadedProfile, inputs: Inputs, folder: Path) -> Draft:
    """Draft a profile in which the loss falls visibly, and saturates when the pairs are learned."""
    minimind = minimind_recipe(shipped, inputs, folder)
    learning = _learning(shipped, inputs)
    values = {**minimind.values, **learning.values}
    return Draft(values, {**minimind.notes, **learning.notes}, learning.caution)


def _learning(shipped: LoadedProfile, inputs: Inputs) -> Draft:
    """Draft the proposed values of training and evaluation."""
    train = shipped.profile.train
    rows = inputs.rows or ASSUMED_ROWS
    is_lora = shipped.profile.lora.is_on
    proposal = doctrine.propose(
        rows, train.batch_size, train.schedule, _parameters(inputs), is_lora=is_lora
    )
    values = {
        "data.shuffle": True,
        "dpo.beta": doctrine.BETA,
        "dpo.reduction": doctrine.REDUCTION,
        "train.epochs": 1,
        "train.learning_rate": proposal.learning_rate,
        "train.log_interval": _log_interval(proposal.steps),
        "eval.fraction": proposal.fraction,
        "eval.interval": proposal.interval,
        "eval.keep_best": True,
        "eval.num_samples": doctrine.SAMPLES,
    }
    margin = doctrine.saturation_margin(doctrine.BETA, doctrine.REDUCTION, _USUAL_TOKENS)
    why = "the file could not be counted" if inputs.pairs else "no file was found"
    assumption = inputs.counted if inputs.rows else f" (as in MiniMind's own file; {why})"
    notes = {
        "dpo.beta": (
            f"With a sum over {_USUAL_TOKENS} response tokens, the loss gradient halves at a",
            f"margin of {margin:.2f} nats per token between chosen and rejected.",
        ),
        "train.learning_rate": (
            f"  {rows:,} rows{assumption}",
            f"  less {proposal.held_out:,} held out, {train.batch_size} per batch: up to"
            f" {proposal.steps:,} steps",
            *_limits(proposal, is_lora=is_lora),
            *(_ADAPTER_RATE if is_lora else _MEASURED_RATE),
        ),
        "eval.fraction": (*_WATCH, *textwrap.wrap(_caution(proposal), _WIDTH)),
    }
    if inputs.lengths:
        values["data.max_seq_len"] = doctrine.propose_max_seq_len(inputs.lengths)
        notes["data.max_seq_len"] = (_describe_lengths(inputs),)
    return Draft(values, notes, _caution(proposal))


def _log_interval(steps: int) -> int:
    """Return the steps between two lines: 10, fewer for a run with fewer than 100 steps."""
    return max(1, min(10, steps // 10))


def _describe_lengths(inputs: Inputs) -> str:
    """Return the lengths of the first pairs, from which `data.max_seq_len` follows."""
    lengths = inputs.lengths
    return (
        f"First {format_count(len(lengths), 'pair')}: median {doctrine.quantile(lengths, 0.5):,}"
        f" tokens, {format_percent(doctrine.COVERED_SHARE, 0)} up to"
        f" {doctrine.quantile(lengths, doctrine.COVERED_SHARE):,}, longest {max(lengths):,}"
        f" ({inputs.measured})."
    )


def _pairs(inputs: Inputs, folder: Path) -> dict[str, Any]:
    """Return the values about the pairs."""
    values: dict[str, Any] = {"data.data_path": _place(inputs.pairs, folder, _USUAL_PAIRS)}
    if inputs.format:
        values["data.format"] = inputs.format
    if inputs.columns:
        values["data.columns"] = dict(inputs.columns)
    return values


def _limits(proposal: Proposal, *, is_lora: bool) -> Sequence[str]:
    """Return the lines that explain how the learning rate is computed."""
    factor = doctrine.LORA_FACTOR if is_lora else 1
    lr_sum, mean = show_value(factor * doctrine.MAX_LR_SUM), proposal.mean
    chosen = show_value(proposal.learning_rate)
    if proposal.learning_rate < proposal.limit:
        return (
            f"  {lr_sum} / ({proposal.steps:,} x {mean}) = {chosen}: the learning rates of all"
            " steps",
            f"  (mean of the schedule: {mean}) add up to at most {lr_sum} (lr_sum)",
        )
    known = "proposed" if proposal.limit == doctrine.MAX_LEARNING_RATE else "usual"
    return (
        f"  {chosen}: the largest that is {known} for a model of this size. It adds up to",
        f"  an lr_sum (sum over all steps) of {show_value(float(f'{proposal.lr_sum:.1e}'))}",
    )


def _caution(proposal: Proposal) -> str:
    """Return what few held-out pairs cannot show; empty if there are enough."""
    few = 0 < proposal.held_out < doctrine.MIN_HELD_OUT
    return f"{doctrine.what_held_out_shows(proposal.held_out)}." if few else ""


def _parameters(inputs: Inputs) -> int | None:
    path = inputs.model_weights
    return inputs.parameters if path is None else count_parameters(path)


def count_parameters(path: Path) -> int | None:
    """Return the number of weights, by the headers of safetensors files or the size of others.

    Other files are taken to have two bytes per weight. One with four, or with the tied embeddings
    twice, counts as a larger model, which is the safe side. None if there are no files, or if a
    header cannot be read.

    Args:
        path: weights file, or Hugging Face directory.
    """
    from safetensors import SafetensorError  # here, because most commands need no safetensors

    if path.is_file():
        return path.stat().st_size // 2
    try:
        tensors = [_tensor_weights(file) for file in path.glob("*.safetensors")]
    except (SafetensorError, OSError):
        return None
    others = [file.stat().st_size // 2 for file in path.glob("*.bin")]
    return sum(tensors or others) or None


def _tensor_weights(path: Path) -> int:
    """Return the number of weights in a safetensors file, by its header.

    Raises:
        SafetensorError: the header is damaged, or the file is cut off.
        OSError: the file cannot be read.
    """
    from safetensors import safe_open

    with safe_open(path, framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())  # noqa: SIM118


def _to_fill_in(paths: Mapping[str, Path | None]) -> dict[str, Sequence[str]]:
    return {key: FILL_IN for key, path in paths.items() if path is None}


def _place(path: Path | None, folder: Path, usual: str) -> str:
    if path is not None and is_on_hub(path):
        return str(path)
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
