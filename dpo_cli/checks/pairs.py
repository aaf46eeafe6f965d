"""Checks of the pairs' content: answer lengths, texts, chat template, and held-out overlap."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

import torch
from torch import Tensor

from dpo_cli.checks.pair_issues import NEAR_IDENTICAL_SHARE, PairIssues
from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.languages import LANGUAGES
from dpo_cli.data.rendered import Rendered
from dpo_cli.data.tokens import EncodedRows, Rows
from dpo_cli.findings import Histogram, PairIssue
from dpo_cli.formatting import format_percent
from dpo_cli.hub.datasets import find_data
from dpo_cli.hub.download import is_on_hub
from dpo_cli.profile import doctrine
from dpo_cli.profile.schema import Profile
from dpo_cli.run.plan import KNOWN_SHARE
from dpo_cli.training.inputs import RunInputs

_BINS = 32
_NO_LIMIT = 1 << 30
_BIASED_SHARE = 0.6
"""Smallest share of pairs with the same side longer at which length predicts the label."""
_SIGMAS, _MIN_PAIRS = 2.6, 30
"""A length bias must exceed 1/2 by 2.6 standard errors (p < 0.01), on at least 30 pairs."""
_MIN_ISSUES, _MIN_ISSUE_SHARE = 3, 0.01
"""Smallest number and share of pairs at which an issue that may be intended is a warning."""
_REPEATED_QUESTION_SHARE = 0.5
"""Smallest share of pairs at which answers that begin with the question are a warning."""
_NAMED_MARKS = 5
_MARK = re.compile(r"<\|?[a-z_]{1,30}\|?>")


def check_lengths(reporter: Reporter, subject: str, rows: Rows) -> None:
    """Check if chosen responses are mostly longer (or shorter), which a model learns first."""
    chosen, rejected = rows.kept.response_tokens.unbind(dim=1)
    longer, unequal = int((chosen > rejected).sum()), int((chosen != rejected).sum())
    share = longer / unequal if unequal else 0.5
    bias = max(share, 1 - share)
    side = "longer" if share >= 0.5 else "shorter"
    message = (
        f"chosen is {side} in {format_percent(bias, 0)} of the pairs (mean"
        f" {chosen.double().mean():,.0f} vs. {rejected.double().mean():,.0f} tokens)"
    )
    # Standard error of a share of 1/2 over n pairs: 0.5 / sqrt(n).
    if unequal < _MIN_PAIRS or bias < max(_BIASED_SHARE, 0.5 + _SIGMAS * 0.5 / math.sqrt(unequal)):
        reporter.ok("lengths", subject, message)
        return
    remedy = (
        f"Always picking the {side} response would be right as often. dpo eval RUN has the"
        " accuracy on pairs of similar length."
    )
    reporter.warn("length-bias", subject, message, remedy)


def measure_lengths(encoded: EncodedRows, max_seq_len: int) -> tuple[Histogram, ...]:
    """Build histograms of prompt, responses and longer side in tokens, before truncation."""
    if not len(encoded):
        return ()
    answers = encoded.response_tokens(_NO_LIMIT)
    longest = encoded.lengths.amax(dim=1)
    limit = min(max_seq_len, int(longest.max()))
    columns = {
        "prompt": encoded.lengths[:, 0] - answers[:, 0],
        "chosen": answers[:, 0],
        "rejected": answers[:, 1],
        "longer side": longest,
    }
    return tuple(_histogram(name, tokens, limit) for name, tokens in columns.items())


def check_texts(reporter: Reporter, subject: str, issues: PairIssues) -> None:
    """Report the issues of the texts, with the lines that have them."""
    total = len(issues.hashes)
    has_warning = False
    for issue, advice in _ADVICE.items():
        lines = issues.lines.get(issue, ())
        enough = max(_MIN_ISSUES, advice.least_share * total) if advice.least_share else 1
        if len(lines) < enough:
            continue
        has_warning = True
        marks = ", ".join(issues.marks.get(issue, ())[:_NAMED_MARKS])
        reporter.warn(
            f"pairs-{issue}",
            subject,
            f"{len(lines):,} of {total:,} pairs ({format_percent(len(lines) / total, 1)})"
            f" {advice.message.format(marks=marks)}: {_examples(issues, issue)}",
            advice.remedy,
        )
    languages = ", ".join(
        f"{issues.languages[language]:,} {'in Latin script' if language == 'Latin' else language}"
        for language in LANGUAGES
        if issues.languages.get(language)
    )
    prompts = issues.hashes.prompts
    message = f"{prompts:,} prompts in {total:,} pairs; answers: {languages or 'no letters'}"
    if not has_warning:
        few = [
            f"{len(lines):,} {issue}"
            for issue, lines in issues.lines.items()
            if issue in _ADVICE and lines
        ]
        message += f"; nothing unusual except {', '.join(few)}" if few else "; nothing unusual"
    reporter.ok("texts", subject, message)


def check_template(
    reporter: Reporter, tokenizer: ChatTokenizer, rows: Rows, issues: PairIssues
) -> None:
    """Check that the chat template fits the tokenizer and these conversations."""
    written_marks: set[str] = set()
    for row in issues.sample:
        try:
            [rendered] = tokenizer.render(row.chosen, tools=row.tools, as_one=True)
        except ValueError:
            continue  # reported as malformed
        contents = [message["content"] for message in row.chosen]
        in_template = set(_MARK.findall(rendered.text))
        written_marks |= {
            mark for mark in in_template if not any(mark in content for content in contents)
        }
    # A mark of the template that is no token of its own is a sign of another model's template.
    pieces = {
        mark: len(tokenizer.encode([Rendered(mark)])[0].ids) for mark in sorted(written_marks)
    }
    if several := {mark: count for mark, count in pieces.items() if count > 1}:
        listed = ", ".join(f"{mark} ({count} tokens)" for mark, count in several.items())
        reporter.warn(
            "template-mismatch",
            "model.tokenizer",
            f"the chat template writes marks for which this tokenizer has no token: {listed}",
            "Use the template and the tokenizer with which the weights were fine-tuned.",
        )
    if left_out := [row for row in rows.skipped_rows if row.problem == "left-out"]:
        reporter.warn(
            "template-leaves-out",
            "model.tokenizer",
            f"{len(left_out):,} of {rows.total:,} rows are skipped"
            f" ({rows.places.names([row.line for row in left_out])}), the first because"
            f" {left_out[0].reason}",
            "Use a template that writes such turns, or move their text into other turns. Otherwise"
            " the model never sees it.",
        )


def check_overlap(
    reporter: Reporter, inputs: RunInputs, training: PairIssues, held_out: PairIssues
) -> None:
    """Check that held-out pairs have other prompts than the training pairs.

    Args:
        reporter: gets the finding.
        inputs: inputs of the run, with both kinds of pairs.
        training, held_out: issues of the source of each kind.
    """
    lines = inputs.held_out.lines
    trained_on = training.hashes.prompts_of(inputs.pairs.lines)
    known = int(torch.isin(held_out.hashes.prompts_of(lines), trained_on).sum())
    if known > KNOWN_SHARE * len(lines):
        reporter.warn(
            "held-out-known",
            "eval.path" if inputs.profile.eval.path else "eval.fraction",
            f"{known:,} of {len(lines):,} held-out pairs"
            f" ({format_percent(known / len(lines), 0)}) have a prompt that is also trained"
            " on: they make the result look better than it is",
            _use_other_split(inputs.profile)
            or "Move all rows of some prompts to a file of their own, and set eval.path to it and"
            " eval.fraction to 0. Or read the held-out result as an upper bound.",
        )


def check_held_out(reporter: Reporter, inputs: RunInputs) -> None:
    """Check that there are enough held-out pairs to show an effect."""
    held_out, total = len(inputs.held_out), len(inputs.held_out) + len(inputs.pairs)
    subject = "eval.path" if inputs.profile.eval.path else "eval.fraction"
    if not held_out:
        reporter.warn(
            "held-out-none",
            subject,
            "no pairs are held out: loss and accuracy of the training pairs do not show whether the"
            " model got better",
            _use_other_split(inputs.profile)
            or f"Set eval.fraction = {doctrine.held_out_fraction(total):g}.",
        )
        return
    message = doctrine.what_held_out_shows(held_out)
    if held_out >= doctrine.MIN_HELD_OUT:
        reporter.ok("held-out-pairs", subject, message)
        return
    remedy = doctrine.hold_out_more(held_out, total)
    if inputs.profile.eval.path:
        remedy = f"Put {doctrine.MIN_HELD_OUT} pairs or more into eval.path."
    reporter.warn("held-out-few", subject, message, remedy)


def _use_other_split(profile: Profile) -> str:
    """Return the remedy that evaluates another split of a data set of the Hub; "" without one."""
    [path, *others] = profile.data.paths
    if others or not is_on_hub(path):
        return ""
    split = find_data(str(path)).held_out
    if split is None or split == str(profile.eval.path):
        return ""
    fraction = " and remove eval.fraction" if profile.eval.fraction else ""
    return f'Set eval.path = "{split}"{fraction}: the data set has this split, too.'


@dataclass(frozen=True)
class _Advice:
    """Message and remedy for an issue that at least `least_share` of the pairs have."""

    message: str
    remedy: str
    least_share: float = 0.0


_ADVICE = {
    PairIssue.NO_USER: _Advice(
        "have no user turn",
        "Add the question. Its column must have a name that the format reads (docs/data.md), or be"
        " mapped by data.columns.",
    ),
    PairIssue.REPEATED_TURN: _Advice(
        "have the same turn twice in a row",
        "Remove one of the two turns; often both a prompt column and the sides have the prompt.",
    ),
    PairIssue.ANSWERED_PROMPT: _Advice(
        "have an answer directly after an answer, for example at the end of the prompt",
        "End the prompt with a user turn.",
    ),
    PairIssue.SPEAKERS: _Advice(
        'have the names of speakers in one message, as in "Human: ... Assistant: ..."',
        "Write each turn as a message with its role; otherwise the model learns to write both"
        " speakers.",
    ),
    PairIssue.EMPTY_TEXT: _Advice(
        "have a message without a text ({marks})",
        "Remove them; nan, None and null are what programs write for a missing value.",
    ),
    PairIssue.LOST_WORDS: _Advice(
        "lack words of an answer among its tokens ({marks})",
        "The tokenizer has no tokens for these words, or the mask leaves them out, so they are not"
        " learned. Use the tokenizer of the weights, and look at the pairs with dpo data.",
    ),
    PairIssue.ONE_PROMPT: _Advice(
        "have one and the same prompt",
        "Check that the question is in a column that the format reads; one prompt teaches little"
        " about others.",
        least_share=_MIN_ISSUE_SHARE,
    ),
    PairIssue.FREQUENT_ANSWER: _Advice(
        "have an answer that the same side has to many prompts",
        "Review them: the model learns to write, or to avoid, this one text whatever is asked.",
        least_share=_MIN_ISSUE_SHARE,
    ),
    PairIssue.QUESTION_IN_ANSWER: _Advice(
        "have answers that begin with the question",
        "Remove the question from both sides if it is only a copy of the prompt.",
        least_share=_REPEATED_QUESTION_SHARE,
    ),
    PairIssue.LITERAL: _Advice(
        "have a message that is a list or an object in JSON or Python syntax",
        "If it holds several messages or a text, write these instead; keep it if the answer is"
        " meant to be JSON.",
        least_share=_MIN_ISSUE_SHARE,
    ),
    PairIssue.CONTRADICTORY: _Advice(
        "contradict another pair with the same two answers",
        "Keep one of each two; together they teach nothing.",
    ),
    PairIssue.OTHER_PROMPT: _Advice(
        "have sides with different prompts",
        "Begin both sides with the same turns: DPO compares two answers to one prompt.",
    ),
    PairIssue.ONE_SIDED_THINK: _Advice(
        "think (<think>) on one side only",
        "Write thoughts on both sides or on neither. Otherwise the model learns whether to think.",
    ),
    PairIssue.CONTROL_TOKENS: _Advice(
        "have special tokens in a message ({marks})",
        "Remove them: to the model they are the beginning or end of a turn.",
    ),
    PairIssue.DOUBLED_TOKEN: _Advice(
        "have a special token twice in a row, for example two ends of a turn",
        "Remove it from the text, or from the template if all pairs have it.",
    ),
    PairIssue.FOREIGN_TEMPLATE: _Advice(
        "have marks of another chat template in a message ({marks})",
        "Remove them unless the text is about them: the model learns to write them.",
    ),
    PairIssue.NEAR_IDENTICAL: _Advice(
        f"have sides that share {format_percent(NEAR_IDENTICAL_SHARE, 0)} or more of their words",
        "Review them: if neither side is better, they teach noise, and both answers tend to become"
        " less likely.",
        least_share=_MIN_ISSUE_SHARE,
    ),
    PairIssue.REPEATED: _Advice(
        "are copies of another pair",
        "Remove the copies, or keep them to count these pairs twice.",
        least_share=_MIN_ISSUE_SHARE,
    ),
    PairIssue.OTHER_LANGUAGE: _Advice(
        "have sides in different languages",
        "Review them: the model may learn the language instead of the quality.",
        least_share=_MIN_ISSUE_SHARE,
    ),
}


def _histogram(name: str, tokens: Tensor, limit: int) -> Histogram:
    # The last bin counts lengths beyond `limit`.
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


def _examples(issues: PairIssues, issue: PairIssue) -> str:
    """Name the first rows, with the rows that they repeat or contradict."""
    lines, partners = issues.lines[issue], issues.partners.get(issue)
    if partners is None:
        return issues.places.names(lines)
    couples = dict.fromkeys((min(n, partners[n]), max(n, partners[n])) for n in lines)
    return issues.places.couples(list(couples))
