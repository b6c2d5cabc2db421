"""Work on threads with results in order, and photos in batches: Pillow and torch release Python's lock."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any, TypeVar

from vlm.errors import ArgumentError, ImageError

Item = TypeVar("Item")
Prepared = TypeVar("Prepared")
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


def stream_batches(
    images: Sequence[Any],
    prepare: Callable[[Any], Prepared],
    ask: Callable[[list[Prepared], list[int]], Iterable[Result]],
    batch_size: int,
) -> Iterator[Result | ImageError]:
    """Prepare photos on threads and ask about them in batches; a photo that cannot be used is lost alone.

    Args:
        images: photos in any form.
        prepare: one photo to what the networks read, or an ImageError.
        ask: a batch of prepared photos, with the place of each among all photos, to one result each.
        batch_size: photos of a batch.

    Yields:
        For each photo, in order, its result, or what is wrong with the photo.

    Raises:
        ArgumentError: `batch_size` is below 1.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size} is below 1; give 1 or more")

    def attempt(image: Any) -> Prepared | ImageError:
        try:
            return prepare(image)
        except ImageError as error:
            return error

    prepared = ordered_map(attempt, images, ahead=2 * batch_size)
    numbered = enumerate(prepared)
    while part := list(islice(numbered, batch_size)):
        good = [(place, item) for place, item in part if not isinstance(item, ImageError)]
        found: Iterator[Result] = iter(ask([item for _, item in good], [place for place, _ in good]) if good else ())
        yield from (item if isinstance(item, ImageError) else next(found) for _, item in part)
