"""Pairs and skipped rows of a profile's data, one after another, for `dpo data`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from dpo_cli.checks.data_issues import find_all_issues, subject_of
from dpo_cli.checks.pair_issues import PairIssues
from dpo_cli.checks.preview import make_preview, why_not_kept
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import Rows
from dpo_cli.errors import UsageError
from dpo_cli.findings import PairIssue, PairPreview
from dpo_cli.formatting import format_count
from dpo_cli.profile.inputs import resolve_tokenizer
from dpo_cli.profile.schema import Profile
from dpo_cli.training.sources import OnProgress, cut, encode, training_pairs


@dataclass(frozen=True)
class SkippedRowText:
    """A skipped row: its place, the reason, and its text."""

    place: str
    problem: str
    reason: str
    text: str


@dataclass(frozen=True)
class DataBrowser:
    """Training data of a profile, encoded as a run would encode it."""

    source: Source
    rows: Rows
    issues: PairIssues
    tokenizer: ChatTokenizer

    @classmethod
    def open(cls, profile: Profile, on_progress: OnProgress) -> DataBrowser:
        """Read and encode `data.data_path`.

        Args:
            profile: its files exist.
            on_progress: called with phase, done, total (0 if unknown) and unit.

        Raises:
            DpoError: tokenizer or data cannot be read.
        """
        source = training_pairs(profile)
        tokenizer = ChatTokenizer(resolve_tokenizer(profile))
        encoded = encode(profile, source, tokenizer, on_progress)
        rows = cut(profile, encoded)
        issues = find_all_issues(source, encoded, rows, tokenizer, on_progress)
        return cls(source, rows, issues, tokenizer)

    def remarks(self) -> list[str]:
        """Return why no row is kept, and which columns are not read; empty if all is well."""
        rows = self.rows
        lines = []
        if not rows.kept and rows.skipped_rows:
            first = rows.skipped_rows[0]
            lines.append(f"first skipped row: {rows.places.name(first.line)}: {first.reason}")
            if names := self._columns_of(first.line):
                lines.append(f"its columns: {', '.join(map(repr, names))}")
                lines.append("Map them to the names of a format with data.columns (docs/data.md).")
        if rows.unread:
            named = [f"{name!r} ({format_count(n, 'row')})" for name, n in rows.unread.items()]
            lines.append(f"columns that are not read: {', '.join(named)}")
            lines.append("If one belongs to the pairs, name it in data.columns (docs/data.md).")
        return lines

    def pairs(
        self, row_name: str | None, only: Sequence[PairIssue]
    ) -> Iterator[tuple[PairPreview, list[str]]]:
        """Yield the pairs that are kept, each with its issues.

        Args:
            row_name: the row to show, as `Places.find` takes it; None for all.
            only: show the pairs that have one of these issues; empty for all pairs.

        Raises:
            UsageError: there is no such row, or it is skipped.
        """
        lines = self.rows.kept.lines.tolist()
        wanted_line = self._find(row_name)
        if wanted_line is not None and wanted_line not in lines:
            raise UsageError(
                f"{self._name(wanted_line)}: {why_not_kept(self.rows, wanted_line)}",
                f"Run dpo data --skipped --line {row_name} to see its text.",
            )
        with_issue = {line for issue in only for line in self.issues.lines.get(issue, ())}
        return (
            (
                make_preview(self.tokenizer, self.rows.kept[index], self.rows.places),
                self.issues.of(line),
            )
            for index, line in enumerate(lines)
            if wanted_line in (None, line) and (not only or line in with_issue)
        )

    def skipped(self, row_name: str | None) -> Iterator[SkippedRowText]:
        """Yield the skipped rows, or one of them.

        Args:
            row_name: the row to show, as `Places.find` takes it; None for all.

        Raises:
            UsageError: there is no such row, or it is not skipped.
        """
        wanted_line = self._find(row_name)
        skipped = {
            row.line: row for row in self.rows.skipped_rows if wanted_line in (None, row.line)
        }
        if wanted_line is not None and not skipped:
            raise UsageError(
                f"{self._name(wanted_line)}: this row is not skipped",
                f"Run dpo data --line {row_name} to see it.",
            )
        places = self.rows.places
        return (
            SkippedRowText(places.name(line), skipped[line].problem, skipped[line].reason, text)
            for line, text in self.source.texts(places, skipped)
        )

    def _columns_of(self, line: int) -> list[str]:
        """Return the names of a row's columns; none if it is not readable."""
        for _, numbered in self.source.rows(self.rows.places, range(line, line + 1)):
            for _, row in numbered:
                return list(row) if isinstance(row, Mapping) else []
        return []

    def _find(self, row_name: str | None) -> int | None:
        return None if row_name is None else self.rows.places.find(row_name)

    def _name(self, line: int) -> str:
        return f"{subject_of(self.source)}, {self.rows.places.name(line)}"
