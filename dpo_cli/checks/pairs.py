"""Whether the pairs are what one thinks: their lengths, their texts, and what the template makes of
them.
"""

from __future__ import annotations

import math
import re

import torch
from torch import Tensor

from dpo_cli.checks.pair_issues import NEAR_IDENTICAL_SHARE, PairIssues
from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.chat import ChatTokenizer, Rendered
from dpo_cli.data.languages import LANGUAGES
from dpo_cli.data.tokens import EncodedRows, Rows
from dpo_cli.findings import Histogram, PairIssue
from dpo_cli.profile.schema import Profile
from dpo_cli.training.inputs import RunInputs

_BINS = 32
_WHOLE = 1 << 30
_BIASED_SHARE = 0.6
"""Of the pairs whose chosen answer is the longer one: from here on length tells them apart."""
_SURE, _LEAST_PAIRS = 2.6, 30
"""Standard errors beyond one half, and pairs: a few prove nothing."""
_FEW, _SHARE_WORTH_A_WARNING = 3, 0.01
"""Pairs, and their share, that are worth a warning where a single one may be meant so."""
_KNOWN_SHARE = 0.05
"""Of the held-out pairs whose prompt may be trained on, too, without a word."""
_LISTED = 5
_MARK = re.compile(r"<\|?[a-z_]{1,30}\|?>")


def check_lengths(reporter: Reporter, profile: Profile, subject: str, rows: Rows) -> None:
    """Whether chosen answers are the longer ones, which is soon learned in the place of quality."""
    chosen, rejected = rows.kept.response_tokens.unbind(dim=1)
    longer, unlike = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    share = longer / unlike if unlike else 0.5
    bias = max(share, 1 - share)
    told = "longer" if share >= 0.5 else "shorter"
    message = (
        f"the chosen answer is the {told} one in {bias:.0%} of the pairs,"
        f" {chosen.double().mean():,.0f} tokens against {rejected.double().mean():,.0f} in the mean"
    )
    if unlike < _LEAST_PAIRS or bias < max(_BIASED_SHARE, 0.5 + _SURE * 0.5 / math.sqrt(unlike)):
        reporter.ok("lengths", subject, message)
        return
    remedy = "length alone would be right as often: judge what is learned on pairs of like length"
    if profile.dpo.reduction == "sum":
        remedy += '; dpo.reduction = "mean" with dpo.beta about 5 keeps length out of the reward'
    reporter.warn("length-bias", subject, message, remedy)


def measure_lengths(whole: EncodedRows, max_seq_len: int) -> tuple[Histogram, ...]:
    """How long prompts, answers and the longer sides of the pairs are, before anything is cut."""
    if not len(whole):
        return ()
    answers = whole.response_tokens(_WHOLE)
    longest = whole.lengths.amax(dim=1)
    limit = min(max_seq_len, int(longest.max()))
    columns = {
        "prompt": whole.lengths[:, 0] - answers[:, 0],
        "chosen": answers[:, 0],
        "rejected": answers[:, 1],
        "longer side": longest,
    }
    return tuple(_histogram(name, tokens, limit) for name, tokens in columns.items())


def check_texts(reporter: Reporter, subject: str, issues: PairIssues) -> None:
    """What the texts of the pairs have about them."""
    total = len(issues.hashes)
    before = len(reporter.findings)
    for issue, (told, remedy, is_always_bad) in _TOLD.items():
        lines = issues.lines.get(issue, ())
        enough = 1 if is_always_bad else max(_FEW, _SHARE_WORTH_A_WARNING * total)
        if len(lines) < enough:
            continue
        told = told.format(marks=_marks(issues, issue))
        reporter.warn(
            f"pairs-{issue}",
            subject,
            f"{len(lines):,} of {total:,} pairs ({len(lines) / total:.1%}) {told}:"
            f" {_examples(issues, issue)}",
            remedy,
        )
    languages = ", ".join(
        f"{issues.languages[language]:,} {'in Latin script' if language == 'Latin' else language}"
        for language in LANGUAGES
        if issues.languages.get(language)
    )
    prompts = issues.hashes.prompts
    message = f"{prompts:,} prompts in {total:,} pairs; answers: {languages or 'no letters'}"
    if len(reporter.findings) == before:
        few = [
            f"{len(lines):,} {issue}"
            for issue, lines in issues.lines.items()
            if issue in _TOLD and lines
        ]
        message += f"; nothing odd but {', '.join(few)}" if few else "; no pair is odd"
    reporter.ok("texts", subject, message)


def check_template(
    reporter: Reporter, tokenizer: ChatTokenizer, rows: Rows, issues: PairIssues
) -> None:
    """Whether the chat template and the tokenizer fit each other, and these conversations."""
    strange: set[str] = set()
    for row in issues.sample:
        try:
            [rendered] = tokenizer.render(row.chosen)
        except ValueError:
            continue  # told as malformed
        contents = [message["content"] for message in row.chosen]
        written = set(_MARK.findall(rendered.text))
        strange |= {mark for mark in written if not any(mark in content for content in contents)}
    pieces = {mark: len(tokenizer.encode([Rendered(mark, ())])[0].ids) for mark in sorted(strange)}
    if several := {mark: count for mark, count in pieces.items() if count > 1}:
        listed = ", ".join(f"{mark} ({count} tokens)" for mark, count in several.items())
        reporter.warn(
            "template-mismatch",
            "model.tokenizer",
            f"the chat template writes marks that this tokenizer has no token for: {listed}",
            "use the template and the tokenizer that the checkpoint was fine-tuned with",
        )
    if left_out := [row for row in rows.skipped_rows if row.problem == "left-out"]:
        reporter.warn(
            "template-leaves-out",
            "model.tokenizer",
            f"{len(left_out):,} of {rows.total:,} rows are set aside"
            f" ({rows.places.names([row.line for row in left_out])}), the first since"
            f" {left_out[0].reason}",
            "the model would never see them: use a template that knows such turns, or put what they"
            " say where it is written",
        )


def check_overlap(
    reporter: Reporter, inputs: RunInputs, training: PairIssues, held_out: PairIssues
) -> None:
    """Whether held-out pairs answer prompts that are trained on.

    Args:
        reporter: gets the finding.
        inputs: says which pairs are held out.
        training, held_out: of the source that each kind of pairs comes from.
    """
    lines = inputs.held_out.lines
    seen = training.hashes.prompts_of(inputs.pairs.lines)
    known = int(torch.isin(held_out.hashes.prompts_of(lines), seen).sum())
    if known > _KNOWN_SHARE * len(lines):
        reporter.warn(
            "held-out-known",
            "eval.path" if inputs.profile.eval.path else "eval.fraction",
            f"{known:,} of {len(lines):,} held-out pairs ({known / len(lines):.0%}) answer a"
            " prompt that is trained on, too: they flatter what was learned",
            "hold out pairs with other prompts, in a file of their own (eval.path)",
        )


_TOLD: dict[PairIssue, tuple[str, str, bool]] = {
    PairIssue.CONTRADICTORY: (
        "contradict another, the same two answers the other way round",
        "keep one of each two: together they teach nothing",
        True,
    ),
    PairIssue.OTHER_PROMPT: (
        "have sides that answer different conversations",
        "make both sides begin with the same turns: what is compared is two answers to one prompt",
        True,
    ),
    PairIssue.ONE_SIDED_THINK: (
        "think (<think>) on one side only",
        "give both sides their thoughts, or neither: else what is learned is whether to think",
        True,
    ),
    PairIssue.CONTROL_TOKENS: (
        "have special tokens in a message ({marks})",
        "take them out of the text: the model takes them for the beginning or end of a turn",
        True,
    ),
    PairIssue.DOUBLED_TOKEN: (
        "have a special token twice running, such as two beginnings or two ends",
        "take it out of the text (or the template, if it is all pairs): the template writes one",
        True,
    ),
    PairIssue.FOREIGN_TEMPLATE: (
        "have marks of another chat template in a message ({marks})",
        "take them out of the text, unless they are what it is about: the model learns to write"
        " them",
        True,
    ),
    PairIssue.NEAR_IDENTICAL: (
        f"have sides that share {NEAR_IDENTICAL_SHARE:.0%} of their words or more",
        "look at them: where the difference is no better answer they teach noise, and both answers"
        " tend to become less likely",
        False,
    ),
    PairIssue.REPEATED: (
        "are copies of another",
        "remove the copies, or let them count twice on purpose",
        False,
    ),
    PairIssue.OTHER_LANGUAGE: (
        "have sides in different languages",
        "look at them: what is learned may be the language",
        False,
    ),
}
"""Of each issue what is found, what to do about it, and whether a single pair is worth a word."""


def _histogram(name: str, tokens: Tensor, limit: int) -> Histogram:
    """(K,) token counts in bins; those beyond `limit` in one of their own."""
    bins = (tokens.to(torch.int64) * _BINS // (limit + 1)).clamp(max=_BINS)
    ordered = tokens.sort().values
    return Histogram(
        name,
        tuple(bins.bincount(minlength=_BINS + 1).tolist()),
        limit,
        int(ordered[(len(ordered) - 1) // 2]),
        int(ordered[math.ceil(0.9 * len(ordered)) - 1]),
        int(ordered[-1]),
    )


def _marks(issues: PairIssues, issue: PairIssue) -> str:
    return ", ".join(issues.marks.get(issue, ())[:_LISTED])


def _examples(issues: PairIssues, issue: PairIssue) -> str:
    """Names of rows, with the others that they repeat or contradict."""
    lines, partners = issues.lines[issue], issues.partners.get(issue)
    if partners is None:
        return issues.places.names(lines)
    couples = dict.fromkeys((min(n, partners[n]), max(n, partners[n])) for n in lines)
    return issues.places.couples(list(couples))
