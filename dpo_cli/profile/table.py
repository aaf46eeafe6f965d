"""Building blocks of the profile's tables: base class and annotations of keys."""

from __future__ import annotations

from enum import Enum, Flag, StrEnum, auto
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Effect(StrEnum):
    """Effect of a changed key on a run that is resumed."""

    NONE = "none"
    """No effect on the result: locations of files (compared by content) and reports."""
    MATHEMATICS = "mathematics"
    """The resumed run computes something else; needs --allow-changes."""
    POSITION = "position"
    """The saved position would mean other pairs or other weights; always refused."""


class Affects(Flag):
    """Intermediate results that depend on a key; runs with equal values can share them."""

    TOKENS = auto()
    """Token ids of a row, before data.max_seq_len cuts them."""
    SPLIT = auto()
    """Rows of the training data that are held out."""
    HELD_OUT = auto()
    """Tokens of the held-out pairs as they are evaluated, or the file they come from."""
    REFERENCE = auto()
    """Log-probs of the frozen reference on the training and held-out pairs."""
    LOSS = auto()
    """Meaning of the loss, so that values of two runs can be compared."""


class Kind(Enum):
    """Kind of a key's string values: plain text or paths."""

    PLAIN = auto()
    """Plain text."""
    PATH = auto()
    """A path: ~ and $VAR are expanded, and it is relative to the profile."""
    DATA = auto()
    """A path, or "hf:..." for a data set on the Hub."""
    WEIGHTS = auto()
    """A path if it has a slash or begins with ~ or $; else "run:NAME", "hf:..." or a name in
    out_dir."""


Location = Annotated[Path, Field(strict=False)]  # strict=False accepts a string, too

NONE, MATHEMATICS, POSITION = Effect
TOKENS, SPLIT, HELD_OUT, REFERENCE, LOSS = Affects


class Table(BaseModel):
    """Base class of all tables: strict about types and names, immutable."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def contradiction(message: str, key: str = "") -> PydanticCustomError:
    """Return a validation error whose message already says what to do.

    Args:
        message: problem, "; " and remedy.
        key: dotted key with the error, for a check of several tables.
    """
    # The message goes in as an argument because pydantic would format braces in a template.
    return PydanticCustomError("contradiction", "{message}", {"message": message, "key": key})
