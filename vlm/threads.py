"""Work on threads with results in order: Pillow and torch both let go of the interpreter's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Item], Result], items: Iterable[Item], workers: int = 2, ahead: int = 64
) -> Iterator[Result]:
    """`map` whose results come in order while at most `ahead` items are waiting or being worked on."""
    pool = ThreadPoolExecutor(workers)
    try:
        source = iter(items)
        waiting = deque(pool.submit(function, item) for item in islice(source, ahead))
        while waiting:
            result = waiting.popleft().result()
            waiting.extend(pool.submit(function, item) for item in islice(source, 1))
            yield result
    finally:  # a consumer that stops early, or an error, leaves no work behind
        pool.shutdown(wait=False, cancel_futures=True)
