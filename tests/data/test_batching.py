from __future__ import annotations

import pytest
import torch

from dpo_cli.data.batching import PackedBatch, PaddedBatch, make_batch
from dpo_cli.data.chat import Tokenized, TokenizedPair
from dpo_cli.data.sequences import PairSegments


def pair(chosen: list[int], rejected: list[int], prompt: int) -> TokenizedPair:
    def side(ids: list[int]) -> Tokenized:
        return Tokenized(torch.tensor(ids), torch.arange(len(ids)) >= prompt)

    return TokenizedPair(1, side(chosen), side(rejected))


def packed(*pairs: TokenizedPair, share_prompts: bool = True) -> PackedBatch:
    batch = make_batch(pairs, "packed", max_seq_len=0, share_prompts=share_prompts)
    assert isinstance(batch, PackedBatch)
    return batch


def targets(batch: PackedBatch) -> list[list[tuple[int, int]]]:
    """Yield (position in the row, token to predict) for each sequence, in order."""
    places = torch.stack([batch.target_positions, batch.target_labels], dim=1)
    return [
        [tuple(places[i].tolist()) for i in row[mask]]
        for row, mask in zip(batch.targets, batch.mask, strict=True)
    ]


def test_padded_labels_are_the_inputs_shifted_by_one() -> None:
    batch = make_batch([pair([5, 6, 7], [5, 8], 1)], "padded", max_seq_len=6, pad_id=9)
    assert isinstance(batch, PaddedBatch)
    assert batch.input_ids.tolist() == [[5, 6, 7, 9, 9], [5, 8, 9, 9, 9]]
    assert batch.labels.tolist() == [[6, 7, 9, 9, 9], [8, 9, 9, 9, 9]]
    assert batch.mask.long().tolist() == [[1, 1, 0, 0, 0], [1, 0, 0, 0, 0]]
    assert batch.lengths.tolist() == [2, 1]
    assert (batch.pairs, batch.computed_tokens, batch.padding_tokens) == (1, 10, 7)


def test_packed_computes_each_token_once() -> None:
    batch = packed(pair([1, 2, 3, 4, 5], [1, 2, 6, 7], prompt=2))
    assert batch.input_ids.tolist() == [[1, 2, 3, 4, 6]]
    assert batch.position_ids.tolist() == [[0, 1, 2, 3, 2]]
    assert batch.segments == (PairSegments(2, 2, 1),)
    # The prompt's last token predicts the first token of either side.
    assert targets(batch) == [[(1, 3), (2, 4), (3, 5)], [(1, 6), (4, 7)]]


def test_a_shared_beginning_of_the_answers_is_one_target_in_both() -> None:
    batch = packed(pair([1, 2, 3, 4], [1, 2, 3, 5, 6], prompt=1))
    assert batch.input_ids.tolist() == [[1, 2, 3, 5]]
    assert batch.segments == (PairSegments(3, 0, 1),)
    assert targets(batch) == [[(0, 2), (1, 3), (2, 4)], [(0, 2), (1, 3), (2, 5), (3, 6)]]
    assert len(batch.target_positions) == 5


@pytest.mark.parametrize("swapped", [False, True])
def test_a_side_that_the_other_continues(swapped: bool) -> None:
    short, long = [1, 2, 3], [1, 2, 3, 4, 5]
    batch = packed(pair(long, short, 1) if swapped else pair(short, long, 1))
    found = targets(batch)[::-1] if swapped else targets(batch)
    assert batch.input_ids.tolist() == [[1, 2, 3, 4]]
    assert batch.segments[0].prompt == 2
    assert found == [[(0, 2), (1, 3)], [(0, 2), (1, 3), (2, 4), (3, 5)]]


def test_nothing_in_common() -> None:
    batch = packed(pair([1, 2, 3], [4, 5], prompt=1))
    assert batch.segments == (PairSegments(0, 2, 1),)
    assert batch.input_ids.tolist() == [[1, 2, 4]]
    assert targets(batch) == [[(0, 2), (1, 3)], [(2, 5)]]


def test_without_sharing_both_sides_stand_alone() -> None:
    batch = packed(pair([1, 2, 3], [1, 2, 4], prompt=2), share_prompts=False)
    assert batch.input_ids.tolist() == [[1, 2, 1, 2]]
    assert batch.position_ids.tolist() == [[0, 1, 0, 1]]
    assert targets(batch) == [[(1, 3)], [(3, 4)]]


def test_pairs_lie_one_behind_the_other_chosen_sequences_first() -> None:
    first, second = pair([1, 2, 3], [1, 2, 4], 2), pair([7, 8, 9], [7, 8, 5, 6], 2)
    batch = packed(first, second)
    assert batch.input_ids.tolist() == [[1, 2, 7, 8, 5]]
    assert [row[-1] for row in targets(batch)] == [(1, 3), (3, 9), (1, 4), (4, 6)]
    assert (batch.pairs, batch.computed_tokens, batch.padding_tokens) == (2, 5, 0)
