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
MAX_BAD = 0.01  # share of damaged samples above which a run fails


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
        intact: training neither crops, mirrors nor recolours the photo.
    """

    key: str
    image: bytes
    captions: tuple[str, ...] = ()
    source: str = ""
    split: str = "train"
    squashed: bool = False
    fields: dict[str, Any] = field(default_factory=dict, repr=False)
    intact: bool = False

    def open(self) -> bytes:
        """The encoded file."""
        return self.image

    def texts(self) -> Iterator[str]:
        """What is said about the photo: captions in all languages, and questions with their answers."""
        yield from self.captions
        for language in ("zh", "de"):
            yield from map(str, self.fields.get(language) or ())
        for item in self.fields.get("vqa") or ():
            yield f"{item.get('question')} {item.get('answers')}" if isinstance(item, dict) else str(item)


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


def read_samples(shards: Sequence[str], max_bad: float = MAX_BAD) -> Iterator[Sample]:
    """Every sample of the shards, in order.

    Records that cannot be read are skipped with a warning.

    Args:
        shards: paths or URLs that webdataset opens.
        max_bad: share of bad records above which reading fails.

    Raises:
        DataError: more than `max_bad` of the records are bad, or a shard is damaged or not a tar file.
    """
    bad: list[str] = []
    total = 0
    for shard in shards:
        for record in _records(shard):
            total += 1
            sample = _parse(record)
            if sample is None:
                bad.append(f"{shard}:{record['__key__']}")
                warnings.warn(f"skipped {bad[-1]}: no image or no readable JSON", stacklevel=2)
            else:
                yield sample
    if bad and len(bad) > max_bad * total:
        raise DataError(f"{len(bad)} of {total} records are bad, the first is {bad[0]}; rebuild the shards")


def _records(shard: str) -> Iterator[dict[str, Any]]:
    """The files of a shard, grouped by their names."""
    import webdataset as wds

    _check_end(shard)
    try:
        # every process of a training reads all shards and takes its share of the samples: nothing is split here
        yield from wds.WebDataset([shard], shardshuffle=False, empty_check=False, nodesplitter=None)  # type: ignore[arg-type]
    except Exception as error:  # tarfile and the decompressors that it calls raise nearly anything
        reason = str(error.args[0] if error.args else type(error).__name__).splitlines()[0]
        raise DataError(f"{shard!r} cannot be read as a tar shard: {reason}; build or download it again") from None


def _check_end(shard: str) -> None:
    """Refuse a local shard that was cut off: tarfile takes a cut between two files for the end.

    A tar file ends with two blocks of 512 zero bytes (POSIX.1-2001, pax, "ustar Interchange Format").
    """
    path = Path(shard)
    if path.suffix == ".tar" and path.is_file():
        with path.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(0, size - 1024))
            if size < 1024 or file.read().strip(b"\0"):
                raise DataError(f"{shard!r} is truncated or not a tar file; build or download it again")


def _parse(record: dict[str, Any]) -> Sample | None:
    image = next((record[key] for key in IMAGE_KEYS if key in record), None)
    try:
        fields = json.loads(record["json"])
        captions = fields.get("captions", ())
        captions = (captions,) if isinstance(captions, str) else tuple(map(str, captions))
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


class Skipped:
    """Photos that turned out to be damaged: each is listed once as a warning, and too many of them fail the run.

    Attributes:
        keys: the damaged photos.
        total: how many photos there are.
    """

    def __init__(self, total: int):
        self.keys: list[str] = []
        self.total = total

    def add(self, sample: Sample, error: Exception) -> None:
        """Note a damaged photo.

        Raises:
            DataError: there are too many.
        """
        if sample.key in self.keys:
            return
        self.keys.append(sample.key)
        warnings.warn(f"skipped photo: {error}", stacklevel=2)
        if len(self.keys) > MAX_BAD * self.total:
            shown = ", ".join(self.keys[:5]) + ", ..." * (len(self.keys) > 5)
            raise DataError(f"{len(self.keys)} of {self.total} photos cannot be decoded ({shown}); rebuild the shards")


def epoch_order(count: int, seed: str) -> list[int]:
    """A permutation of `range(count)` that depends on `seed` alone."""
    order = list(range(count))
    random.Random(seed).shuffle(order)
    return order
