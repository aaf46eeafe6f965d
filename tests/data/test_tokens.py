"""Tests of columns and their views: counts equal those of the pairs one by one."""

from __future__ import annotations

import gc
import itertools
import random
from array import array
from pathlib import Path

import pytest
import torch

from dpo_cli.data.batching import make_batch, shared_inputs
from dpo_cli.data.chat import ChatTokenizer, Encoded, Tokenized, TokenizedPair
from dpo_cli.data.encoders import as_tensor
from dpo_cli.data.encoding import encode_rows
from dpo_cli.data.pairs import PreferencePair, SkippedRow, read_pairs
from dpo_cli.data.tokens import EncodedRows, TokenizedPairs
from tests.support.chat_families import write_tokenizer
from tests.support.columns import in_columns
from tests.support.plainly import cut_plainly


def columns(pairs: list[tuple[Encoded, Encoded]], *skipped_rows: SkippedRow) -> EncodedRows:
    """Return the columns that `encode_rows` would create."""
    ids, lengths, shared, answers, counts = (array("i") for _ in range(5))
    for sides in pairs:
        both = zip(*(side.ids for side in sides), strict=False)
        common = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], both))
        ids += sides[0].ids + sides[1].ids[common:]
        shared.append(common)
        for side in sides:
            lengths.append(len(side.ids))
            counts.append(len(side.answers))
            answers.extend(itertools.chain.from_iterable(side.answers))
    return EncodedRows(
        ids=as_tensor(ids),
        lines=torch.arange(1, len(pairs) + 1, dtype=torch.int32),
        lengths=as_tensor(lengths).view(-1, 2),
        shared=as_tensor(shared),
        answers=as_tensor(answers).view(-1, 2),
        answer_counts=as_tensor(counts).view(-1, 2),
        flags=torch.zeros(len(pairs), dtype=torch.int32),
        cuts=torch.zeros(0, dtype=torch.int32),
        cut_counts=torch.zeros(len(pairs), dtype=torch.int32),
        skipped_rows=skipped_rows,
    )


def random_pairs(draw: random.Random, count: int) -> list[tuple[Encoded, Encoded]]:
    """Return short pairs with two kinds of ids, so that all coincidences appear."""

    def side(beginning: list[int]) -> Encoded:
        ids = beginning + [draw.randrange(2) for _ in range(draw.randrange(1, 5))]
        places = sorted(draw.sample(range(len(ids) + 1), 2 * draw.randrange(len(ids) // 2 + 1)))
        answers = zip(places[::2], places[1::2], strict=True)
        return Encoded(array("i", ids), tuple(answers))

    found: list[tuple[Encoded, Encoded]] = []
    while len(found) < count:
        beginning = [draw.randrange(2) for _ in range(draw.randrange(6))]
        pair = side(beginning), side(beginning)
        if pair[0].ids != pair[1].ids:
            found.append(pair)
    return found


def plain(pairs: list[tuple[Encoded, Encoded]]) -> list[TokenizedPair]:
    return [
        TokenizedPair(line, *(side.tokenized() for side in pair))
        for line, pair in enumerate(pairs, start=1)
    ]


def sides(pairs: TokenizedPairs) -> list[list[Tokenized]]:
    return [[pair.chosen, pair.rejected] for pair in pairs]


@pytest.mark.parametrize("max_seq_len", range(1, 12))
def test_truncation_equals_that_of_each_single_pair(max_seq_len: int) -> None:
    pairs = random_pairs(random.Random(7), 500)
    aside = SkippedRow(3, "malformed", "first"), SkippedRow(900, "identical", "last")
    cut = columns(pairs, *aside).cut(max_seq_len)
    expected, lost = cut_plainly(plain(pairs), aside, max_seq_len)
    assert list(cut.skipped_rows) == lost
    assert [pair.line for pair in cut.kept] == [pair.line for pair in expected]
    assert cut.kept.lines.tolist() == [pair.line for pair in expected]
    for pair, expected_pair in zip(sides(cut.kept), expected, strict=True):
        for side, expected_side in zip(
            pair, (expected_pair.chosen, expected_pair.rejected), strict=True
        ):
            assert torch.equal(side.ids, expected_side.ids)
            assert torch.equal(side.response, expected_side.response)
    if 3 < max_seq_len < 9:
        assert {row.problem for row in lost} == {"malformed", "identical", "truncated"}


@pytest.mark.parametrize("max_seq_len", [3, 5, 8, 100])
def test_counts_of_columns_equal_those_of_the_pairs(max_seq_len: int) -> None:
    kept = columns(random_pairs(random.Random(8), 300)).cut(max_seq_len).kept
    assert len(kept) > 10
    assert kept.lengths.tolist() == [[len(s.ids) for s in pair] for pair in sides(kept)]
    assert kept.response_tokens.tolist() == [
        [s.response_tokens for s in pair] for pair in sides(kept)
    ]
    assert kept.answers.tolist() == [
        [sum(carries for carries, _ in itertools.groupby(s.response.tolist())) for s in pair]
        for pair in sides(kept)
    ]
    assert kept.computed_tokens.tolist() == [
        make_batch([pair], "packed", max_seq_len=0).computed_tokens for pair in kept
    ]
    assert kept.computed_tokens.tolist() == [
        len(pair.chosen.ids) + len(pair.rejected.ids) - 2 - shared_inputs(pair) for pair in kept
    ]


def test_a_view_of_a_view_is_one() -> None:
    kept = columns(random_pairs(random.Random(9), 100)).cut(6).kept
    lines = [pair.line for pair in kept]
    assert [pair.line for pair in kept[5:50:3]] == lines[5:50:3]
    assert [pair.line for pair in kept[::-1]] == lines[::-1]
    assert [pair.line for pair in kept[5:50:3].select([4, 0, 4])] == [
        lines[5:50:3][i] for i in (4, 0, 4)
    ]
    assert kept[-1].line == lines[-1]
    assert isinstance(kept[:0], TokenizedPairs)
    assert not kept[:0]
    part = kept[5:50:3]
    assert torch.equal(part.response_tokens, kept.response_tokens[5:50:3])
    assert torch.equal(part.computed_tokens, kept.computed_tokens[5:50:3])
    assert torch.equal(part.shortened, kept.shortened[5:50:3])
    with pytest.raises(IndexError):
        kept[len(kept)]


def test_shortened_pairs_are_those_with_a_truncated_side() -> None:
    pairs = random_pairs(random.Random(10), 200)
    kept = columns(pairs).cut(5).kept
    whole = dict(enumerate(pairs, start=1))
    assert kept.shortened.tolist() == [
        max(len(side.ids) for side in whole[pair.line]) > 5 for pair in kept
    ]
    assert 0 < kept.shortened.sum() < len(kept)


@pytest.mark.parametrize("scored_turns", ["all", "last"])
def test_pairs_with_equal_answers_are_skipped(tmp_path: Path, scored_turns: str) -> None:
    """A user turn after equal answers, or another answer that is cut off, makes no difference."""
    tokenizer = ChatTokenizer(write_tokenizer(tmp_path, "chatml", "byte_bpe"))
    ask, answer, more, other = (
        {"role": role, "content": text}
        for role, text in (
            ("user", "Is it?"),
            ("assistant", "Yes."),
            ("user", "Why is that so?"),
            ("assistant", "No."),
        )
    )
    sides = [
        ([ask, answer], [ask, answer, more]),
        ([ask, answer, more], [ask, answer, ask]),
        ([ask, answer], [ask, other, more]),
        ([ask, answer], [ask, answer, more, other]),
    ]
    rows = [PreferencePair(line, *both, None, (), {}) for line, both in enumerate(sides, start=1)]
    encoded = EncodedRows.joined(
        encode_rows(rows, tokenizer, empty_think_ratio=1.0, seed=0, scored_turns=scored_turns)
    )
    cut = encoded.cut(100)
    assert [(row.line, row.problem) for row in cut.skipped_rows] == [
        (1, "identical"),
        (2, "identical"),
    ]
    # Only the last row has answers that differ after the first turns, and these are cut off.
    first = int(encoded.answers[0, 1])
    shorter = {row.line: row.problem for row in encoded.cut(first + 1, "end").skipped_rows}
    assert shorter[4] == "identical"
    assert 3 not in shorter


def test_one_block_after_another(shared: Path) -> None:
    """Answers and ids of each block are shifted by the blocks before."""
    tokenizer = ChatTokenizer(shared / "tokenizer/minimind2")
    rows = list(read_pairs(shared / "data/dpo_en_zh_400.jsonl"))
    blocks = list(encode_rows(rows, tokenizer, empty_think_ratio=0.0, seed=1))
    assert len(blocks) == 2
    joined = EncodedRows.joined(blocks)
    one_by_one = [pair for block in blocks for pair in block.cut(512).kept]
    for ours, single in zip(joined.cut(512).kept, one_by_one, strict=True):
        assert ours.line == single.line
        assert torch.equal(ours.rejected.ids, single.rejected.ids)
        assert torch.equal(ours.rejected.response, single.rejected.response)


def test_a_pair_has_its_own_memory_which_is_freed_after_use() -> None:
    kept = columns(random_pairs(random.Random(11), 50)).cut(4).kept

    def tensors() -> int:
        gc.collect()
        return sum(type(each) is torch.Tensor for each in gc.get_objects())

    kept[0]
    before = tensors()
    for pair in kept:
        for side in (pair.chosen, pair.rejected):
            assert side.ids.untyped_storage().nbytes() == 8 * len(side.ids)
            assert side.response.untyped_storage().nbytes() == len(side.response)
    del pair, side
    assert tensors() == before


def test_wide_ids_stay_whole() -> None:
    """The vocabulary has more than 65,536 entries."""
    pair = Encoded(array("i", [1, 70_000, 5]), ((1, 3),)), Encoded(array("i", [1, 5]), ((1, 2),))
    (found,) = columns([pair]).cut(10).kept
    assert found.chosen.ids.tolist() == [1, 70_000, 5]
    assert found.rejected.ids.tolist() == [1, 5]


def test_the_fingerprint_covers_tokens_masks_and_the_choice_of_pairs() -> None:
    def pairs(first: int = 7, answer: int = 2) -> TokenizedPairs:
        sides = [torch.tensor([1, 2, first, 8]), torch.tensor([1, 2, 9])]
        both = [Tokenized(ids, torch.arange(len(ids)) >= answer) for ids in sides]
        return in_columns([TokenizedPair(1, *both), TokenizedPair(2, *both)])

    base = pairs().fingerprint()
    assert pairs().fingerprint() == base
    rows = EncodedRows.joined([pairs()._rows])
    others = [
        pairs(first=6),
        pairs(answer=1),
        pairs()[:1],
        pairs().select([1, 0]),
        TokenizedPairs(rows, 3, torch.arange(2)),
    ]
    assert len({base, *(other.fingerprint() for other in others)}) == 6
