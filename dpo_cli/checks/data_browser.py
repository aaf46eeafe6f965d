"""The rows of a profile's data one after another, as `dpo data` shows them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from dpo_cli.checks.data import look_closely, subject_of
from dpo_cli.checks.pair_issues import PairIssues
from dpo_cli.checks.preview import show_pair, why_not_kept
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import Rows
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairIssue, PairPreview
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.schema import Profile
from dpo_cli.training.sources import OnProgress, encode, training_pairs


@dataclass(frozen=True)
class SkippedRowText:
    """Skipped row with its place, reason and text."""

    place: str
    problem: str
    reason: str
    text: str


@dataclass(frozen=True)
class DataBrowser:
    """A source of pairs, encoded as a run of the profile would."""

    source: Source
    rows: Rows
    issues: PairIssues
    tokenizer: ChatTokenizer

    @classmethod
    def open(cls, profile: Profile, on_progress: OnProgress) -> DataBrowser:
        """Read and encode `data.data_path`.

        Args:
            profile: its files are there.
            on_progress: called with phase, done, total (0 if unknown) and unit.

        Raises:
            DpoError: tokenizer or data cannot be read.
        """
        source, limit = training_pairs(profile), profile.data.max_seq_len
        tokenizer = ChatTokenizer(resolve_tokenizer(profile))
        whole = encode(profile, source, tokenizer, on_progress)
        rows = whole.cut(limit)
        issues = look_closely(source, whole, rows, tokenizer, on_progress)
        return cls(source, rows, issues, tokenizer)

    def pairs(
        self, stated: str | None, only: Sequence[PairIssue]
    ) -> Iterator[tuple[PairPreview, list[str]]]:
        """The pairs that are kept, each with what it has about it.

        Args:
            stated: the one to show, as `Places.find` takes it; None for all.
            only: show those that have one of these; all, if it is empty.

        Raises:
            UsageError: there is no such row, or it is not kept.
        """
        lines = self.rows.kept.lines.tolist()
        line = self._find(stated)
        if line is not None and line not in lines:
            raise UsageError(
                f"{self._name(line)}: {why_not_kept(self.rows, line)}",
                "dpo data --skipped shows the skipped rows",
            )
        wanted = {line for issue in only for line in self.issues.lines.get(issue, ())}
        return (
            (
                show_pair(self.tokenizer, self.rows.kept[index], self.rows.places),
                self.issues.of(its_line),
            )
            for index, its_line in enumerate(lines)
            if line in (None, its_line) and (not only or its_line in wanted)
        )

    def skipped(self, stated: str | None) -> Iterator[SkippedRowText]:
        """Yield the skipped rows, or one of them.

        Args:
            stated: the one to show, as `Places.find` takes it; None for all.

        Raises:
            UsageError: there is no such row, or the row is not skipped.
        """
        line = self._find(stated)
        aside = {row.line: row for row in self.rows.skipped_rows if line in (None, row.line)}
        if line is not None and not aside:
            raise UsageError(
                f"{self._name(line)}: this row is not skipped",
                f"dpo data --line {stated} shows it, if there is one",
            )
        return (
            SkippedRowText(
                self.rows.places.name(line), aside[line].problem, aside[line].reason, text
            )
            for line, text in self.source.texts(self.rows.places, aside)
        )

    def _find(self, stated: str | None) -> int | None:
        return None if stated is None else self.rows.places.find(stated)

    def _name(self, line: int) -> str:
        return f"{subject_of(self.source)}, {self.rows.places.name(line)}"
