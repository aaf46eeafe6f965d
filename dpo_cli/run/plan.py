"""Plan of a run: plain values that describe what is trained, written once as `plan.json`.

The main rank writes the plan before the first step. A resume computes the plan again and compares
the fingerprints of the inputs. The terminal, reports, exports and alerts read it.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dpo_cli.errors import DpoError
from dpo_cli.formatting import format_percent
from dpo_cli.learning_rate import last_steps
from dpo_cli.run.typed_json import typed

VERSION = 2
"""Increased when a field without a default is added, or one is removed or changes its meaning;
other versions do not load."""

KNOWN_SHARE = 0.05
"""Tolerated share of held-out pairs whose prompt is also trained on."""

_LEAST = {"train.log_interval": 1, "train.epochs": 1, "data.max_seq_len": 1, "eval.interval": 0}
"""Settings with which readers of a plan count, and the least value of each."""

_REMEDY = "Restore it: the newest Planned line of events.jsonl contains the same plan."


class OtherVersionError(DpoError):
    """A file or run that another version of dpo wrote, and that does not load."""

    def __init__(self, source: str, version: object = None) -> None:
        is_later = isinstance(version, int) and version > VERSION
        super().__init__(
            f"{source}: written by {'a later' if is_later else 'an earlier'} version of dpo; it"
            " does not load",
            "Start a new run, or use the version of dpo that wrote it.",
        )


@dataclass(frozen=True)
class PlannedModel:
    """Model of a run.

    Attributes:
        architecture: name of the architecture, for example "minimind2" or "llama".
        description: one line for people.
        parameters: number of parameters, tied weights counted once.
        shape: the architecture as plain values, see `dpo_cli.models.spec.architecture_of`.
        weights_dtype: dtype of the starting weights in their file, for example "float16".
        trained_parameters: number of weights that are trained; None for all.
        weights_file: name of the trained weights in the run directory (a file or a directory).
    """

    architecture: str
    description: str
    parameters: int
    shape: dict[str, Any]
    weights_dtype: str
    weights_file: str
    trained_parameters: int | None = None


@dataclass(frozen=True)
class PlannedPairs:
    """Numbers of pairs, of skipped rows, and of values in each column that is not read.

    Attributes:
        truncated, held_out_truncated: pairs that lose text at `data.max_seq_len`.
        held_out_known: held-out pairs whose prompt is also that of a pair to train on.
        whole_prompts: the split by `eval.fraction` keeps the pairs of a prompt together. A run
            keeps its split: False in runs of earlier versions, also when they are resumed.

    The three numbers are None in runs of earlier versions.
    """

    kept: int
    skipped_rows: int
    held_out: int
    held_out_skipped_rows: int
    unread_columns: dict[str, int] = field(default_factory=dict)
    truncated: int | None = None
    held_out_truncated: int | None = None
    held_out_known: int | None = None
    whole_prompts: bool = False

    def caveats(self) -> list[str]:
        """Return what makes the results of the run less telling, one clause each."""
        clauses = []
        if (self.held_out_known or 0) > KNOWN_SHARE * self.held_out:
            clauses.append(
                f"{part_of(self.held_out_known, self.held_out)} held-out pairs have a prompt that"
                " is also trained on: they make the result look better than it is"
            )
        if self.truncated or self.held_out_truncated:
            clauses.append(
                f"{part_of(self.truncated, self.kept)} pairs to train on and"
                f" {part_of(self.held_out_truncated, self.held_out)} held-out pairs are truncated"
                " at data.max_seq_len: what is cut is neither learned nor evaluated"
            )
        return clauses


def part_of(number: int | None, total: int) -> str:
    """Return a part of a total with its share: "3 of 40 (8 %)"; the part may be unknown."""
    if number is None:
        return f"unknown of {total:,}"
    share = f" ({format_percent(number / total, 0)})" if total else ""
    return f"{number:,} of {total:,}{share}"


@dataclass(frozen=True)
class PlannedSteps:
    """Length of a run. `accumulation_steps` counts the micro-batches of all ranks together."""

    micro_batches: int
    micro_batches_per_epoch: int
    optimizer_steps: int
    accumulation_steps: int

    @property
    def epochs(self) -> int:
        """Number of epochs."""
        return self.micro_batches // self.micro_batches_per_epoch

    @property
    def last_steps(self) -> list[int]:
        """Numbers of the last micro-batch of each optimizer step."""
        return last_steps(self.micro_batches_per_epoch, self.accumulation_steps, self.epochs)


@dataclass(frozen=True)
class Plan:
    """Content of `plan.json`.

    Attributes:
        loss: the objective in words, for example "DPO".
        loss_at_start: value of the loss while the policy equals the reference; None where it
            depends on the policy's own log-probs.
        router_aux_loss_coef: weight of the experts' aux_loss; resolved, where the profile may leave
            it to the architecture.
        settings: the profile, by table and key; keys without a value are left out.
        device: for example "cpu" or "cuda:0".
        dtype: computation dtype, for example "float32".
        fingerprints: hex SHA-256 of each input: weights, reference, tokenizer, data, and held_out
            if held-out pairs have a file of their own.
        environment: versions, threads and processor, on which the last bits of a run depend.
        other_environments: earlier environments, if a run was resumed elsewhere.
    """

    model: PlannedModel
    pairs: PlannedPairs
    steps: PlannedSteps
    loss: str
    loss_at_start: float | None
    router_aux_loss_coef: float
    settings: dict[str, dict[str, Any]]
    device: str
    dtype: str
    fingerprints: dict[str, str]
    environment: dict[str, str]
    other_environments: tuple[str, ...] = ()
    version: int = VERSION

    def __post_init__(self) -> None:
        for key, least in _LEAST.items():
            value = self.setting(key)
            if value is None and key == "eval.interval":  # no evaluation
                continue
            if type(value) is not int or value < least:
                raise TypeError(f"the setting {key} is {value!r:.40}, not a whole number")

    def setting(self, key: str) -> Any:
        """Return the value of a profile key such as "dpo.beta"; None if it has none."""
        table, _, name = key.partition(".")
        return self.settings.get(table, {}).get(name)

    def to_dict(self) -> dict[str, Any]:
        """Return plain values that JSON can hold."""
        return dataclasses.asdict(self)

    @classmethod
    def from_json(cls, text: bytes, source: str) -> Plan:
        """Parse the JSON of a plan; see `from_dict`."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DpoError(f"{source} is damaged: {error}", _REMEDY) from error
        return cls.from_dict(values, source)

    @classmethod
    def from_dict(cls, values: Any, source: str = "the plan") -> Plan:
        """Build the plan that `to_dict` returned.

        Args:
            values: as read from JSON.
            source: the file, for error messages.

        Raises:
            DpoError: another version of dpo wrote the values, or they are damaged.
        """
        if not isinstance(values, Mapping):
            raise DpoError(f"{source} is damaged: it is not a JSON object", _REMEDY)
        if values.get("version") != VERSION:
            raise OtherVersionError(source, values.get("version"))
        try:
            plan: Plan = typed(values, cls)
            return plan
        except (KeyError, TypeError) as error:
            raise DpoError(f"{source} is damaged: {error}", _REMEDY) from error
