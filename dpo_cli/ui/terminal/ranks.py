"""Every rank's speed and memory, so that one which keeps the others waiting is seen."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from statistics import fmean, median_low

from rich.text import Text

from dpo_cli.run.events import StepDone
from dpo_cli.ui.terminal.layout import Block, bar, framed

_SHOWN, _ROWS = 8, 4
_SLOW = 1.5
"""Times the median: so slow is a straggler."""
_LEAST_STEPS = 5
_FIGURES_WIDTH = 12


def rank_seconds(steps: Iterable[StepDone]) -> list[float]:
    """What each rank computes in a step, in the mean; empty where one process trains alone.

    Steps that another number of ranks made, before a resume, are left out.
    """
    rows = [step.rank_seconds for step in steps]
    return [fmean(row) for row in zip(*(r for r in rows if len(r) == len(rows[-1])), strict=True)]


def straggler(steps: Sequence[StepDone]) -> int | None:
    """The slowest rank, where over several steps it takes far longer than the median; else None.

    Of an even number the lower of the two in the middle is the median, so that one of two ranks can
    be the slow one.
    """
    seconds = rank_seconds(steps)
    if len(seconds) < 2 or len(steps) < _LEAST_STEPS:
        return None
    slowest = max(seconds)
    return seconds.index(slowest) if slowest > _SLOW * median_low(seconds) else None


def straggler_message(steps: Sequence[StepDone], rank: int, hosts: Sequence[str]) -> str:
    """That a rank is slow, and where it is."""
    seconds = rank_seconds(steps)
    where = f" on {hosts[rank]}" if rank < len(hosts) else ""
    return (
        f"rank {rank}{where} is slow: {seconds[rank]:.3g} s a step, where {median_low(seconds):.3g}"
        " s is the median; all others wait for it"
    )


def ranks_frame(steps: Sequence[StepDone], width: int) -> Block:
    """Seconds a step and memory of each rank; of very many, the slowest. No lines for one."""
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
    return framed(title, lines, width, rows + 2, legend)


def _cell(rank: int, seconds: Sequence[float], size_bytes: int, is_slow: bool, width: int) -> Text:
    """One rank: its number, a bar as long as it takes, its seconds and its memory."""
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
    """Three digits."""
    decimals = 2 if number < 9.995 else 1 if number < 99.95 else 0
    return f"{number:.{decimals}f}"
