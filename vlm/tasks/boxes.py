"""Boxes as four location tokens, in the pixels of a square of 512 (OFA, Wang et al., 2022, section 3.1)."""

import math
from collections.abc import Iterable, Sequence

from vlm.data.shards import Sample
from vlm.errors import ArgumentError, DataError
from vlm.tasks.text import clean_sentence
from vlm.tokenizer import Tokenizer

Box = tuple[float, float, float, float]  # left, top, right, bottom

LOCATION_PIXELS = 512  # what the last location stands for, also where photos are resized to fewer


def box_locations(tokenizer: Tokenizer, box: Sequence[float], width: int, height: int, size: int) -> list[int]:
    """A box as OFA writes it.

    Args:
        tokenizer: the model's.
        box: left, top, right and bottom, in pixels of the photo.
        width: of the photo.
        height: of the photo.
        size: side of the square that the photo is resized to.

    Returns:
        Four ids.
    """
    scales = (size / width, size / height) * 2
    return tokenizer.locations(value * scale / LOCATION_PIXELS for value, scale in zip(box, scales, strict=True))


def clip_box(box: Sequence[float], width: int, height: int) -> Box:
    """A box that a user gave, without what lies outside of the photo; arguments as in `box_locations`.

    Raises:
        ArgumentError: it is not a box, or does not lie in this photo.
    """
    if len(box) == 4 and all(map(math.isfinite, box)):
        left, right = (min(max(x, 0), width) for x in box[::2])
        top, bottom = (min(max(y, 0), height) for y in box[1::2])
        if left < right and top < bottom:
            return left, top, right, bottom
    shown = ",".join(f"{value:g}" for value in box)
    raise ArgumentError(f"{shown} is not a box in a photo of {width}x{height} pixels; give left, top, right, bottom")


def read_box(tokenizer: Tokenizer, ids: Iterable[int], width: int, height: int, size: int) -> Box | None:
    """The box in an answer, in pixels of the photo; None where the answer does not hold four locations.

    Args:
        tokenizer: the model's.
        ids: the answer.
        width: of the photo.
        height: of the photo.
        size: side of the square that the photo was resized to.
    """
    values = tokenizer.coordinates(ids)
    if len(values) != 4:
        return None
    x, y = LOCATION_PIXELS * width / size, LOCATION_PIXELS * height / size
    return values[0] * x, values[1] * y, values[2] * x, values[3] * y


def phrases_with_box(sample: Sample) -> list[tuple[str, list[float]]]:
    """The phrases of a sample's record that name exactly one thing, each once, with its box as fractions.

    Args:
        sample: its `phrases` is a list of `text` and `boxes`.

    Raises:
        DataError: the record has another form.
    """
    found: dict[str, list[float]] = {}
    several: set[str] = set()
    for phrase in sample.fields.get("phrases") or ():
        try:
            text, boxes = clean_sentence(phrase["text"]), [list(map(float, box)) for box in phrase.get("boxes") or ()]
        except (AttributeError, KeyError, TypeError, ValueError):
            shown = str(phrase)[:60]
            raise DataError(f"sample {sample.key!r}: phrases holds {shown}; give objects of text and boxes") from None
        if len(boxes) != 1 or len(boxes[0]) != 4 or not text:
            continue
        left, top, right, bottom = box = [min(max(value, 0.0), 1.0) for value in boxes[0]]
        if left < right and top < bottom and found.setdefault(text, box) != box:
            several.add(text)
    return [(text, box) for text, box in found.items() if text not in several]
