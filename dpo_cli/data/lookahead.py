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
    """Yield `build(item)` for each item; in a thread, the next one is built while one is in use.

    Args:
        build: may copy to a GPU: all threads of torch launch in the same order of one stream.
        items: the next one is drawn before a result is yielded if `is_threaded`.
        is_threaded: True where the CPU has nothing else to do; False builds each when it is asked
            for.
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
