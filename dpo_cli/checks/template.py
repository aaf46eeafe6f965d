"""Checks of the chat template: headers, ends of answers, and words that it leaves out."""

from __future__ import annotations

import torch

from dpo_cli.checks.reporter import Reporter
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.encoding import Flag
from dpo_cli.data.tokens import Rows
from dpo_cli.formatting import format_count
from dpo_cli.inference.stops import stop_problem
from dpo_cli.models.generation import stop_ids_of
from dpo_cli.models.loading import ModelWeights

_SUBJECT = "model.tokenizer"
_WRITE_HEADER_ONCE = (
    "Write the header of an answer before each answer, and after the last turn only if"
    " add_generation_prompt is true."
)


def check_headers(reporter: Reporter, tokenizer: ChatTokenizer) -> None:
    """Check that the template writes the header of an answer before an answer, and only there."""
    template = tokenizer.template
    if header := template.trailing_header:
        reporter.warn(
            "template-header",
            _SUBJECT,
            f"the chat template writes the header of a next answer after every answer"
            f" ({header!r}), with and without add_generation_prompt; this header is trained on",
            _WRITE_HEADER_ONCE,
        )
    if header := template.unprompted_header:
        reporter.warn(
            "template-header",
            _SUBJECT,
            f"the chat template ignores add_generation_prompt: the header of an answer ({header!r})"
            " is trained on as its beginning",
            _WRITE_HEADER_ONCE,
        )
    if ending := template.prompt_ending:
        reporter.warn(
            "template-prompt",
            _SUBJECT,
            f"the chat template ends a generation prompt with {ending!r}, but does not write this"
            " before an answer of the data: the model is trained without and used with this text",
            "Use a template that writes the same text before an answer in both cases.",
        )


def check_ending(
    reporter: Reporter, tokenizer: ChatTokenizer, weights: ModelWeights | None
) -> None:
    """Check that a token that stops generation ends every answer."""
    if weights is None:
        return
    problem = stop_problem(tokenizer, stop_ids_of(weights.architecture, tokenizer.end_id))
    if not problem:
        return
    reporter.warn(
        "template-end",
        _SUBJECT,
        f"{problem}: the model does not learn to stop",
        "Let the template end an answer with one of these tokens, or add its last token to"
        " eos_token_id in generation_config.json.",
    )


def check_scored_words(reporter: Reporter, tokenizer: ChatTokenizer, rows: Rows) -> None:
    """Report pairs whose answers lose words, or begin before the end of their prompt."""
    flags, lines = rows.kept.flags, rows.kept.lines
    lost = lines[(flags & Flag.TEMPLATE_CHANGES_WORDS) > 0].tolist()
    if lost:
        template = tokenizer.template
        kinds = [
            kind
            for kind, is_dropped in (
                ("thoughts (<think>)", template.drops_thoughts),
                ("thoughts (reasoning_content)", template.drops_reasoning),
            )
            if is_dropped
        ]
        why = f": it leaves out {' and '.join(kinds)}" if kinds else ""
        reporter.warn(
            "template-words",
            _SUBJECT,
            f"the chat template does not write all words of the answers in {len(lost):,} of"
            f" {len(rows.kept):,} pairs ({rows.places.names(lost)}){why}",
            "Use a template that writes them. Otherwise the model is trained without them.",
        )
    differs = lines[(flags & Flag.PROMPT_DIFFERS) > 0].tolist()
    if differs and not tokenizer.template.prompt_ending:
        remedy = (
            "Remove the blank from the end of the prompt in the chat template: when the model"
            " generates, it continues after that blank."
            if tokenizer.template.prompt_ends_blank
            else "Remove blanks and newlines from the beginning of these answers, unless they are"
            " meant."
        )
        reporter.warn(
            "prompt-differs",
            _SUBJECT,
            f"in {len(differs):,} of {len(rows.kept):,} pairs ({rows.places.names(differs)}) the"
            " tokens change where prompt and answer meet; their answers begin at the first token"
            " that differs from the prompt's",
            remedy,
        )


def describe_scored_turns(rows: Rows) -> str:
    """Describe which answers of the kept pairs are scored; "" if each side has one answer."""
    scores_all = (rows.kept.flags & Flag.ALL_TURNS) > 0
    several = int((rows.kept.answers[:, 0] > 1).sum())
    if not bool(scores_all.any()):
        return '; data.scored_turns = "last": only what follows the prompt is scored'
    if not several:
        return ""
    count = int((torch.logical_not(scores_all)).sum())
    rest = f", only what follows the prompt in {count:,} others" if count else ""
    return (
        f'; data.scored_turns = "all": every response of {format_count(several, "pair")} with'
        f" several counts{rest}"
    )
