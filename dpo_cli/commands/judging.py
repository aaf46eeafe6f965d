"""What models came to, printed: for `dpo eval` and `dpo merge`."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from rich.console import Console

from dpo_cli.ui.terminal.evaluation import EvaluationView
from dpo_cli.ui.terminal.panel import terminal_size

if TYPE_CHECKING:
    from dpo_cli.inference.evaluate import Evaluation

_WIDTH = 120


def print_evaluation(evaluation_result: Evaluation) -> None:
    """For people, as wide as the terminal."""
    width = terminal_size()[0] if sys.stdout.isatty() else _WIDTH
    Console(width=width, highlight=False, markup=False, emoji=False).print(
        EvaluationView(evaluation_result)
    )
