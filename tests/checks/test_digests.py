"""Which rows say the same, against looking at all of them."""

from __future__ import annotations

import random

import torch

from dpo_cli.checks.digests import Digests
from dpo_cli.data.formats import Message


def says(content: str) -> list[Message]:
    return [{"role": "user", "content": content}]


def test_rows_are_compared_as_one_would_by_hand() -> None:
    draw = random.Random(2)
    rows = [(3 * n + 1, *(draw.choice("abcdef") for _ in range(3))) for n in range(200)]
    rows = [row for row in rows if row[2] != row[3]]
    digests = Digests()
    for line, *texts in rows:
        digests.add(line, *map(says, texts))
    first: dict[tuple[str, str], int] = {}
    for line, _, chosen, rejected in rows:
        first.setdefault((chosen, rejected), line)
    repeated, contradictory = digests.compare()
    assert repeated == {n: first[c, r] for n, _, c, r in rows if first[c, r] != n}
    assert contradictory == {n: first[r, c] for n, _, c, r in rows if (r, c) in first}
    assert digests.prompts == len({prompt for _, prompt, *_ in rows})
    assert len(digests) == len(rows)
    lines = torch.tensor([rows[9][0], 2, 10**6, rows[9][0], rows[0][0]])
    of_lines = digests.prompts_of(lines).tolist()
    assert len(of_lines) == 3
    assert of_lines[0] == of_lines[1]


def test_nothing_is_compared_with_nothing() -> None:
    digests = Digests()
    assert digests.compare() == ({}, {})
    assert len(digests.prompts_of(torch.tensor([1]))) == 0
    assert digests.prompts == 0
