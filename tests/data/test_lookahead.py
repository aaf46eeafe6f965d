from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest

from dpo_cli.data.lookahead import ahead


def test_nothing_is_made_ahead_without_a_thread() -> None:
    made: list[int] = []
    results = ahead(made.append, range(3), is_threaded=False)
    assert made == []
    next(results)
    assert made == [0]
    list(results)
    assert made == [0, 1, 2]


def test_the_next_item_is_made_while_one_is_in_use() -> None:
    made = [threading.Event() for _ in range(3)]
    threads: set[int] = set()

    def build(number: int) -> int:
        threads.add(threading.get_ident())
        made[number].set()
        return number

    results = ahead(build, range(3), is_threaded=True)
    assert next(results) == 0
    assert made[1].wait(10)
    assert not made[2].is_set()
    assert list(results) == [1, 2]
    assert len(threads) == 1
    assert threads.isdisjoint({threading.get_ident()})


@pytest.mark.parametrize("is_threaded", [True, False])
def test_errors_arrive_in_their_place(is_threaded: bool) -> None:
    def build(number: int) -> float:
        return 1 / (1 - number)

    results = ahead(build, range(3), is_threaded=is_threaded)
    assert next(results) == 1
    with pytest.raises(ZeroDivisionError):
        next(results)


@pytest.mark.parametrize("is_threaded", [True, False])
def test_no_items(is_threaded: bool) -> None:
    nothing: Iterator[int] = iter(())
    assert list(ahead(str, nothing, is_threaded=is_threaded)) == []
