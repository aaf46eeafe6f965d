"""Tests of repeated and contradictory rows, compared with a search through all rows."""

from __future__ import annotations

import random

import torch

from dpo_cli.checks.pair_hashes import PairHashes
from dpo_cli.data.messages import Message


def says(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def test_hashes_find_the_same_rows_as_a_full_search() -> None:
    draw = random.Random(2)
    rows = [(3 * n + 1, *(draw.choice("abcdef") for _ in range(3))) for n in range(200)]
    rows = [row for row in rows if row[2] != row[3]]
    hashes = PairHashes()
    for line, *texts in rows:
        hashes.add(line, *map(says, texts))
    first: dict[tuple[str, str], int] = {}
    for line, _, chosen, rejected in rows:
        first.setdefault((chosen, rejected), line)
    repeated, contradictory = hashes.compare()
    assert repeated == {n: first[c, r] for n, _, c, r in rows if first[c, r] != n}
    assert contradictory == {n: first[r, c] for n, _, c, r in rows if (r, c) in first}
    assert hashes.prompts == len({prompt for _, prompt, *_ in rows})
    assert len(hashes) == len(rows)
    lines = torch.tensor([rows[9][0], 2, 10**6, rows[9][0], rows[0][0]])
    of_lines = hashes.prompts_of(lines).tolist()
    assert len(of_lines) == 3
    assert of_lines[0] == of_lines[1]


def test_no_rows() -> None:
    hashes = PairHashes()
    assert hashes.compare() == ({}, {})
    assert len(hashes.prompts_of(torch.tensor([1]))) == 0
    assert hashes.prompts == 0
