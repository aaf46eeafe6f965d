"""Speed and memory of each rank, to show a rank that the others wait for."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median_low

from rich.text import Text

from dpo_cli.formatting import format_seconds
from dpo_cli.run.events import StepDone
from dpo_cli.ui.terminal.layout import Block, bar, draw_frame

_SHOWN, _ROWS = 8, 4
_SLOW = 1.5
"""Time of a step, relative to the median, above which a rank is a straggler."""
_LEAST_STEPS = 5
_FIGURES_WIDTH = 12


def rank_seconds(steps: Iterable[StepDone]) -> list[float]:
    """Return the mean seconds per step of each rank; empty for a run with one process.

    Steps made by another number of ranks, before a resume, are left out.
    """
    rows = [step.rank_seconds for step in steps]
    return [fmean(row) for row in zip(*(r for r in rows if len(r) == len(rows[-1])), strict=True)]


def straggler(steps: Sequence[StepDone]) -> int | None:
    """Return the slowest rank if it takes far longer than the median over several steps.

    The lower median is used, so that one of two ranks can be the slow one.
    """
    seconds = rank_seconds(steps)
    if len(seconds) < 2 or len(steps) < _LEAST_STEPS:
        return None
    slowest = max(seconds)
    return seconds.index(slowest) if slowest > _SLOW * median_low(seconds) else None


def straggler_message(steps: Sequence[StepDone], rank: int, hosts: Sequence[str]) -> str:
    """Return the warning about a slow rank."""
    seconds = rank_seconds(steps)
    where = f" on {hosts[rank]}" if rank < len(hosts) else ""
    return (
        f"rank {rank}{where} is slow: {format_seconds(seconds[rank], 3)} per step, median"
        f" {format_seconds(median_low(seconds), 3)}; all other ranks wait for it"
    )


def ranks_frame(steps: Sequence[StepDone], width: int) -> Block:
    """Draw seconds per step and memory of each rank, or of the slowest 8; empty for one rank."""
    seconds = rank_seconds(steps)
    if len(seconds) < 2:
        return []
    order = sorted(range(len(seconds)), key=seconds.__getitem__, reverse=True)
    shown = sorted(order[:_SHOWN])
    columns = 1 if len(shown) <= _ROWS else 2
    rows = -(-len(shown) // columns)
    cell_width = (width - 4 - (columns - 1)) // columns
    slow, memory = straggler(steps), steps[-1].rank_bytes
    cells = [
        _cell(rank, seconds, memory[rank] if rank < len(memory) else 0, rank == slow, cell_width)
        for rank in shown
    ]
    lines = [Text(" ").join(cells[n] for n in range(row, len(cells), rows)) for row in range(rows)]
    title = "ranks" if len(shown) == len(seconds) else f"slowest of {len(seconds)} ranks"
    legend = Text(f"rank {slow} is slow", style="bold yellow") if slow is not None else None
    return draw_frame(title, lines, width, rows + 2, legend)


def _cell(rank: int, seconds: Sequence[float], size_bytes: int, is_slow: bool, width: int) -> Text:
    label = f"{rank} "
    style = "bold yellow" if is_slow else "cyan"
    share = seconds[rank] / max(seconds) if max(seconds) else 0.0
    figures = f"{_short(seconds[rank])}s {_short(size_bytes / 1e9)}G".rjust(_FIGURES_WIDTH - 1)
    return Text.assemble(
        (label, "dim"),
        bar(share, max(0, width - len(label) - _FIGURES_WIDTH), style),
        f" {figures}",
    )


def _short(number: float) -> str:
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"
