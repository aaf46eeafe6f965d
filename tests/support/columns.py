"""Columns of hand-made pairs, in the form that a run reads."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch

from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.tokens import EncodedRows, TokenizedPairs


def in_columns(pairs: Sequence[TokenizedPair]) -> TokenizedPairs:
    """Return the columns of pairs, without truncation."""
    ids, shared = [], []
    for pair in pairs:
        chosen, rejected = pair.chosen.ids.tolist(), pair.rejected.ids.tolist()
        beside = zip(chosen, rejected, strict=False)
        alike = itertools.takewhile(lambda both: both[0] == both[1], beside)
        shared.append(len(list(alike)))
        ids += chosen + rejected[shared[-1] :]
    sides = [side for pair in pairs for side in (pair.chosen, pair.rejected)]
    answers = [list(_answers(side)) for side in sides]
    rows = EncodedRows(
        ids=torch.tensor(ids, dtype=torch.int32),
        lines=torch.tensor([pair.line for pair in pairs], dtype=torch.int32),
        lengths=torch.tensor([len(side.ids) for side in sides], dtype=torch.int32).view(-1, 2),
        shared=torch.tensor(shared, dtype=torch.int32),
        answers=torch.tensor([*itertools.chain(*answers)], dtype=torch.int32).view(-1, 2),
        answer_counts=torch.tensor([*map(len, answers)], dtype=torch.int32).view(-1, 2),
        flags=torch.zeros(len(pairs), dtype=torch.int32),
        cuts=torch.zeros(0, dtype=torch.int32),
        cut_counts=torch.zeros(len(pairs), dtype=torch.int32),
        skipped_rows=(),
    )
    return TokenizedPairs(rows, 2**30, torch.arange(len(pairs)))


def _answers(side: Tokenized) -> Iterator[tuple[int, int]]:
    start = 0
    for carries_loss, run in itertools.groupby(side.response.tolist()):
        end = start + len(list(run))
        if carries_loss:
            yield start, end
        start = end
