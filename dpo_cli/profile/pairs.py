"""The table `[data]`: preference pairs and their tokenization."""

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

COLUMNS = (
    *("prompt", "chosen", "rejected", "conversations", "messages", "system", "system_prompt"),
    *("instruction", "input", "output", "history", "context", "tools", "query", "response"),
    *("question", "chosen_response", "rejected_response", "rejected_messages"),
    *("preferred_output", "non_preferred_output", "generations", "ratings", "rating"),
    *("response1", "response2", "response_1", "response_2"),
    *("overall_preference", "preference_strength"),
)
"""Column names that the formats use."""


class Data(Table):
    """Preference pairs and their tokenization."""

    data_path: Annotated[
        Location | list[Location],
        Field(examples=["../dataset/dpo.jsonl", ["../dataset/dpo.jsonl", "../more"]]),
        Kind.DATA,
        NONE,
        TOKENS | SPLIT | REFERENCE,
    ]
    """Preference pairs: a file (JSONL, a JSON array, CSV or Parquet, plain or compressed with gzip
    or zstd), a folder of such files, read in the order of their names, a data set on the Hub
    ("hf:ORG/NAME", with "@REVISION" and ":CONFIG/SPLIT" where needed), or a list of these."""

    mixture_weights: Annotated[
        list[Annotated[float, Field(ge=0, le=100)]] | None,
        Field(examples=[[1.0]]),
        POSITION,
        REFERENCE,
    ] = None
    """Weight of each entry of data_path in an epoch: 2 uses every pair twice; 0.5 uses half of the
    pairs, drawn once with train.seed, the same half in every epoch. eval.fraction is held out
    before. Default: 1 for each."""

    format: Annotated[
        Literal[
            "auto",
            "minimind",
            "conversational",
            "plain",
            "implicit",
            "ultrafeedback",
            "sharegpt",
            "messages",
            "alpaca",
            "openai",
            "swift",
            "generations",
            "helpsteer",
        ],
        POSITION,
        TOKENS | REFERENCE,
    ] = "auto"
    """Format of a row, also in eval.path. "auto" detects it from the first rows of each file.
    docs/data.md shows an example of each format."""

    columns: Annotated[
        dict[str, str] | None,
        Field(examples=[{"prompt": "question"}]),
        POSITION,
        TOKENS | REFERENCE,
    ] = None
    """Your names of the columns, where they differ from the format's, also in eval.path; for
    example "prompt", "chosen", "rejected" or "system". docs/data.md lists the columns of each
    format. Default: none."""

    max_seq_len: Annotated[int, Field(ge=2), POSITION, HELD_OUT | REFERENCE] = 1024
    """Maximum length of a conversation in tokens; data.truncation says what happens to longer ones.
    Pairs without a response token left on either side are skipped."""

    shuffle: Annotated[bool, POSITION, REFERENCE] = False
    """Shuffle the pairs anew in each epoch, seeded by train.seed. Otherwise they are in file
    order."""

    empty_think_ratio: Annotated[
        float, Field(ge=0, le=1), POSITION, TOKENS | HELD_OUT | REFERENCE
    ] = 0.2
    """Share of pairs that keep the empty think block of their chat template, the same on both sides
    of a pair. MiniMind version 2's template has no such block; Qwen3's has one. With 1, a block
    that the template writes before an answer belongs to the prompt, as in TRL; below 1 it is a part
    of the answer. Default: 0.2 for MiniMind weights, 1 for a Hugging Face model."""

    scored_turns: Annotated[
        Literal["all", "last"] | None,
        Field(examples=["last"]),
        POSITION,
        TOKENS | HELD_OUT | REFERENCE,
    ] = None
    """Answers of a conversation that are scored: "all", or with "last" only what follows the
    prompt, as in TRL. Default: "all" for MiniMind's whole conversations, if the chat template
    renders earlier turns as they were; "last" for all other formats."""

    truncation: Annotated[
        Literal["end", "prompt_start", "drop"] | None,
        Field(examples=["prompt_start"]),
        POSITION,
        TOKENS | HELD_OUT | REFERENCE,
    ] = None
    """Shortening of pairs longer than max_seq_len: "end" cuts off the end of both sides;
    "prompt_start" first cuts earlier turns and then the beginning of the last question, and keeps
    the system turn and half of max_seq_len for the prompt; "drop" skips the pair. Default: "end"
    for MiniMind's whole conversations, "prompt_start" for all other formats."""

    max_prompt_len: Annotated[
        int | None, Field(ge=1, examples=[128]), POSITION, HELD_OUT | REFERENCE
    ] = None
    """Most tokens of a prompt: "prompt_start" cuts longer ones, and "drop" skips their pairs. With
    this key data.truncation is "prompt_start" by default. Default: no limit."""

    num_workers: Annotated[int, Field(ge=0), NONE] = 0
    """Threads that tokenize the pairs; 0 uses all cores."""

    @property
    def effective_truncation(self) -> Literal["end", "prompt_start", "drop"] | None:
        """`truncation`, or "prompt_start" if only `max_prompt_len` is set."""
        if self.truncation is None and self.max_prompt_len is not None:
            return "prompt_start"
        return self.truncation

    @property
    def paths(self) -> tuple[Path, ...]:
        """Paths in `data_path`."""
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
    def _check_mixture_weights(
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

    @field_validator("max_prompt_len")
    @classmethod
    def _check_max_prompt_len(cls, value: int | None, info: ValidationInfo) -> int | None:
        if value is not None and info.data.get("truncation") == "end":
            raise contradiction(
                'data.truncation = "end" cuts no prompt; set data.truncation to "prompt_start" or'
                ' "drop", or leave out data.max_prompt_len'
            )
        longest = info.data.get("max_seq_len")
        if value is not None and longest is not None and value >= longest:
            raise contradiction(f"must be less than data.max_seq_len, which is {longest}")
        return value

    @field_validator("columns")
    @classmethod
    def _check_columns(cls, value: dict[str, str] | None) -> dict[str, str] | None:
        if unknown := [name for name in value or () if name not in COLUMNS]:
            raise contradiction(
                f"{show_value(unknown[0])} is not a column; choose from {', '.join(COLUMNS)}"
            )
        return value
