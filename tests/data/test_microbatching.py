from __future__ import annotations

import pytest

from dpo_cli.data.microbatching import make_micro_batches

TOKENS = dict(enumerate([700, 300, 1500, 900, 2500, 100]))


def test_without_a_limit_micro_batches_are_computed_as_they_are() -> None:
    ((first, second),) = make_micro_batches([(4, 1), (0,)], 4, TOKENS)
    assert first.indices == (4, 1)
    assert first.weights == (1 / 8, 1 / 8)
    assert second.indices == (0,)
    assert second.weights == (1 / 4,)


def test_forwards_are_filled_up_to_the_limit() -> None:
    (forwards,) = make_micro_batches([(0, 1, 2), (3, 4, 5)], 2, TOKENS, limit=1800)
    assert [forward.indices for forward in forwards] == [(4,), (2, 1), (3, 0, 5)]
    sums = [sum(TOKENS[i] for i in forward.indices) for forward in forwards]
    assert sums == [2500, 1800, 1700]  # a longer pair forms its own forward


@pytest.mark.parametrize("ranks", [1, 2, 7])
@pytest.mark.parametrize("limit", [1, 1000, 10**6, None])
def test_every_pair_keeps_the_weight_its_micro_batch_gives_it(
    limit: int | None, ranks: int
) -> None:
    """Pairs of a short micro-batch weigh more, because all micro-batches weigh the same."""
    micro_batches = [(5, 0, 3), (2,), (4, 1)]
    shares = make_micro_batches(micro_batches, 3, TOKENS, limit, ranks)
    forwards = [forward for share in shares for forward in share]
    weights = {i: w for f in forwards for i, w in zip(f.indices, f.weights, strict=True)}
    assert weights == {5: 1 / 9, 0: 1 / 9, 3: 1 / 9, 2: 1 / 3, 4: 1 / 6, 1: 1 / 6}


def test_ranks_get_about_the_same_work() -> None:
    """Longest first, each to the rank with the least work; each rank computes in order."""
    shares = make_micro_batches([(0, 1, 2), (3, 4, 5)], 2, TOKENS, 10**6, ranks=2)
    assert [[f.indices for f in share] for share in shares] == [[(4, 1, 5)], [(2, 3, 0)]]


def test_without_a_limit_ranks_share_out_whole_micro_batches() -> None:
    shares = make_micro_batches([(0, 1), (2, 3), (4, 5)], 3, TOKENS, ranks=2)
    assert [[f.indices for f in share] for share in shares] == [[(4, 5)], [(0, 1), (2, 3)]]


def test_a_short_window_leaves_some_without_work() -> None:
    assert make_micro_batches([(0,)], 3, TOKENS, ranks=3)[1:] == [[], []]
