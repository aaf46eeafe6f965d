"""What the tables of a profile are made of."""

from __future__ import annotations

from enum import Enum, StrEnum, auto
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from pydantic_core import PydanticCustomError


class Effect(StrEnum):
    """What changing a key does to a run that is resumed."""

    NONE = "none"
    """Nothing that counts: where files lie (their content is fingerprinted), when to report."""
    MATHEMATICS = "mathematics"
    """The run goes on, but computes something else: only with --allow-changes."""
    POSITION = "position"
    """The saved position would mean other pairs or other weights: never."""


class Kind(Enum):
    """Which string values of a key are paths, and so follow the path rules."""

    PLAIN = auto()
    """None."""
    PATH = auto()
    """All of them."""
    WEIGHTS = auto()
    """Those with a slash, or a leading ~ or $; others are "run:NAME" or a name in out_dir."""


Location = Annotated[Path, Field(strict=False)]  # strict=False: a string will do

NONE, MATHEMATICS, POSITION = Effect.NONE, Effect.MATHEMATICS, Effect.POSITION


class Table(BaseModel):
    """One table: strict about types and names, and never changed."""

    model_config = ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


def contradiction(message: str) -> PydanticCustomError:
    """An error whose message already says what to do. Braces are formatting to pydantic."""
    return PydanticCustomError("contradiction", "{message}", {"message": message})
