"""WebDataset shards (`KEY.jpg` + `KEY.json` in tar files) to samples.

`datasets/training_mix/README.md` describes the fields. Samples come in an order that depends on the seed and the epoch
only, so that a training that was killed finds its place again by counting.
"""

import json
import random
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.errors import DataError

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")


@dataclass(frozen=True)
class Sample:
    """One photo and what is said about it.

    Attributes:
        key: name within its shards.
        image: the encoded file.
        captions: English sentences.
        source: data set the photo comes from.
        split: "train" or "val".
        squashed: the file was stored square, whatever the photo's aspect ratio.
        fields: the whole JSON record.
    """

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    source: str = ""
    split: str = "train"
    squashed: bool = False
    fields: dict[str, Any] = field(default_factory=dict, repr=False)


def find_shards(data: str | Path) -> list[str]:
    """The `.tar` files of a folder, sorted, or the file itself.

    Raises:
        DataError: there are none.
    """
    path = Path(data)
    shards = sorted(str(p) for p in path.glob("*.tar")) if path.is_dir() else [str(path)] * path.is_file()
    if not shards:
        raise DataError(f"no .tar shards at {str(data)!r}; point --data at a folder of WebDataset shards")
    return shards


def read_samples(shards: Sequence[str], max_bad: float = 0.01) -> Iterator[Sample]:
    """Every sample of the shards, in order.

    Records that cannot be read are skipped with a warning.

    Args:
        shards: paths or URLs that webdataset opens.
        max_bad: share of bad records above which reading fails.

    Raises:
        DataError: more than `max_bad` of the records are bad, or a shard is no tar file.
    """
    import webdataset as wds

    bad: list[str] = []
    total = 0
    for shard in shards:
        try:
            for record in wds.WebDataset([shard], shardshuffle=False, empty_check=False):
                total += 1
                sample = _parse(record)
                if sample is None:
                    bad.append(f"{shard}:{record.get('__key__', '?')}")
                    warnings.warn(f"skipped {bad[-1]}: no image or no readable JSON", stacklevel=2)
                else:
                    yield sample
        except (OSError, ValueError) as error:
            raise DataError(f"{shard!r} cannot be read as a tar shard: {error}") from None
    if bad and len(bad) > max_bad * total:
        raise DataError(f"{len(bad)} of {total} records are bad, the first is {bad[0]}; rebuild the shards")


def _parse(record: dict[str, Any]) -> Sample | None:
    image = next((record[key] for key in IMAGE_KEYS if key in record), None)
    try:
        fields = json.loads(record["json"])
        captions = tuple(str(caption) for caption in fields.get("captions", ()))
    except (KeyError, ValueError, AttributeError, TypeError):
        return None
    if image is None:
        return None
    return Sample(
        record["__key__"],
        image,
        captions,
        str(fields.get("source", "")),
        str(fields.get("split", "train")),
        bool(fields.get("squashed", False)),
        fields,
    )


def epoch_order(count: int, seed: str) -> list[int]:
    """A permutation of `range(count)` that depends on `seed` alone."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
