"""Schema of a profile: every key with type, limits, default, description and effect on a resume.

The docstring under a field is its description in the JSON Schema and in commented profiles. The
pydantic models check values only; `dpo_cli.profile.load` reads the files and resolves paths.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, cast

from pydantic import BaseModel, Field, ValidationInfo, field_validator, model_validator

from dpo_cli.profile.launch import Launch
from dpo_cli.profile.lora import Lora
from dpo_cli.profile.model import Model
from dpo_cli.profile.objective import Dpo
from dpo_cli.profile.pairs import Data
from dpo_cli.profile.table import (
    HELD_OUT,
    MATHEMATICS,
    NONE,
    POSITION,
    REFERENCE,
    SPLIT,
    Affects,
    Effect,
    Kind,
    Location,
    Table,
    contradiction,
)
from dpo_cli.profile.tracking import Track
from dpo_cli.profile.train import Train


class Eval(Table):
    """Held-out pairs, which are evaluated but not trained on."""

    fraction: Annotated[float, Field(ge=0, lt=1), POSITION, SPLIT | REFERENCE] = 0.0
    """Share of the pairs that is held out of training and evaluated. Pairs with the same prompt
    stay together."""

    path: Annotated[
        Location | None,
        Field(examples=["../dataset/dpo_test.jsonl"]),
        Kind.DATA,
        MATHEMATICS,
        HELD_OUT | REFERENCE,
    ] = None
    """Held-out pairs, instead of a fraction of the training pairs: anything that data.data_path
    accepts, except for a list."""

    interval: Annotated[int, Field(ge=0), MATHEMATICS] = 0
    """Micro-batches between two evaluations; 0 evaluates once before and once after training. No
    effect without held-out pairs."""

    keep_best: Annotated[bool, NONE] = False
    """Keep the checkpoint with the lowest held-out loss besides the newest ones. Its weights are
    also written to a file of their own, rlhf_best_512.pth. A new best is saved at once."""

    num_samples: Annotated[int, Field(ge=0, examples=[3]), NONE] = 0
    """Held-out prompts that policy and reference answer at each evaluation. The answers are for
    side-by-side reading: greedy decoding, up to 96 tokens each."""

    patience: Annotated[int, Field(ge=0), NONE] = 0
    """Stop after this many evaluations in a row without a lower held-out loss; 0 trains to the end.
    Needs eval.interval."""

    @field_validator("patience")
    @classmethod
    def _check_patience(cls, value: int, info: ValidationInfo) -> int:
        if value and info.data.get("interval") == 0:
            raise contradiction("needs evaluations during training; set eval.interval")
        return value

    @field_validator("path")
    @classmethod
    def _check_path(cls, value: Path | None, info: ValidationInfo) -> Path | None:
        if value is not None and info.data.get("fraction"):
            raise contradiction(
                "held-out pairs come from a file or are a fraction of the training pairs, not "
                "both; leave out eval.path or eval.fraction"
            )
        return value


class Export(Table):
    """Exported weights: a file for MiniMind's own scripts, or a Hugging Face directory."""

    # At most 48 characters of 4 bytes each, so that the temporary file names that are made from
    # the prefix stay below 255 bytes.
    prefix: Annotated[
        str, Field(pattern=r"^[^/\x00-\x1f]{1,48}$", examples=["rlhf", "dpo"]), NONE
    ] = "rlhf"
    """Prefix of the file name; hidden size and "_moe" follow, as in rlhf_512.pth. It is the name of
    an exported Hugging Face directory."""

    dtype: Annotated[Literal["auto", "float16", "bfloat16", "float32"], NONE] = "auto"
    """Precision of the file. Do not export weights that started as float16 in bfloat16: its
    rounding is larger than the update. "auto" is float16 for MiniMind, and the precision of the
    starting weights for a Hugging Face directory. bfloat16 weights are rounded stochastically,
    which keeps the update; the nearest values would lose most of it."""


class Profile(Table):
    """All settings of a run. Paths are absolute once `load_profile` has read them."""

    model: Model
    data: Data
    dpo: Dpo = Dpo()
    train: Train = Train()
    lora: Lora = Lora()
    eval: Eval = Eval()
    export: Export = Export()
    launch: Launch = Launch()
    track: Track = Track()

    @model_validator(mode="after")
    def _check_weights_dtype(self) -> Profile:
        train = self.train
        if self.model.weights_dtype == "float32":
            return self
        if self.lora.is_on or self.model.quantization:
            problem = "is for the training of all weights; remove it: weights below adapters have"
            problem += " model.quantization"
        elif train.optimizer != "adamw":
            problem = f'works with train.optimizer = "adamw" only, not with "{train.optimizer}";'
            problem += " choose adamw, or remove the key"
        elif train.kahan_summation:
            problem = "keeps float32 numbers for the optimizer; remove train.kahan_summation"
        elif train.dtype not in ("auto", "bfloat16"):
            problem = f'bfloat16 weights do not compute in {train.dtype}; set train.dtype = "auto"'
        else:
            return self
        raise contradiction(problem, key="model.weights_dtype")

    @property
    def compute_dtype(self) -> str:
        """Return `train.dtype`, where "auto" is bfloat16 if the weights are."""
        is_bfloat16 = self.model.weights_dtype == "bfloat16"
        return "bfloat16" if is_bfloat16 and self.train.dtype == "auto" else self.train.dtype

    @property
    def has_dropout(self) -> bool:
        """Return True if training drops anything at random."""
        return bool(self.model.dropout or (self.lora.is_on and self.lora.dropout))


@dataclass(frozen=True)
class Key:
    """One key of the profile."""

    name: str
    """Dotted name, for example "train.learning_rate"."""
    description: str
    effect: Effect
    affects: Affects
    kind: Kind
    examples: tuple[object, ...]
    """Valid values; the default if the schema gives no others."""
    default: object
    """Value if the profile does not set the key; None if there is none, or it is inferred."""
    is_required: bool
    """True if every profile must set the key."""


TABLES: Mapping[str, type[BaseModel]] = {
    name: cast(type[BaseModel], info.annotation) for name, info in Profile.model_fields.items()
}
"""Tables of a profile by name, in order."""


def _describe_keys() -> dict[str, Key]:
    keys = {}
    for table, model in TABLES.items():
        for field, info in model.model_fields.items():
            keys[f"{table}.{field}"] = Key(
                name=f"{table}.{field}",
                description=" ".join((info.description or "").split()),
                effect=next(item for item in info.metadata if isinstance(item, Effect)),
                affects=next(
                    (item for item in info.metadata if isinstance(item, Affects)), Affects(0)
                ),
                kind=next((item for item in info.metadata if isinstance(item, Kind)), Kind.PLAIN),
                examples=tuple(info.examples or [info.default]),
                default=None if info.is_required() else info.default,
                is_required=info.is_required(),
            )
    return keys


KEYS: Mapping[str, Key] = _describe_keys()
"""All keys by dotted name, in the order of the schema."""


def keys_affecting(affects: Affects, *, plain: bool = False) -> tuple[str, ...]:
    """Return the keys that any of `affects` depends on, in the order of the schema.

    With `plain` only keys whose value is no path: files are compared by content elsewhere.
    """
    return tuple(
        key.name
        for key in KEYS.values()
        if key.affects & affects and not (plain and key.kind is not Kind.PLAIN)
    )
