"""Results of `dpo check` as plain values: `checks` finds them, `ui` draws them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


class Level(StrEnum):
    """Severity of a finding."""

    OK = "ok"
    WARN = "warn"
    """Training would start, with a result the user may not want."""
    ERROR = "error"
    """Training would fail, or learn nothing."""
    SKIP = "skip"
    """Check that could not run, because of an error elsewhere."""


@dataclass(frozen=True)
class Finding:
    """Result of one check.

    Attributes:
        code: stable identifier, for scripts and documentation.
        level: severity.
        subject: profile key or file; may be empty.
        message: one sentence about the result.
        remedy: what to do; empty if nothing is wrong.
    """

    code: str
    level: Level
    subject: str
    message: str
    remedy: str = ""


class PairIssue(StrEnum):
    """Property of a pair that is probably a mistake in the data; users see the values."""

    TRUNCATED = "truncated"
    """One side is cut off at `data.max_seq_len`."""
    NEAR_IDENTICAL = "near-identical"
    """The sides share nearly all of their words."""
    CONTRADICTORY = "contradictory"
    """Another pair prefers the rejected side to the chosen one."""
    REPEATED = "repeated"
    """An earlier row has the same pair."""
    OTHER_PROMPT = "other-prompt"
    """The sides do not answer the same conversation."""
    OTHER_LANGUAGE = "other-language"
    """The sides answer in different languages."""
    CONTROL_TOKENS = "control-tokens"
    """A message contains a special token of the tokenizer."""
    FOREIGN_TEMPLATE = "foreign-template"
    """A message contains markers of another model's chat template."""
    DOUBLED_TOKEN = "doubled-token"
    """A special token, for example the end of text, follows itself."""
    ONE_SIDED_THINK = "one-sided-think"
    """Only one side contains `<think>`."""
    NO_USER = "no-user"
    """A conversation has no user turn."""
    REPEATED_TURN = "repeated-turn"
    """A turn has the role and the text of the turn before it."""
    ANSWERED_PROMPT = "answered-prompt"
    """An answer follows an answer, for example one that ends the prompt."""
    QUESTION_IN_ANSWER = "question-in-answer"
    """Both answers begin with the question."""
    SPEAKERS = "speakers"
    """One message contains the turns of both speakers, as "Human: ... Assistant: ..."."""
    EMPTY_TEXT = "empty-text"
    """A message is empty, invisible, or the name of a missing value, for example "nan"."""
    LITERAL = "literal"
    """A message is a list or an object in JSON or Python syntax."""
    LOST_WORDS = "lost-words"
    """The response tokens lack words of the answer."""
    ONE_PROMPT = "one-prompt"
    """All or nearly all pairs have the same prompt."""
    FREQUENT_ANSWER = "frequent-answer"
    """One side has the same answer to many prompts."""


@dataclass(frozen=True)
class Histogram:
    """Distribution of a length in tokens over all pairs.

    Attributes:
        name: name of the length, for example "prompt".
        counts: pairs in each of the equal bins from 0 to `limit_tokens`, then pairs beyond.
        limit_tokens: upper end of the last bin.
        median_tokens: median.
        ninth_decile_tokens: 90th percentile.
        longest_tokens: maximum.
    """

    name: str
    counts: tuple[int, ...]
    limit_tokens: int
    median_tokens: int
    ninth_decile_tokens: int
    longest_tokens: int


@dataclass(frozen=True)
class Span:
    """Text of consecutive tokens that all carry loss, or all do not."""

    text: str
    tokens: int
    carries_loss: bool


@dataclass(frozen=True)
class PairPreview:
    """One pair as training sees it.

    Attributes:
        place: row, for example "line 7" or "row 7 of part-2.parquet".
        shared: common beginning of both sides, computed once.
        chosen, rejected: the rest of each side.
    """

    place: str
    shared: tuple[Span, ...]
    chosen: tuple[Span, ...]
    rejected: tuple[Span, ...]


@dataclass(frozen=True)
class Diagnosis:
    """Complete result of `dpo check`.

    Attributes:
        findings: one or more per check, in the order of the checks.
        preview: pair to show, if there is one.
        facts: values for programs: the plan, rows kept at other lengths, rows by issue, largest
            possible change of the weights, forecast of time and memory. Values that errors made
            unavailable are missing.
        histograms: lengths of the pairs.
    """

    findings: tuple[Finding, ...]
    preview: PairPreview | None
    facts: Mapping[str, Any]
    histograms: tuple[Histogram, ...] = ()

    def count(self, level: Level) -> int:
        """Return the number of findings of a level."""
        return sum(finding.level is level for finding in self.findings)

    @property
    def is_clean(self) -> bool:
        """True if training may start: there may be warnings, but no errors."""
        return not self.count(Level.ERROR)
