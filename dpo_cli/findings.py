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


class PairIssue(StrEnum):
    """What a pair may have about it that is worth a look; the values are words for users."""

    TRUNCATED = "truncated"
    """A side loses its end at `data.max_seq_len`."""
    NEAR_IDENTICAL = "near-identical"
    """The sides share nearly all of their words."""
    CONTRADICTORY = "contradictory"
    """Another pair prefers the rejected side to the chosen one."""
    REPEATED = "repeated"
    """The very same pair stands further up."""
    OTHER_PROMPT = "other-prompt"
    """The sides do not answer the same conversation."""
    OTHER_LANGUAGE = "other-language"
    """The sides answer in different languages."""
    CONTROL_TOKENS = "control-tokens"
    """A message contains a special token of the tokenizer."""
    FOREIGN_TEMPLATE = "foreign-template"
    """A message contains what another model's chat template writes."""
    DOUBLED_TOKEN = "doubled-token"
    """A special token follows itself, such as the beginning or the end of a text."""
    ONE_SIDED_THINK = "one-sided-think"
    """One side thinks (`<think>`), the other does not."""


@dataclass(frozen=True)
class Histogram:
    """How long something is, over all pairs of a file, in tokens.

    Attributes:
        name: of what is measured.
        counts: pairs in each of the equal bins from 0 to `limit_tokens`; one more for those beyond.
        limit_tokens: where the bins end.
        median_tokens: half of the pairs have no more.
        ninth_decile_tokens: nine in ten have no more.
        longest_tokens: none has more.
    """

    name: str
    counts: tuple[int, ...]
    limit_tokens: int
    median_tokens: int
    ninth_decile_tokens: int
    longest_tokens: int


@dataclass(frozen=True)
class Span:
    """Consecutive tokens of one kind, as text."""

    text: str
    tokens: int
    carries_loss: bool


@dataclass(frozen=True)
class PairPreview:
    """One pair as training sees it: `shared` begins both sides, and is computed once.

    `place` names its row: "line 7", or "row 7 of part-2.parquet".
    """

    place: str
    shared: tuple[Span, ...]
    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Everything `dpo check` has found, in the order in which it looked.

    Attributes:
        findings: one or more for each check.
        preview: the pair that was asked for, if there is any.
        facts: figures for programs: the plan as a run would write it, what other lengths would
            keep, which rows have which trait, how far weights can move, and the forecast of time
            and memory; empty as far as errors kept them from being known.
        histograms: how long the pairs are.
    """

    findings: tuple[Finding, ...]
    preview: PairPreview | None
    facts: Mapping[str, Any]
    histograms: tuple[Histogram, ...] = ()

    def count(self, level: Level) -> int:
        """How many findings are of this level."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def is_clean(self) -> bool:
        """Whether training may start: warnings do not forbid it."""
        return not self.count(Level.ERROR)
