"""Issues of the pairs that are kept, in their texts and in their tokens."""

from __future__ import annotations

from dataclasses import replace

import torch

from dpo_cli.checks.answer_words import AnswerWords
from dpo_cli.checks.doubled_tokens import find_doubled
from dpo_cli.checks.pair_issues import PairIssues, find_issues
from dpo_cli.data.chat import ChatTokenizer
from dpo_cli.data.sources import Source
from dpo_cli.data.tokens import EncodedRows, Rows
from dpo_cli.findings import PairIssue
from dpo_cli.profile.text import show_path
from dpo_cli.training.sources import OnProgress


def find_all_issues(
    source: Source,
    encoded: EncodedRows,
    rows: Rows,
    tokenizer: ChatTokenizer,
    on_progress: OnProgress,
) -> PairIssues:
    """Find the issues of the kept pairs."""
    kept = rows.kept.lines
    control_tokens = tokenizer.control_tokens
    issues = find_issues(
        source,
        encoded.places,
        kept.tolist(),
        control_tokens,
        on_progress,
        AnswerWords(encoded, tokenizer).missing,
    )
    doubled = encoded.lines[find_doubled(encoded, list(control_tokens.values()))]
    of_tokens = {
        PairIssue.TRUNCATED: kept[rows.kept.shortened].tolist(),
        PairIssue.DOUBLED_TOKEN: doubled[torch.isin(doubled, kept)].tolist(),
    }
    return replace(issues, lines={**issues.lines, **of_tokens})


def subject_of(source: Source) -> str:
    """Return the paths of a source as findings show them."""
    return ", ".join(map(show_path, source.paths))
