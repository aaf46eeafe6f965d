"""From the micro-batches of a window to the forwards that compute them: the same gradient in other
portions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Forward:
    """Pairs that are computed together.

    `weights` are those of their losses in the loss of the window, which is the sum over its
    micro-batches of (mean over the pairs of one) / accumulation_steps.
    """

    indices: tuple[int, ...]
    weights: tuple[float, ...]


def regroup(
    micro_batches: Sequence[Sequence[int]],
    accumulation_steps: int,
    tokens: Mapping[int, int] | None = None,
    limit: int | None = None,
) -> list[Forward]:
    """The forwards of a window: its micro-batches as they are, or its pairs filled up to a limit.

    Args:
        micro_batches: the pair indices of each.
        accumulation_steps: see `Forward`.
        tokens: the positions that each of these pairs takes; with `limit` only.
        limit: positions of a forward, unless a single pair takes more. The longest pairs come
            first, each into the first forward that still has room for it.
    """
    weights = {
        index: 1 / (len(indices) * accumulation_steps)
        for indices in micro_batches
        for index in indices
    }
    groups: list[list[int]] = [list(indices) for indices in micro_batches]
    if limit is not None and tokens is not None:
        groups = []
        room: list[int] = []
        for index in sorted(weights, key=lambda index: -tokens[index]):
            place = next((n for n, left in enumerate(room) if left >= tokens[index]), len(groups))
            if place == len(groups):
                groups.append([])
                room.append(limit)
            groups[place].append(index)
            room[place] -= tokens[index]
    return [Forward(tuple(group), tuple(weights[i] for i in group)) for group in groups]
