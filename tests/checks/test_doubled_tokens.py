"""Tests of tokens that follow themselves, found in columns and side by side."""

from __future__ import annotations

import dataclasses
import itertools
import random

import pytest
import torch

from dpo_cli.checks import doubled_tokens
from dpo_cli.data.chat import Tokenized, TokenizedPair
from tests.support.columns import in_columns


def random_pairs(draw: random.Random, count: int) -> list[TokenizedPair]:
    """Return short pairs with two kinds of ids, so that all coincidences appear."""

    def side(beginning: list[int]) -> Tokenized:
        ids = torch.tensor(beginning + [draw.randrange(2) for _ in range(draw.randrange(1, 5))])
        return Tokenized(ids, torch.ones(len(ids), dtype=torch.bool))

    found: list[TokenizedPair] = []
    while len(found) < count:
        beginning = [draw.randrange(2) for _ in range(draw.randrange(6))]
        pair = TokenizedPair(len(found) + 1, side(beginning), side(beginning))
        if pair.chosen.ids.tolist() != pair.rejected.ids.tolist():
            found.append(pair)
    return found


@pytest.mark.parametrize("wide", [False, True], ids=["uint16", "int32"])
@pytest.mark.parametrize("piece", [3, 1 << 22])
def test_doubled_tokens_are_those_of_a_side(
    wide: bool, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doubled_tokens, "_PIECE", piece)
    pairs = random_pairs(random.Random(5), 300)
    rows = in_columns(pairs)._rows
    ids = rows.ids.to(torch.int32 if wide else torch.uint16)
    found = doubled_tokens.find_doubled(dataclasses.replace(rows, ids=ids), [1])
    plainly = [
        any(
            (1, 1) in itertools.pairwise(side.ids.tolist()) for side in (pair.chosen, pair.rejected)
        )
        for pair in pairs
    ]
    assert found.tolist() == plainly
    assert 0 < sum(plainly) < len(pairs)
