from __future__ import annotations

import json
from pathlib import Path

import pytest

from dpo_cli.data.sampler import BatchSampler, hold_out, repeat


def order(**changes: object) -> BatchSampler:
    fields = {
        "pairs": 27,
        "batch_size": 4,
        "accumulation_steps": 2,
        "epochs": 3,
        "shuffle": True,
        "seed": 42,
    }
    return BatchSampler(**{**fields, **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["seed/dense_lr1e-4_acc1", "head/dense_lr1e-4_acc1"])
def test_the_order_is_the_golden_one(golden: Path, name: str) -> None:
    recorded = json.loads((golden / f"train/{name}.json").read_text())
    ours = order(shuffle=name.startswith("head"))
    for epoch in recorded["order"]:
        assert ours.epoch_order(epoch["epoch"]) == epoch["indices"]


def test_each_epoch_sees_every_pair_once_and_closes_its_last_window() -> None:
    global_batches = list(order().global_batches())
    assert len(global_batches) == order().optimizer_steps == 3 * 4
    for epoch in range(3):
        mine = [window for window in global_batches if window.epoch == epoch]
        seen = [i for window in mine for micro_batch in window.micro_batches for i in micro_batch]
        assert sorted(seen) == list(range(27))
        assert [len(window.micro_batches) for window in mine] == [2, 2, 2, 1]
        assert len(mine[-1].micro_batches[-1]) == 3
    assert [window.last_step for window in global_batches[:5]] == [1, 3, 5, 6, 8]


@pytest.mark.parametrize("start", range(13))
def test_windows_from_anywhere_are_the_rest(start: int) -> None:
    assert list(order().global_batches(start)) == list(order().global_batches())[start:]


def test_steps_count_micro_batches() -> None:
    global_batches = list(order().global_batches())
    assert [order().steps_done(done) for done in range(13)] == [
        0,
        *(window.last_step + 1 for window in global_batches),
    ]


@pytest.mark.parametrize("accumulation_steps", [1, 2, 3, 7, 9])
def test_the_steps_that_the_rate_is_read_at_are_the_last_of_the_windows(
    accumulation_steps: int,
) -> None:
    some = order(accumulation_steps=accumulation_steps)
    assert some.last_steps == [window.last_step for window in some.global_batches()]


def test_more_epochs_keep_the_beginning() -> None:
    assert list(order(epochs=5).global_batches())[:12] == list(order().global_batches())


def test_shuffled_epochs_differ_and_depend_on_the_seed() -> None:
    assert order().epoch_order(0) != order().epoch_order(1)
    assert order().epoch_order(0) != order(seed=43).epoch_order(0)
    assert order().epoch_order(1) == order(seed=43).epoch_order(0)


@pytest.mark.parametrize(
    ("pairs", "fraction", "count"), [(100, 0.1, 10), (5, 0.01, 1), (3, 0.99, 2)]
)
def test_held_out_pairs_are_none_of_the_training_pairs(
    pairs: int, fraction: float, count: int
) -> None:
    training, held_out = hold_out(pairs, fraction, seed=1)
    assert len(held_out) == count
    assert sorted(training + held_out) == list(range(pairs))
    assert training == sorted(training)
    assert (training, held_out) == hold_out(pairs, fraction, seed=1)


@pytest.mark.parametrize(("pairs", "fraction"), [(100, 0.1), (5, 0.01), (3, 0.99), (40, 0.5)])
def test_pairs_with_different_prompts_are_split_as_pairs(pairs: int, fraction: float) -> None:
    prompts = [7 * index for index in range(pairs)]
    assert hold_out(pairs, fraction, 3, prompts) == hold_out(pairs, fraction, 3)


@pytest.mark.parametrize(
    ("sizes", "count", "held_out"),
    [
        ([2] * 50, 10, 10),
        ([2] * 50, 27, 28),  # one more, so that no prompt is on both sides
        ([4] * 50, 30, 32),
        ([1] * 20 + [4] * 10, 20, 20),
        ([20, 20, 20], 28, 40),
        ([40, 40], 30, 40),
    ],
)
def test_pairs_of_a_prompt_stay_together(sizes: list[int], count: int, held_out: int) -> None:
    prompts = [number for number, size in enumerate(sizes) for _ in range(size)]
    total = len(prompts)
    training, evaluated = hold_out(total, count / total, 1, prompts)
    assert len(evaluated) == held_out
    assert sorted(training + evaluated) == list(range(total))
    assert {prompts[i] for i in training}.isdisjoint(prompts[i] for i in evaluated)
    assert (training, evaluated) == hold_out(total, count / total, 1, prompts)


@pytest.mark.parametrize(
    ("sizes", "count"), [([90], 30), ([1, 80, 80], 30), ([2], 1), ([100, 100], 20)]
)
def test_the_number_decides_where_whole_prompts_are_too_many(sizes: list[int], count: int) -> None:
    prompts = [number for number, size in enumerate(sizes) for _ in range(size)]
    training, evaluated = hold_out(len(prompts), count / len(prompts), 1, prompts)
    assert len(evaluated) == count
    assert sorted(training + evaluated) == list(range(len(prompts)))


def test_nothing_is_held_out_by_default() -> None:
    assert hold_out(4, 0.0, seed=1) == ([0, 1, 2, 3], [])


def test_a_weight_says_how_often_pairs_count() -> None:
    groups = [range(10), range(10, 20), range(20, 30), range(30, 40)]
    taken = repeat(groups, [1.0, 2.0, 0.5, 0.0], seed=3)
    assert taken[:30] == [*range(10), *range(10, 20), *range(10, 20)]
    half = taken[30:]
    assert len(set(half)) == 5
    assert half == sorted(half)
    assert set(half) < set(range(20, 30))
    assert taken == repeat(groups, [1.0, 2.0, 0.5, 0.0], seed=3)
    assert taken != repeat(groups, [1.0, 2.0, 0.5, 0.0], seed=4)
    assert repeat([range(10)], [1.25], seed=0)[:10] == list(range(10))
    assert len(repeat([range(10)], [1.25], seed=0)) == 12
