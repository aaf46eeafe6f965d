"""Search for special tokens that follow themselves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from dpo_cli.data.tokens import EncodedRows

_PIECE = 1 << 22
"""Ids that are compared at once, to bound the memory."""


def find_doubled(rows: EncodedRows, token_ids: Sequence[int]) -> Tensor:
    """Return (P,) bool, true where one of `token_ids` occurs twice in a row on a side."""
    ids = rows.ids
    wanted = torch.tensor(token_ids, dtype=torch.int32).to(ids.dtype)
    if ids.dtype == torch.uint16:  # torch stores uint16 but implements few operations for it
        ids, wanted = ids.view(torch.int16), wanted.view(torch.int16)
    found = torch.zeros(len(rows), dtype=torch.bool)
    stored = rows.lengths.sum(dim=1) - rows.shared
    starts = stored.cumsum(dim=0, dtype=torch.int64) - stored  # (P,), index of each pair in `ids`
    pieces = range(0, max(1, len(ids)), _PIECE)
    positions = torch.cat([_doubled(ids, wanted, begin) for begin in pieces])
    pairs = torch.searchsorted(starts, positions, right=True) - 1
    # Ignore matches across the border of two pairs or of two sides.
    within = positions - starts[pairs]
    found[pairs[(within != 0) & (within != rows.lengths[pairs, 0])]] = True
    # The rejected side continues after the shared beginning, which is stored elsewhere.
    continued = ((rows.lengths[:, 1] > rows.shared) & (rows.shared > 0)).nonzero().flatten()
    first = (starts + rows.lengths[:, 0])[continued]
    last_shared = (starts + rows.shared - 1)[continued]
    found[continued] |= (ids[first] == ids[last_shared]) & torch.isin(ids[first], wanted)
    return found


def _doubled(ids: Tensor, wanted: Tensor, begin: int) -> Tensor:
    """Return positions in one piece of `ids` where one of `wanted` occurs twice in a row."""
    piece = ids[begin : begin + _PIECE + 1]
    is_one = (piece[1:] == piece[:-1]) & torch.isin(piece[1:], wanted)
    return is_one.nonzero().flatten() + begin + 1
