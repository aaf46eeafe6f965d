"""What an examination of a profile comes to: plain values, found in `doctor`, drawn in `ui`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """How much a finding matters."""

    OK = "ok"
    WARN = "warn"
    """Training would start; the user should know this first."""
    ERROR = "error"
    """Training would fail, or be in vain."""
    SKIP = "skip"
    """Could not be looked at, because of an error elsewhere."""


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at.

    Attributes:
        code: stable, for scripts and for looking it up.
        level: how much it matters.
        subject: the key or file it is about; may be empty.
        message: what was found.
        remedy: what to do about it; empty where nothing needs doing.
    """

    code: str
    level: Level
    subject: str
    message: str
    remedy: str = ""


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind, as text."""

    text: str
    tokens: int
    carries_loss: bool


@dataclass(frozen=True)
class PairPreview:
    """One pair as training sees it: `shared` begins both sides, and is computed once."""

    line: int
    shared: tuple[Span, ...]
    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Everything `dpo check` has found, in the order in which it looked.

    Attributes:
        findings: one or more for each check.
        preview: the pair that was asked for, if there is any.
        facts: figures for programs: the plan as a run would write it, and what other lengths
            would keep; empty as far as errors kept them from being known.
    """

    findings: tuple[Finding, ...]
    preview: PairPreview | None
    facts: Mapping[str, Any]

    def count(self, level: Level) -> int:
        """How many findings are of this level."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def is_clean(self) -> bool:
        """Whether training may start: warnings do not forbid it."""
        return not self.count(Level.ERROR)
