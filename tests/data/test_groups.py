"""Tests of groups of pairs: by language of the chosen answer, and by the longer side."""

from __future__ import annotations

import torch
from torch import Tensor

from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.groups import count_known_prompts, groups_of, prompt_labels
from tests.support.columns import in_columns

TEXTS = {1: "A plain answer.", 2: "一个简单的回答。", 3: "просто", 4: "42 + 1"}


def pair(line: int, text: int, chosen: int, rejected: int) -> TokenizedPair:
    """Return a pair with answers of given lengths; the chosen one repeats the token `text`."""

    def side(token: int, count: int) -> Tokenized:
        ids = torch.tensor([9, 9, *[token] * count])
        return Tokenized(ids, torch.arange(len(ids)) >= 2)

    return TokenizedPair(line, side(text, chosen), side(7, rejected))


def decode(ids: Tensor) -> str:
    assert 0 < len(ids) <= 500
    return TEXTS[int(ids[0])]


def test_languages_and_lengths_each_divide_the_pairs() -> None:
    sizes = [(1, 10, 12), (2, 12, 10), (3, 10, 13), (4, 13, 10), (1, 600, 10)]
    pairs = in_columns([pair(line, *lengths) for line, lengths in enumerate(sizes, start=1)])
    groups = {name: members.tolist() for name, members in groups_of(pairs, decode).items()}
    assert groups == {
        "all": [True] * 5,
        "language/Chinese": [False, True, False, False, False],
        "language/Latin": [True, False, False, False, True],
        "language/other": [False, False, True, True, False],
        "length/chosen longer": [False, False, False, True, True],
        "length/like length": [True, True, False, False, False],  # 12 is 1.2 times 10
        "length/rejected longer": [False, False, True, False, False],
    }


def test_a_group_without_pairs_is_none() -> None:
    pairs = in_columns([pair(1, 1, 10, 10)])
    assert list(groups_of(pairs, decode)) == ["all", "language/Latin", "length/like length"]
    assert groups_of(pairs[:0], decode) == {}


def test_pairs_with_one_prompt_have_one_label() -> None:
    def of(line: int, prompt: list[int], text: int) -> TokenizedPair:
        def side(token: int) -> Tokenized:
            ids = torch.tensor([*prompt, token, token])
            return Tokenized(ids, torch.arange(len(ids)) >= len(prompt))

        return TokenizedPair(line, side(text), side(7))

    prompts = [[9, 9], [9, 8], [9, 9], [9, 9, 1], [9, 8]]
    pairs = in_columns([of(line, prompt, line) for line, prompt in enumerate(prompts, start=1)])
    assert prompt_labels(pairs) == [0, 1, 0, 2, 1]
    assert prompt_labels(pairs[1:3]) == [0, 1]
    assert count_known_prompts(pairs[:2], pairs[2:]) == 2
    assert count_known_prompts(pairs[3:4], pairs[:3]) == 0
    assert count_known_prompts(pairs[:0], pairs) == 0
