"""Scenes that the project makes itself: one to five coloured shapes on a texture, with all that can be said about them.

A scene follows from its seed, so that nothing is stored: training streams them, and a test asks about seeds that no
training uses (by convention "train/0", "val/0", "test/0" and so on). What is asked has one answer that a person would
give, too: sizes, colours and places are chosen so that they can be told apart, and a relation is asked about only where
the centres lie further apart than the things are large.

With `photos=sample_photos()` there are also cut-outs of the sample photos, and their light and dark as textures; the
same seed is another scene then. An installed package holds no sample photos, so the default is without them.

    scene = make_scene("train/0")
    scene.image.save("scene.png")
    print(scene.captions[0], scene.questions[0].text, scene.questions[0].answer)
"""

import io
import random
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from PIL import Image

from vlm.data.scenes_draw import (
    COLOURS,
    CUTOUTS,
    NAMES,
    SHAPES,
    Background,
    Photos,
    Thing,
    draw,
    jittered,
    outline_sides,
    random_background,
    sample_photos,
)
from vlm.data.scenes_text import KINDS, Phrase, Question, captions, phrases, questions
from vlm.data.shards import Sample
from vlm.errors import ArgumentError

__all__ = [
    "KINDS",
    "STATE_SIZE",
    "Phrase",
    "Question",
    "Scene",
    "Thing",
    "make_scene",
    "sample_photos",
    "scene_samples",
]

SOURCE = "scenes"
MOST = 5  # things
STATE_SIZE = 4 + len(COLOURS) + len(NAMES)
SIDES = {"": (0.17, 0.32), "small": (0.15, 0.19), "big": (0.33, 0.39)}  # of things, in parts of the picture
GAP = 0.025  # between things, and to the edges
MIN_SIZE = 64  # of the picture, in pixels
TRIES = 30  # places for a thing before all are made smaller


@dataclass(frozen=True)
class Scene:
    """A picture and what is said about it.

    Attributes:
        seed: from which it was made.
        size: side of the picture, in pixels.
        background: what the things stand before.
        photos: where cut-outs and textures come from; None: there are none.
        things: one to five, in the order in which they were drawn; none covers another.
        captions: sentences in English; the first names everything.
        questions: each has one right answer.
        phrases: each names exactly one thing; those of different things come first.
    """

    seed: str
    size: int
    background: Background = field(repr=False)
    photos: Photos | None = field(repr=False)
    things: tuple[Thing, ...]
    captions: tuple[str, ...]
    questions: tuple[Question, ...]
    phrases: tuple[Phrase, ...]

    @cached_property
    def image(self) -> Image.Image:
        """The picture, RGB, drawn when it is first asked for."""
        rng = random.Random(f"{SOURCE}/{self.seed}/pixels")
        return draw(self.background, self.things, self.size, rng, self.photos)

    @property
    def states(self) -> np.ndarray:
        """The things as numbers, `float32[things, STATE_SIZE]`.

        x and y of the centre, width and height (in fractions of the picture's); then 1 at the place of the colour in
        `COLOURS`, which stays 0 for a cut-out; then 1 at the place of the name in `NAMES`, shapes before cut-outs.
        """
        rows = np.zeros((len(self.things), STATE_SIZE), np.float32)
        for row, thing in zip(rows, self.things, strict=True):
            row[:4] = *thing.center, *thing.sides
            if thing.colour:
                row[4 + list(COLOURS).index(thing.colour)] = 1
            row[4 + len(COLOURS) + NAMES.index(thing.name)] = 1
        return rows

    def sample(self, split: str = "train") -> Sample:
        """The scene as a training sample, with the fields that a sample from shards has; the picture is a PPM file."""
        fields = {
            "source": SOURCE,
            "file": f"{self.seed}.ppm",
            "split": split,
            "captions": list(self.captions),
            "vqa": [{"question": asked.text, "answers": [asked.answer], "source": SOURCE} for asked in self.questions],
            "phrases": [{"text": phrase.text, "boxes": [list(phrase.box)]} for phrase in self.phrases],
        }
        key = f"{SOURCE}/{self.seed}"
        return Sample(key, self.encoded("PPM"), self.captions, SOURCE, split, fields=fields, intact=True)

    def encoded(self, kind: str = "PNG") -> bytes:
        """The picture as a file, without loss: "PNG" is smaller, "PPM" is made and read many times faster."""
        buffer = io.BytesIO()
        self.image.save(buffer, kind, compress_level=1)
        return buffer.getvalue()


class SceneSample(Sample):
    """A scene to learn from whose picture is drawn anew each time, so that nothing is stored."""

    def open(self) -> bytes:
        return make_scene(self.key.removeprefix(f"{SOURCE}/"), self.fields["size"]).encoded("PPM")


def scene_samples(split: str, count: int, size: int) -> list[Sample]:
    """Scenes as samples, those of the seeds `SPLIT/0` to `SPLIT/(count - 1)`.

    Args:
        split: "train" or "val".
        count: how many.
        size: side of the pictures, in pixels.
    """
    found: list[Sample] = []
    for number in range(count):
        plain = make_scene(f"{split}/{number}", MIN_SIZE).sample(split)  # what is said does not depend on the size
        found.append(SceneSample(**{**vars(plain), "image": b"", "fields": {**plain.fields, "size": size}}))
    return found


def make_scene(seed: int | str, size: int = 260, photos: Photos | None = None) -> Scene:
    """Make the scene of a seed.

    Boxes, captions, questions and phrases depend on the seed and on whether there are photos, not on the size.

    Args:
        seed: any text; a number is the same as its digits.
        size: side of the picture, in pixels.
        photos: pieces of photos to use as cut-outs and textures; None: shapes on drawn textures only.

    Raises:
        ArgumentError: the picture would be too small to show anything.
    """
    if size < MIN_SIZE:
        raise ArgumentError(f"size={size} leaves too few pixels for five shapes; give {MIN_SIZE} or more")
    name = f"{seed}{'/photos' if photos else ''}"
    rng = random.Random(f"{SOURCE}/{name}")
    background, things = _things(rng, photos)
    return Scene(
        name,
        size,
        background,
        photos,
        things,
        captions(things, background.texture, rng),
        questions(things, rng),
        phrases(things, rng),
    )


def _things(rng: random.Random, photos: Photos | None) -> tuple[Background, tuple[Thing, ...]]:
    background = random_background(rng, photos)
    allowed = [colour for colour, rgb in COLOURS.items() if background.allows(rgb)]
    while len(allowed) < 4:
        background = random_background(rng, photos)
        allowed = [colour for colour, rgb in COLOURS.items() if background.allows(rgb)]
    count = rng.randint(1, MOST)
    looks = _looks(count, allowed, rng, photos)
    sizes: list[str] = [""] * count
    # a scene speaks of sizes only where all its things are either small or big, and some are each
    if rng.random() < 0.4:
        sizes = rng.choices(["small", "small", "big"], k=count)
    boxes, angles = _place([name for name, _ in looks], sizes, rng)
    both = len(set(sizes)) > 1
    things = tuple(
        Thing(
            name,
            colour,
            size if both else "",
            box,
            jittered(COLOURS[colour], rng) if colour else (0, 0, 0),
            angle,
        )
        for (name, colour), size, box, angle in zip(looks, sizes, boxes, angles, strict=True)
    )
    return background, things


def _looks(count: int, allowed: list[str], rng: random.Random, photos: Photos | None) -> list[tuple[str, str]]:
    """Names and colours. Most scenes of several things hold a group of one shape, one colour, or both."""
    cutouts: list[str] = []
    if photos and rng.random() < 0.6:
        cutouts = rng.sample(sorted(CUTOUTS), min(count, rng.choice((1, 1, 2))))
        shown = {colour for name in cutouts for colour in CUTOUTS[name].colours}
        allowed = [colour for colour in allowed if colour not in shown] or allowed
    # some would call a ring a circle, and cut-outs are round: a scene holds one of them
    avoid = rng.choice(("circle", "ring")) if not cutouts else "circle"
    names = [name for name in SHAPES if name != avoid]
    pairs = [(rng.choice(names), rng.choice(allowed)) for _ in range(count)]
    if count > 1 and rng.random() < 0.6:
        number, (shape, colour) = rng.randint(2, count), pairs[0]
        same = rng.choice(("shape", "shape", "colour", "both"))
        for i in range(number):
            pairs[i] = (shape if same != "colour" else pairs[i][0], colour if same != "shape" else pairs[i][1])
    for i, name in enumerate(cutouts, count - len(cutouts)):
        pairs[i] = (name, "")
    rng.shuffle(pairs)
    return pairs


def _place(names: list[str], sizes: list[str], rng: random.Random) -> tuple[list[tuple], list[float]]:
    """Boxes that do not touch, and angles of the shapes."""
    sides = [rng.uniform(*SIDES[size]) for size in sizes]
    angles = [_angle(name, rng) for name in names]
    extents = [
        (1.0, 1.0) if name in CUTOUTS else outline_sides(name, angle) for name, angle in zip(names, angles, strict=True)
    ]
    order = sorted(range(len(names)), key=lambda i: -sides[i])
    scale = 1.0
    while True:
        boxes: dict[int, tuple[float, float, float, float]] = {}
        for i in order:
            longest = max(extents[i])
            width, height = (scale * sides[i] * extent / longest for extent in extents[i])
            for _ in range(TRIES):
                x, y = rng.uniform(GAP, 1 - GAP - width), rng.uniform(GAP, 1 - GAP - height)
                box = (round(x, 4), round(y, 4), round(x + width, 4), round(y + height, 4))
                if not any(_touch(box, other) for other in boxes.values()):
                    boxes[i] = box
                    break
            else:
                break
        if len(boxes) == len(names):
            return [boxes[i] for i in range(len(names))], angles
        scale *= 0.97


def _touch(a: tuple[float, float, float, float], b: tuple[float, float, float, float]) -> bool:
    return a[0] < b[2] + GAP and b[0] < a[2] + GAP and a[1] < b[3] + GAP and b[1] < a[3] + GAP


def _angle(name: str, rng: random.Random) -> float:
    """Turned a little; a circle looks the same, and a star or a moon may be turned further."""
    if name in CUTOUTS or name in ("circle", "ring"):
        return 0.0
    most = {"star": 36, "moon": 180, "square": 10, "cross": 10}.get(name, 15)
    return rng.uniform(-most, most) if rng.random() < 0.6 else 0.0
