"""Checks of the pairs: rows that are kept, larger values of `max_seq_len`, and the loss masks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dpo_cli.checks.data_issues import find_all_issues, subject_of
from dpo_cli.checks.pair_issues import PairIssues
from dpo_cli.checks.pairs import check_lengths, check_texts, measure_lengths
from dpo_cli.checks.reporter import Reporter
from dpo_cli.checks.template import describe_scored_turns
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import Flag
from dpo_cli.data.pairs import refuse_if_mostly_malformed
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import SAME_ANSWERS, EncodedRows, Rows
from dpo_cli.errors import DpoError
from dpo_cli.findings import Histogram
from dpo_cli.formatting import format_count, format_percent
from dpo_cli.profile.schema import Profile
from dpo_cli.training.sources import OnProgress, cut, encode

LONGER_LIMITS = (1536, 2048)
"""Values of `max_seq_len` that are compared with the profile's."""
_NAMED_ROWS = 5

_MANY_TRUNCATED = 0.5
"""Share of truncated rows above which the results say little about whole answers."""


@dataclass(frozen=True)
class CheckedData:
    """A source with at least one pair to train on.

    Attributes:
        rows: rows at the profile's `max_seq_len`.
        by_length: rows by `max_seq_len`, for the profile's and longer values.
        histograms: lengths of the pairs.
        issues: issues of the texts.
    """

    rows: Rows
    by_length: Mapping[int, Rows]
    histograms: tuple[Histogram, ...]
    issues: PairIssues

    def facts(self) -> dict[str, Any]:
        """Return the figures as plain values, for `dpo check --json`."""
        return {
            "lengths": {length: rows.facts() for length, rows in self.by_length.items()},
            "issues": {str(issue): lines for issue, lines in self.issues.lines.items() if lines},
            "languages": self.issues.languages,
            "unread_columns": dict(self.rows.unread),
        }


def check_data(
    reporter: Reporter,
    profile: Profile,
    source: Source,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
) -> CheckedData | None:
    """Encode a source of pairs, count the rows that are kept, and find issues in the texts.

    Returns:
        None if no pair can be trained on.
    """
    limit, subject = profile.data.max_seq_len, subject_of(source)
    encoded = None
    with reporter.errors_as("data-unusable", subject, source):
        encoded = encode(profile, source, tokenizer, on_progress)
    if encoded is None:
        return None
    lengths = [limit, *(length for length in LONGER_LIMITS if length > limit)]
    by_length = {length: cut(profile, encoded, length) for length in lengths}
    rows = by_length[limit]
    reporter.ok("format", subject, source.description(encoded.places))
    _check_malformed(reporter, subject, source, rows)
    _check_kept(reporter, subject, encoded, by_length)
    if not rows.kept:
        return None
    check_lengths(reporter, subject, rows)
    issues = find_all_issues(source, encoded, rows, tokenizer, on_progress)
    _check_columns(reporter, subject, encoded, issues)
    check_texts(reporter, subject, issues)
    return CheckedData(rows, by_length, measure_lengths(encoded, limit), issues)


def check_masks(reporter: Reporter, rows: Rows) -> None:
    """Check that both sides of every pair have tokens with loss."""
    rewritten = rows.kept.lines[(rows.kept.flags & Flag.LAST_ONLY) > 0].tolist()
    if rewritten:
        reporter.warn(
            "mask-template",
            "model.tokenizer",
            f"the chat template renders earlier turns differently once others follow, in"
            f" {format_count(len(rewritten), 'pair')} ({rows.places.names(rewritten)}); only what"
            " follows their prompt is scored",
            'Set data.scored_turns = "last" to score all pairs alike, or use a template that'
            " renders a turn independently of later turns.",
        )
    answers = rows.kept.response_tokens
    share, fewest = int(answers.sum()) / int(rows.kept.lengths.sum()), int(answers.min())
    turns = describe_scored_turns(rows)
    message = (
        f"{format_percent(share, 0)} of the tokens carry loss, at least {fewest} per side,"
        f" {answers.double().mean():.0f} on average{turns}"
    )
    if fewest:
        reporter.ok("masks", "", message)
    else:
        reporter.error(
            "mask-empty", "", message, "This is a bug in dpo. Please report it with these pairs."
        )


def _check_malformed(reporter: Reporter, subject: str, source: Source, rows: Rows) -> None:
    malformed = [row for row in rows.skipped_rows if row.problem == "malformed"]
    if not malformed:
        return
    try:
        refuse_if_mostly_malformed(source, rows.skipped_rows, rows.total, rows.places)
    except DpoError as error:
        message = "\n".join([error.message.removeprefix(f"{source}: "), *error.details])
        reporter.error("data-malformed", subject, message, error.remedy)
    else:
        named = [f"{rows.places.name(row.line)}: {row.reason}" for row in malformed[:_NAMED_ROWS]]
        reporter.warn(
            "data-malformed",
            subject,
            "\n".join([f"{len(malformed)} of {rows.total:,} rows are malformed", *named]),
            "Correct these rows, or train without them: they are skipped.",
        )


def _check_columns(
    reporter: Reporter, subject: str, encoded: EncodedRows, issues: PairIssues
) -> None:
    """Name the columns that the format does not read."""
    if encoded.unread:
        named = ", ".join(
            f"{name!r} ({format_count(number, 'row')})" for name, number in encoded.unread.items()
        )
        reporter.ok("columns", subject, f"not read: {named}")
    if missed := issues.unread.missed:
        named = ", ".join(
            f"{name!r} ({format_count(encoded.unread[name], 'row')}, first"
            f" {encoded.places.name(line)})"
            for name, line in missed.items()
        )
        reporter.warn(
            "columns-unread",
            subject,
            f"not read, but with words that are in no message: {named}",
            "If the model should see them, map them by data.columns, set data.format, or write them"
            " into the prompt.",
        )


def _check_kept(
    reporter: Reporter, subject: str, encoded: EncodedRows, by_length: dict[int, Rows]
) -> None:
    """Report kept and skipped rows, and what a larger `max_seq_len` would keep and cost."""
    (limit, rows), *longer = by_length.items()
    reasons = Counter(row.problem for row in encoded.skipped_rows)
    same = sum(row.reason == SAME_ANSWERS for row in rows.skipped_rows)
    reasons["identical"] += same
    # Encoding skips rows for what they contain; all others that `cut` skips are too long, also
    # those whose sides differ only beyond the limit.
    too_long = len(encoded) - len(rows.kept) - same
    skipped = {
        "too long": too_long,
        "malformed": reasons["malformed"],
        "with identical sides": reasons["identical"],
        "with turns that the chat template leaves out": reasons["left-out"],
        "without a better answer": reasons["tie"],
    }
    truncated = int(rows.kept.shortened.sum())
    # In the first statement, because the short view of a check leaves out the others.
    of_these = f", {truncated:,} cut" if truncated else ""
    message = f"{len(rows.kept):,} of {rows.total:,} rows kept{of_these} at {limit:,} tokens"
    if rows.skipped_rows:
        why = ", ".join(f"{number:,} {reason}" for reason, number in skipped.items() if number)
        message += f"; skipped: {why}"
    offers, most = [], len(rows.kept)
    for length, other in longer:
        if len(other.kept) > most:
            most = len(other.kept)
            cost = f" ({other.tokens / rows.tokens:.2f} times the tokens)" if rows.kept else ""
            offers.append(f"to {length} to keep {most:,}{cost}")
    remedy = f"Set data.max_seq_len {' or '.join(offers)}." if offers else ""
    if not rows.kept:
        first = rows.skipped_rows[0]
        remedy = remedy or f"Correct {rows.places.name(first.line)}: {first.reason}."
        reporter.error("data-none", subject, message, remedy)
    elif too_long:
        what = "this conversation" if too_long == 1 else "these conversations"
        remedy = remedy or f"Shorten {what}."
        reporter.warn("data-truncated", subject, message, remedy)
    elif reasons["identical"]:
        reporter.warn("data-identical", subject, message, "Remove rows with identical sides.")
    elif truncated > _MANY_TRUNCATED * len(rows.kept):
        least, length = min(
            ((int(other.kept.shortened.sum()), length) for length, other in longer),
            default=(truncated, limit),
        )
        fewer = f"only {least:,}" if least else "none"
        remedy = f"Set data.max_seq_len to {length} to truncate {fewer}."
        if least >= truncated:
            remedy = "Nothing is needed if the beginnings of the answers decide."
        reporter.warn("data-truncated", subject, message, remedy)
    else:
        reporter.ok("data", subject, message)
