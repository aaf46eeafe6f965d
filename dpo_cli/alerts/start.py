"""Alert rule about the starting weights: answers that repeat themselves before training."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean

from dpo_cli.formatting import format_count, format_percent
from dpo_cli.repetition import repetition
from dpo_cli.run.events import Alert

# Weak real weights repeat 0.25 to 0.29 of their text, with a wrong tokenizer 0.82: docs/alerts.md.
REPEATS = 0.5
"""Mean repetition of greedy answers from which a model counts as broken before training."""


def start_repeats(answers: Sequence[str]) -> Alert | None:
    """Return an alert if the answers of the starting weights repeat themselves.

    Args:
        answers: greedy answers to different prompts.
    """
    if not answers or (share := fmean(map(repetition, answers))) < REPEATS:
        return None
    return Alert(
        code="start-repeats",
        message=f"before training, the answers to {format_count(len(answers), 'prompt')} already"
        f" repeat themselves ({format_percent(share, 0)} of their text): DPO is not the cause",
        remedy="Check that tokenizer and chat template are those with which the weights were"
        " fine-tuned; a base model needs supervised fine-tuning first.",
    )
