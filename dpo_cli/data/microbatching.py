"""Regrouping of a step's pairs into micro-batches by token count, across ranks.

The gradient is the same as with the profile's own micro-batches, because each pair keeps the weight
of its loss.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that are computed in one forward.

    weights: weight of each pair's loss in the loss of the optimizer step. The loss of a step is the
        sum over its micro-batches of (mean over pairs) / accumulation_steps.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]


def make_micro_batches(
    micro_batches: Sequence[Sequence[int]],
    accumulation_steps: int,
    tokens: Mapping[int, int],
    limit: int | None = None,
    ranks: int = 1,
) -> list[list[MicroBatch]]:
    """Distribute the pairs of one optimizer step over ranks and forwards.

    Args:
        micro_batches: pair indices of each micro-batch of the profile.
        accumulation_steps: number of micro-batches per optimizer step; see `MicroBatch`.
        tokens: positions that each pair takes.
        limit: most positions per forward, unless a single pair takes more; None keeps the
            profile's micro-batches. Pairs are placed by first-fit decreasing.
        ranks: number of ranks. A rank may get no work.

    Returns:
        The micro-batches of each rank.
    """
    weights = {
        index: 1 / (len(indices) * accumulation_steps)
        for indices in micro_batches
        for index in indices
    }
    units = [tuple(indices) for indices in micro_batches]
    if limit is not None:
        units = [(index,) for index in weights]
    shares = _deal(units, tokens, ranks)
    if limit is not None:
        shares = [_fill(share, tokens, limit) for share in shares]
    return [
        [MicroBatch(group, tuple(weights[i] for i in group)) for group in share] for share in shares
    ]


def _deal(
    units: Sequence[tuple[int, ...]], tokens: Mapping[int, int], ranks: int
) -> list[list[tuple[int, ...]]]:
    """Assign each unit to the rank with the least load, longest first; keep file order per rank."""
    costs = [sum(tokens[index] for index in unit) for unit in units]
    load = [0] * ranks
    taken: list[list[int]] = [[] for _ in range(ranks)]
    for number in sorted(range(len(units)), key=lambda number: -costs[number]):
        rank = load.index(min(load))
        load[rank] += costs[number]
        taken[rank].append(number)
    return [[units[number] for number in sorted(numbers)] for numbers in taken]


def _fill(
    share: Iterable[tuple[int, ...]], tokens: Mapping[int, int], limit: int
) -> list[tuple[int, ...]]:
    groups: list[list[int]] = []
    room: list[int] = []
    for (index,) in sorted(share, key=lambda unit: -tokens[unit[0]]):
        place = next((n for n, left in enumerate(room) if left >= tokens[index]), len(groups))
        if place == len(groups):
            groups.append([])
            room.append(limit)
        groups[place].append(index)
        room[place] -= tokens[index]
    return [tuple(group) for group in groups]
