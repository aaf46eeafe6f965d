"""The table `[data]`: where the preference pairs come from, and how they become tokens."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, ValidationInfo, field_validator

from dpo_cli.profile.table import (
    HELD_OUT,
    NONE,
    POSITION,
    REFERENCE,
    SPLIT,
    TOKENS,
    Kind,
    Location,
    Table,
    contradiction,
)
from dpo_cli.profile.text import show_value

COLUMNS = ("prompt", "chosen", "rejected", "conversations", "system")
"""What formats of preference pairs call their columns."""


class Data(Table):
    """The preference pairs, and how they become tokens."""

    data_path: Annotated[
        Location | list[Location],
        Field(examples=["../dataset/dpo.jsonl", ["../dataset/dpo.jsonl", "../more"]]),
        Kind.PATH,
        NONE,
        TOKENS | SPLIT | REFERENCE,
    ]
    """Preference pairs: a file (JSONL, a JSON array, CSV or Parquet, compressed by gzip or zstd or
    not), a folder of such files, which are read by name, or several of these in brackets."""

    mixture_weights: Annotated[
        list[Annotated[float, Field(ge=0, le=100)]] | None,
        Field(examples=[[1.0]]),
        POSITION,
        REFERENCE,
    ] = None
    """How often the pairs of each of data_path count in an epoch. 2 takes every pair twice; 0.5
    takes half of them, drawn once by train.seed, the same ones in every epoch. What eval.fraction
    holds out is taken away before. Default: all pairs once."""

    format: Annotated[
        Literal[
            "auto", "minimind", "conversational", "plain", "implicit", "ultrafeedback", "sharegpt"
        ],
        POSITION,
        TOKENS | REFERENCE,
    ] = "auto"
    """What the columns of a row are, here and in eval.path. "auto" finds out by the first rows of
    each file; docs/data.md has an example of each format."""

    columns: Annotated[
        dict[str, str] | None,
        Field(examples=[{"prompt": "question"}]),
        POSITION,
        TOKENS | REFERENCE,
    ] = None
    """Names of columns that are called otherwise than in the format, here and in eval.path: which
    column is "prompt", "chosen", "rejected", "conversations" or "system". Default: none."""

    max_seq_len: Annotated[int, Field(ge=2), POSITION, HELD_OUT | REFERENCE] = 1024
    """Tokens kept of each conversation; what follows is cut off. A pair with no response token
    left on one side is set aside."""

    shuffle: Annotated[bool, POSITION, REFERENCE] = False
    """Whether each epoch takes the pairs in a new random order, which depends on train.seed.
    Otherwise they come in the order of the file."""

    empty_think_ratio: Annotated[
        float, Field(ge=0, le=1), POSITION, TOKENS | HELD_OUT | REFERENCE
    ] = 0.2
    """Share of pairs that keep the empty think block their chat template writes, the same on both
    sides of a pair. MiniMind version 2's template has no such block; Qwen3's has one."""

    num_workers: Annotated[int, Field(ge=0), NONE] = 0
    """Threads that encode the pairs; 0 takes all cores."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """All of `data_path`."""
        return tuple(self.data_path) if isinstance(self.data_path, list) else (self.data_path,)

    @field_validator("data_path", mode="before")
    @classmethod
    def _check_data_path(cls, value: object) -> object:
        values = value if isinstance(value, list) else [value]
        if not values or not all(isinstance(path, str | Path) for path in values):
            raise contradiction(
                "must be a path in quotes, or several in brackets; for example "
                'data.data_path = "../dataset/dpo.jsonl"'
            )
        return value

    @field_validator("mixture_weights")
    @classmethod
    def _check_path_weights(
        cls, value: list[float] | None, info: ValidationInfo
    ) -> list[float] | None:
        paths = info.data.get("data_path", [])
        count = len(paths) if isinstance(paths, list) else 1
        if value is not None and paths and len(value) != count:
            raise contradiction(
                f"must have a weight for each path of data.data_path; for example "
                f"{show_value([1.0] * count)}"
            )
        return value

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if unknown := [name for name in value or () if name not in COLUMNS]:
            raise contradiction(
                f"{show_value(unknown[0])} is no column of a format; there are {', '.join(COLUMNS)}"
            )
        return value
