"""The pairs: which are kept, what a longer `max_seq_len` would keep, and where the loss lies."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from dpo_cli.checks.pair_issues import PairIssues, find_issues
from dpo_cli.checks.pairs import check_lengths, check_texts, measure_lengths
from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.chat import REWRITES_TURNS, ChatTokenizer
from dpo_cli.data.pairs import refuse_if_mostly_malformed
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows, Rows
from dpo_cli.errors import DpoError
from dpo_cli.findings import Histogram, PairIssue
from dpo_cli.profile.schema import Profile
from dpo_cli.profile.text import show_path
from dpo_cli.training.sources import OnProgress, encode

OTHER_LENGTHS = (1536, 2048)
_NAMED = 5


@dataclass(frozen=True)
class ExaminedData:
    """A source of pairs of which some can be trained on.

    Attributes:
        rows: at the profile's `max_seq_len`.
        by_length: the same, and at longer ones.
        histograms: how long the pairs are.
        issues: what their texts have about them.
    """

    rows: Rows
    by_length: Mapping[int, Rows]
    histograms: tuple[Histogram, ...]
    issues: PairIssues

    def facts(self) -> dict[str, Any]:
        """For programs."""
        return {
            "lengths": {length: rows.facts() for length, rows in self.by_length.items()},
            "issues": {str(issue): lines for issue, lines in self.issues.lines.items() if lines},
            "languages": self.issues.languages,
        }


def check_data(
    reporter: Reporter,
    profile: Profile,
    source: Source,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
) -> ExaminedData | None:
    """Encode a source of pairs, count what can be trained on, and look at it.

    Args:
        reporter: gets the findings.
        profile: says how to encode.
        source: of the pairs to train on, or of those held out.
        tokenizer: encodes.
        on_progress: hears how far it is.

    Returns:
        None if no pair is left.
    """
    limit, subject = profile.data.max_seq_len, subject_of(source)
    whole = None
    with reporter.errors_as("data-unusable", subject, source):
        whole = encode(profile, source, tokenizer, on_progress)
    if whole is None:
        return None
    lengths = [limit, *(length for length in OTHER_LENGTHS if length > limit)]
    by_length = {length: whole.cut(length) for length in lengths}
    rows = by_length[limit]
    reporter.ok("format", subject, whole.places.description)
    _note_malformed(reporter, subject, source, rows)
    _note_kept(reporter, subject, whole, by_length)
    if not rows.kept:
        return None
    check_lengths(reporter, profile, subject, rows)
    issues = look_closely(source, whole, rows, tokenizer, on_progress)
    check_texts(reporter, subject, issues)
    return ExaminedData(rows, by_length, measure_lengths(whole, limit), issues)


def look_closely(
    source: Source,
    whole: EncodedRows,
    rows: Rows,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
) -> PairIssues:
    """What the pairs that are kept have about them, in their texts and in their tokens."""
    kept = rows.kept.lines
    issues = find_issues(source, whole.places, kept.tolist(), tokenizer.control_tokens, on_progress)
    doubled = whole.lines[whole.doubled(list(tokenizer.control_tokens.values()))]
    of_tokens = {
        PairIssue.TRUNCATED: kept[rows.kept.shortened].tolist(),
        PairIssue.DOUBLED_TOKEN: doubled[torch.isin(doubled, kept)].tolist(),
    }
    return replace(issues, lines={**issues.lines, **of_tokens})


def check_masks(reporter: Reporter, rows: Rows) -> None:
    """Which tokens carry loss: an answer of every pair on both sides, and a share of them all."""
    rewritten = [row for row in rows.skipped_rows if row.reason == REWRITES_TURNS]
    if rewritten:
        reporter.warn(
            "mask-template",
            "model.tokenizer",
            f"the chat template rewrites earlier turns in {len(rewritten)} rows, so that nobody can"
            f" say where their answers lie ({rows.places.names([row.line for row in rewritten])})",
            "use a template that renders a turn the same whatever follows, or single-turn pairs",
        )
    answers = rows.kept.response_tokens
    share, fewest = int(answers.sum()) / int(rows.kept.lengths.sum()), int(answers.min())
    several = int((rows.kept.answers[:, 0] > 1).sum())
    turns = f"; {several} pairs with several answers, all of which count" if several else ""
    message = (
        f"{share:.0%} of the tokens carry loss, at least {fewest} on each side of a pair,"
        f" {answers.double().mean():.0f} in the mean{turns}"
    )
    if fewest:
        reporter.ok("masks", "", message)
    else:
        reporter.error(
            "mask-empty", "", message, "this is a bug in dpo: report it with these pairs"
        )


def subject_of(source: Source) -> str:
    """Its paths, as findings name them."""
    return ", ".join(map(show_path, source.paths))


def _note_malformed(reporter: Reporter, subject: str, source: Source, rows: Rows) -> None:
    """Name rows that are no pairs."""
    malformed = [row for row in rows.skipped_rows if row.problem == "malformed"]
    if not malformed:
        return
    try:
        refuse_if_mostly_malformed(source, rows.skipped_rows, rows.total, rows.places)
    except DpoError as error:
        message = "\n".join([error.message.removeprefix(f"{source}: "), *error.details])
        reporter.error("data-malformed", subject, message, error.remedy)
    else:
        named = [f"{rows.places.name(row.line)}: {row.reason}" for row in malformed[:_NAMED]]
        reporter.warn(
            "data-malformed",
            subject,
            "\n".join([f"{len(malformed)} of {rows.total:,} rows are malformed", *named]),
            "mend these rows, or train without them: they are set aside",
        )


def _note_kept(
    reporter: Reporter, subject: str, whole: EncodedRows, by_length: dict[int, Rows]
) -> None:
    """Say how many rows are kept, why others are not, and what longer sequences would cost."""
    (limit, rows), *longer_ones = by_length.items()
    reasons = Counter(row.problem for row in whole.skipped_rows)
    # What ends alike only because it is cut counts as too long.
    too_long = len(whole) - len(rows.kept)
    message = f"{len(rows.kept):,} of {rows.total:,} rows kept at {limit:,} tokens"
    lost = {
        "too long": too_long,
        "malformed": reasons["malformed"],
        "alike": reasons["identical"],
        "with turns that the chat template leaves out": reasons["left-out"],
    }
    if rows.skipped_rows:
        why = ", ".join(f"{number:,} {reason}" for reason, number in lost.items() if number)
        message += f"; set aside: {why}"
    if cut := int(rows.kept.shortened.sum()):
        message += f"; {cut:,} of the kept ({cut / len(rows.kept):.0%}) lose their end"
    offers = [
        f"{length} keeps {len(other.kept):,}"
        + (f" for {other.tokens / rows.tokens:.2f} times the tokens" if rows.kept else "")
        for length, other in longer_ones
        if len(other.kept) > len(rows.kept)
    ]
    longer = f"data.max_seq_len = {', '.join(offers)}" if offers else ""
    if not rows.kept:
        reporter.error("data-none", subject, message, longer or "mend the rows that are set aside")
    elif too_long:
        reporter.warn("data-truncated", subject, message, longer or "shorten these conversations")
    elif reasons["identical"]:
        reporter.warn("data-identical", subject, message, "remove rows whose sides are alike")
    else:
        reporter.ok("data", subject, message)
