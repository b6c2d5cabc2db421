"""WebDataset shards (`KEY.jpg` + `KEY.json` in tar files) to samples.

`datasets/training_mix/README.md` describes the fields. Samples come in an order that depends on the seed and the epoch
only, so that a training that was killed finds its place again by counting.
"""

import json
import random
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm.errors import DataError

IMAGE_KEYS = ("jpg", "jpeg", "png", "webp")
TEXT_KEYS = ("json", "txt")
LANGUAGES = ("zh", "de")  # fields of captions in other languages
# how data sets call their parts; photos of any other part are left out of training
SPLITS = {
    **dict.fromkeys(("train", "training", "restval"), "train"),
    **dict.fromkeys(("val", "valid", "validation", "dev", "development", "minival"), "val"),
    **dict.fromkeys(("test", "testing", "testdev", "minitest"), "test"),
}
MAX_BAD = 0.01  # share of damaged samples above which a run fails


@dataclass(frozen=True)
class Sample:
    """One photo and what is said about it.

    Attributes:
        key: name within its shards.
        image: the encoded file.
        captions: English sentences.
        source: data set the photo comes from.
        split: "train", "val" or "test", or the record's own word where it is none of `SPLITS`.
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
        for language in LANGUAGES:
            yield from texts_of(self.fields, language)
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


def read_samples(shards: str | Sequence[str], max_bad: float = MAX_BAD) -> Iterator[Sample]:
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
    for shard in [shards] if isinstance(shards, str) else shards:
        for record in _records(shard):
            total += 1
            try:
                yield _parse(record)
            except DataError as error:
                bad.append(f"{shard}:{record['__key__']}: {error}")
                warnings.warn(f"skipped {bad[-1]}", stacklevel=2)
    if bad and len(bad) > max_bad * total:
        raise DataError(f"{len(bad)} of {total} records are bad, the first is {bad[0]}; correct the shards")


def _records(shard: str) -> Iterator[dict[str, Any]]:
    """The files of a shard, grouped by their names."""
    import webdataset as wds

    _check_end(shard)
    try:
        # every process of a training reads all shards and takes its share of the samples: nothing is split here
        grouped = wds.WebDataset([shard], shardshuffle=False, empty_check=False, nodesplitter=None)  # type: ignore[arg-type]
        for record in grouped:
            yield from split_record(record)
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


def split_record(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The records in one of webdataset's, which ends a key at its first dot.

    `a.1.jpg` and `a.1.json` are of the key `a.1` where both are there; `a.jpg`, `a.json` and `a.mask.png` are of `a`.
    """
    parts: dict[str, set[str]] = {}
    for name in record:
        stem, _, kind = name.rpartition(".")
        parts.setdefault(stem, set()).add(kind)
    own = [stem for stem, kinds in parts.items() if stem and kinds & {*IMAGE_KEYS} and kinds & {*TEXT_KEYS}]
    if not own:
        return [record]
    found: list[dict[str, Any]] = []
    for stem in own:
        start = f"{stem}."
        files = {name.removeprefix(start): value for name, value in record.items() if name.rpartition(".")[0] == stem}
        found.append({"__key__": f"{record['__key__']}.{stem}", **files})
    rest = {name: value for name, value in record.items() if name.rpartition(".")[0] not in own}
    return [*([rest] if parts.get("", set()) & {*IMAGE_KEYS, *TEXT_KEYS} else []), *found]


def _parse(record: dict[str, Any]) -> Sample:
    """A record as a sample.

    Raises:
        DataError: it lacks a photo or its texts, or holds something else where texts belong.
    """
    image = next((record[key] for key in IMAGE_KEYS if key in record), None)
    if image is None:
        raise DataError(f"no photo beside the texts; name it KEY.{', KEY.'.join(IMAGE_KEYS)}")
    try:
        fields = json.loads(record["json"]) if "json" in record else {}
        if not isinstance(fields, dict):
            raise TypeError
        if "txt" in record and not fields.get("captions") and not fields.get("caption"):
            fields["captions"] = record["txt"].decode("utf-8-sig").splitlines()
        split = next((fields[name] for name in fields if name.lower() == "split"), None)
    except (ValueError, AttributeError, TypeError):
        raise DataError("the JSON or text beside the photo is damaged, or no object; write it anew") from None
    if "json" not in record and "txt" not in record:
        raise DataError("no readable JSON beside the photo; give captions in KEY.json or KEY.txt")
    if fields.get("captions", ()) is None and not fields.get("caption"):
        raise DataError("captions are null; give texts, or leave the field out")
    captions = texts_of(fields, "captions") or texts_of(fields, "caption")  # img2dataset's name
    for language in LANGUAGES:
        texts_of(fields, language)
    return Sample(
        record["__key__"],
        image,
        captions,
        str(fields.get("source", "")),
        "train" if split is None else SPLITS.get(re.sub(r"[\W_\d]+", "", str(split)).lower(), str(split)),
        bool(fields.get("squashed", False)),
        fields,
    )


NO_TEXTS = ("nan", "null")  # written by programs in place of a missing text


def texts_of(fields: Mapping[str, Any], name: str) -> tuple[str, ...]:
    """The texts of a field of a record; one text is a list of one.

    Raises:
        DataError: the field holds something else, such as null, which would be learned as a word.
    """
    found = fields.get(name)
    texts = () if found is None else (found,) if isinstance(found, str) else found
    if not isinstance(texts, list | tuple) or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{name}={str(found)[:60]} is not a list of texts; correct it")
    if bad := [text for text in texts if text.strip().lower() in NO_TEXTS]:
        raise DataError(f"{name} holds {bad[0]!r}, which some programs write for a missing text; remove it")
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise DataError(f"{name} holds half of a surrogate pair, which is no character; correct it") from None
    return tuple(texts)


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
