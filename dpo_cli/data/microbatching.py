"""From the micro-batches of a window to the forwards that compute them: the same gradient in other
portions, on one rank or shared out among several.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class MicroBatch:
    """Pairs that are computed together.

    `weights` are those of their losses in the loss of the window, which is the sum over its
    micro-batches of (mean over the pairs of one) / accumulation_steps.
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
    """The forwards of a window, by rank: its micro-batches as they are, or its pairs filled up to a
    limit.

    Args:
        micro_batches: the pair indices of each.
        accumulation_steps: see `Forward`.
        tokens: the positions that each of these pairs takes.
        limit: positions of a forward, unless a single pair takes more. The longest pairs come
            first, each into the first forward that still has room for it.
        ranks: among whom the work is shared. Some may get none.
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
    """Each unit to one rank: the longest first, to whoever has the least so far; then in order."""
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
