"""Work one item ahead of its use, in a thread."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ahead(
    build: Callable[[Item], Result], items: Iterable[Item], *, is_threaded: bool
) -> Iterator[Result]:
    """Yield `build(item)` for each item, with the next result built in a thread if `is_threaded`.

    Args:
        build: may copy to a GPU, because all threads of torch launch on the same stream in order.
        items: the next one is drawn before a result is yielded if `is_threaded`.
        is_threaded: True if the CPU is idle while a result is in use; False builds each result
            when it is requested.
    """
    if not is_threaded:
        yield from map(build, items)
        return
    with ThreadPoolExecutor(1, thread_name_prefix="dpo-ahead") as thread:
        pending: Future[Result] | None = None
        for item in items:
            following = thread.submit(build, item)
            if pending is not None:
                yield pending.result()
            pending = following
        if pending is not None:
            yield pending.result()
