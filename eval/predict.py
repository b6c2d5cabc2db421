"""The loop of a run: photos are loaded on threads, go through the model in batches, and are written down at once."""

import gc
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from eval import models
from eval.benchmark import Benchmark, Item
from eval.journal import Journal
from vlm.data.stream import ordered_map
from vlm.errors import ArgumentError, ImageError


def by_photo(items: Sequence[Item]) -> list[list[Item]]:
    """Items that ask about one photo together, so that it is loaded and encoded once."""
    photos: dict[Path, list[Item]] = {}
    for item in items:
        photos.setdefault(item.image, []).append(item)
    return list(photos.values())


def predict_all(
    photos: Sequence[list[Item]],
    prepare: Callable[[Any], Any],
    batches: "Batches",
    journal: Journal,
    tally: "Tally | None" = None,
    workers: int = 2,
) -> None:
    """Predict photo by photo in batches, each written down before the next.

    Args:
        photos: the items of each photo, see `by_photo`.
        prepare: a file to what the model reads, or an ImageError.
        batches: the model, with its batch size.
        journal: open.
        tally: keeps the running score; where there is none, no progress is shown either.
        workers: threads that load photos.

    Raises:
        ArgumentError: not even one item fits into memory.
    """
    from tqdm import tqdm

    size = batches.size
    stream = prepared(photos, prepare, workers, 2 * size)
    with tqdm(total=sum(map(len, photos)), unit="item", file=sys.stderr, disable=tally is None or not photos) as bar:
        while part := list(islice(stream, size)):
            bad = [(item.id, str(image)) for item, image in part if isinstance(image, ImageError)]
            good = [(item, image) for item, image in part if not isinstance(image, ImageError)]
            found = batches([item for item, _ in good], [image for _, image in good])
            pairs = [(item, prediction) for (item, _), prediction in zip(good, found, strict=True)]
            journal.append([(item.id, prediction) for item, prediction in pairs], bad)
            if tally:
                tally.add(pairs)
                bar.set_postfix_str(str(tally), refresh=False)
            bar.update(len(part))


def prepared(
    photos: Sequence[list[Item]], prepare: Callable[[Any], Any], workers: int, ahead: int
) -> Iterator[tuple[Item, Any]]:
    """Each item beside its prepared photo, or beside what is wrong with it; photos are loaded on threads, in order."""

    def load(group: list[Item]) -> Any:
        try:
            return prepare(group[0].image)
        except ImageError as error:
            return error

    for group, image in zip(photos, ordered_map(load, photos, workers, ahead), strict=True):
        for item in group:
            yield item, image


class Batches:
    """Predict batches; one that does not fit into memory is tried again in halves, and later ones stay that small."""

    def __init__(self, predict: models.Predict, size: int):
        self.predict, self.size = predict, size

    def __call__(self, items: Sequence[Item], images: Sequence[Any]) -> list[Any]:
        """Predictions of all items, in order.

        Raises:
            ArgumentError: not even one item fits.
        """
        found: list[Any] = []
        while len(found) < len(items):
            part = slice(len(found), len(found) + self.size)
            try:
                found += self.predict(items[part], images[part])
                continue
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
            # tried again outside of the handler: there, the traceback holds on to the batch's tensors
            tried = len(items[part])
            if tried == 1:
                raise ArgumentError("a single item does not fit into memory; give another --device or a smaller model")
            self.size = tried // 2
            print(f"out of memory with {tried} items; going on with {self.size} at a time", file=sys.stderr)
            _free_memory()
        return found


def out_of_memory(error: BaseException) -> bool:
    """Whether an exception says that memory ran out: Python's, torch's on a GPU, or torch's allocator on a CPU."""
    text = str(error).lower()
    return isinstance(error, MemoryError) or any(
        words in text for words in ("out of memory", "not enough memory", "can't allocate memory")
    )


def _free_memory() -> None:
    gc.collect()
    torch = sys.modules.get("torch")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()


class Tally:
    """Running mean of the leading figure, for the progress bar; nothing where the references are private."""

    def __init__(self, benchmark: Benchmark, items: Sequence[Item]):
        scored = benchmark.running is not None and all(item.references for item in items)
        self.score = benchmark.running(items) if benchmark.running and scored else None
        self.name, self.total, self.count = benchmark.metrics[0], 0.0, 0

    def add(self, pairs: Sequence[tuple[Item, Any]]) -> None:
        if self.score:
            self.total += sum(self.score(item, prediction) for item, prediction in pairs)
            self.count += len(pairs)

    def __str__(self) -> str:
        return f"{self.name} {self.total / self.count:.1f}" if self.count else ""
