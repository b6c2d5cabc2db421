"""What a made scene consists of, and how it is drawn: flat shapes and pieces of photos on a texture.

Pixels come from Pillow and numpy. Shapes are drawn four times larger and averaged, which smooths their edges.
"""

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

RGB = tuple[int, int, int]
Box = tuple[float, float, float, float]
Point = tuple[float, float]

COLOURS: dict[str, RGB] = {
    "red": (212, 26, 34),
    "green": (36, 150, 54),
    "blue": (28, 72, 214),
    "yellow": (248, 222, 34),
    "orange": (246, 136, 14),
    "purple": (124, 40, 170),
    "pink": (250, 140, 190),
    "brown": (118, 70, 32),
    "black": (16, 16, 18),
    "white": (250, 250, 250),
    "gray": (128, 128, 130),
}
SHAPES = ("circle", "square", "triangle", "star", "cross", "ring", "heart", "moon")


@dataclass(frozen=True)
class Cutout:
    """An ellipse of a sample photo.

    Attributes:
        file: under `datasets/sample`.
        box: of the ellipse, in fractions of the photo.
        colours: that the piece has, so that no shape beside it may have them.
    """

    file: str
    box: Box
    colours: tuple[str, ...]


CUTOUTS: dict[str, Cutout] = {
    "cat": Cutout("cat.jpg", (0.07, 0.02, 0.83, 0.97), ("brown", "orange")),
    "cup": Cutout("coffee.jpg", (0.12, 0.02, 0.80, 0.98), ("red", "orange", "brown")),
    "flower": Cutout("flower.jpg", (0.26, 0.19, 0.69, 0.84), ("orange", "pink", "yellow")),
    "raccoon": Cutout("raccoon.jpg", (0.38, 0.03, 0.93, 0.66), ("gray", "black", "green")),
}
BACKDROPS = ("stairs.jpg", "temple.jpg")  # their light and dark becomes a texture; none shows a thing of CUTOUTS
NAMES = (*SHAPES, *CUTOUTS)
JITTER = 9  # largest change of each channel of a colour
SCALE = 4  # shapes are drawn so many times larger
CONTRAST = 190  # smallest distance of a thing's colour from the background's
TEXTURES = ("plain", "noise", "gradient", "stripes", "waves")


@dataclass(frozen=True)
class Thing:
    """A shape or a cut-out.

    Attributes:
        name: one of `NAMES`.
        colour: one of `COLOURS`; empty for a cut-out.
        size: "small" or "big", in scenes that hold both; otherwise empty.
        box: x1, y1, x2, y2 in fractions of width and height.
        rgb: the very colour.
        angle: by which the shape is turned, in degrees.
    """

    name: str
    colour: str
    size: str
    box: Box
    rgb: RGB = (0, 0, 0)
    angle: float = 0.0

    @property
    def center(self) -> Point:
        x1, y1, x2, y2 = self.box
        return (x1 + x2) / 2, (y1 + y2) / 2

    @property
    def sides(self) -> Point:
        x1, y1, x2, y2 = self.box
        return x2 - x1, y2 - y1


@dataclass(frozen=True)
class Background:
    """A texture between two colours that are close to each other."""

    texture: str
    light: RGB
    dark: RGB

    def allows(self, colour: RGB) -> bool:
        """Whether something of this colour stands out from the texture."""
        return min(colour_distance(colour, self.light), colour_distance(colour, self.dark)) >= CONTRAST


@dataclass(frozen=True, eq=False)
class Photos:
    """Pieces of photos, for scenes that shall hold some.

    Attributes:
        cutouts: RGBA pictures by the name of what they show.
        backdrops: grey pictures whose light and dark becomes a texture.
    """

    cutouts: Mapping[str, Image.Image]
    backdrops: Sequence[Image.Image]


@cache
def sample_photos() -> Photos | None:
    """Pieces of the sample photos of a checkout; None in an installed package, which does not hold them."""
    folder = Path(__file__).resolve().parents[2] / "datasets" / "sample"
    if not all((folder / file).is_file() for file in (*BACKDROPS, *(piece.file for piece in CUTOUTS.values()))):
        return None
    backdrops = [Image.open(folder / file).convert("L").resize((400, 400)) for file in BACKDROPS]
    return Photos({name: _cut(folder / piece.file, piece.box) for name, piece in CUTOUTS.items()}, backdrops)


def _cut(path: Path, box: Box) -> Image.Image:
    with Image.open(path) as photo:
        sides = photo.size * 2
        piece = photo.convert("RGB").crop(tuple(round(x * side) for x, side in zip(box, sides, strict=True)))  # type: ignore[arg-type]
    mask = Image.new("L", piece.size)
    ImageDraw.Draw(mask).ellipse((0, 0, piece.width - 1, piece.height - 1), fill=255)
    piece.putalpha(mask)
    return piece


def colour_distance(a: RGB, b: RGB) -> float:
    """How different two colours look, 0 to about 765: the "redmean" approximation, in whole numbers under the root."""
    red = (a[0] + b[0]) // 2
    dr, dg, db = (x - y for x, y in zip(a, b, strict=True))
    return math.sqrt((((512 + red) * dr * dr) >> 8) + 4 * dg * dg + (((767 - red) * db * db) >> 8))


def jittered(colour: RGB, rng: random.Random, by: int = JITTER) -> RGB:
    """A colour near another one; black, white and gray only get lighter or darker."""
    shift = rng.randint(-by, by)
    neutral = max(colour) - min(colour) <= 2
    red, green, blue = (min(255, max(0, x + (shift if neutral else rng.randint(-by, by)))) for x in colour)
    return red, green, blue


def random_background(rng: random.Random, photos: Photos | None = None) -> Background:
    """Light, middling, dark or strong colours in equal shares; the texture's contrast is low."""
    low, high = rng.choice([(190, 255), (70, 190), (0, 70), (0, 255)])
    base = (rng.randint(low, high), rng.randint(low, high), rng.randint(low, high))
    shift = rng.randint(8, 30)
    red, green, blue = (min(255, x + shift) for x in jittered(base, rng))
    texture = rng.choice([*TEXTURES, "photo"] if photos else TEXTURES)
    return Background(texture, (red, green, blue), base)


def draw(
    background: Background, things: Sequence[Thing], size: int, rng: random.Random, photos: Photos | None
) -> Image.Image:
    """The picture of a scene, RGB."""
    image = _draw_background(background, size, rng, photos)
    for thing in things:
        x1, y1, x2, y2 = (x * size for x in thing.box)
        left, top = math.floor(x1), math.floor(y1)
        width, height = math.ceil(x2) - left, math.ceil(y2) - top
        if thing.name in CUTOUTS:
            assert photos is not None
            piece = photos.cutouts[thing.name].resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
            image.paste(piece, (left, top), piece)
            continue
        mask = Image.new("L", (width * SCALE, height * SCALE))
        for outline, fill in outlines(thing):
            points = [((x1 + x * (x2 - x1) - left) * SCALE, (y1 + y * (y2 - y1) - top) * SCALE) for x, y in outline]
            ImageDraw.Draw(mask).polygon(points, fill=fill)
        image.paste(thing.rgb, (left, top, left + width, top + height), mask.reduce(SCALE))
    return image


def outline_sides(name: str, angle: float) -> Point:
    """Width and height of a turned shape whose unturned longer side is 1."""
    (points, _), *_ = _turned(name, angle)
    return _extent(points)[2:]


def outlines(thing: Thing) -> list[tuple[list[Point], int]]:
    """Polygons of a shape in fractions of its box, and what each is filled with: 255, or 0 for a hole."""
    turned = _turned(thing.name, thing.angle)
    x0, y0, width, height = _extent(turned[0][0])
    return [([((x - x0) / width, (y - y0) / height) for x, y in points], fill) for points, fill in turned]


def _turned(name: str, angle: float) -> list[tuple[list[Point], int]]:
    cos, sin = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    return [([(x * cos - y * sin, x * sin + y * cos) for x, y in points], fill) for points, fill in _polygons(name)]


def _extent(points: Sequence[Point]) -> tuple[float, float, float, float]:
    """Left, top, width and height."""
    xs, ys = zip(*points, strict=True)
    return min(xs), min(ys), max(xs) - min(xs), max(ys) - min(ys)


@cache
def _polygons(name: str) -> list[tuple[list[Point], int]]:
    """Outlines of a shape around (0, 0), the longer side about 1, y downwards."""
    if name == "circle":
        return [(_round(0.5), 255)]
    if name == "ring":
        return [(_round(0.5), 255), (_round(0.29), 0)]
    if name == "moon":  # a disc without a smaller one that lies at its right; both edges meet at the tips
        tip = math.radians(50)
        outer = [(0.5 * math.cos(a), 0.5 * math.sin(a)) for a in _steps(tip, 2 * math.pi - tip, 48)]
        x, y = outer[0]
        radius = 0.42
        middle = x + math.sqrt(radius**2 - y**2)
        reach = math.pi - math.asin(y / radius)
        inner = [
            (middle + radius * math.cos(a), radius * math.sin(a)) for a in _steps(-reach, -2 * math.pi + reach, 32)
        ]
        return [(outer + inner, 255)]
    if name == "heart":
        turns = _steps(0, 2 * math.pi, 64)
        points = [
            (16 * math.sin(t) ** 3, -(13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)))
            for t in turns
        ]
        return [([(x / 32, y / 32) for x, y in points], 255)]
    if name == "star":
        radii = [0.5 if i % 2 == 0 else 0.21 for i in range(10)]
        return [([(r * math.sin(i * math.pi / 5), -r * math.cos(i * math.pi / 5)) for i, r in enumerate(radii)], 255)]
    if name == "cross":
        a, b = 0.5, 0.17
        corners = [(-b, -a), (b, -a), (b, -b), (a, -b), (a, b), (b, b), (b, a), (-b, a), (-b, b), (-a, b), (-a, -b)]
        return [([*corners, (-b, -b)], 255)]
    if name == "triangle":
        return [([(0.0, -0.45), (0.5, 0.42), (-0.5, 0.42)], 255)]
    return [([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)], 255)]  # square


def _round(radius: float) -> list[Point]:
    return [(radius * math.cos(t), radius * math.sin(t)) for t in _steps(0, 2 * math.pi, 64)]


def _steps(start: float, end: float, count: int) -> list[float]:
    return [start + (end - start) * i / count for i in range(count + 1)]


def _draw_background(background: Background, size: int, rng: random.Random, photos: Photos | None) -> Image.Image:
    mask = _texture(background.texture, size, rng, photos)
    if grain := rng.choice([0, 0, 20, 40]):  # a camera's noise
        noise = np.frombuffer(rng.randbytes(size * size), np.uint8).reshape(size, size) % (2 * grain + 1)
        mask = Image.fromarray((np.asarray(mask, np.int16) + noise - grain).clip(0, 255).astype(np.uint8))
    ends = zip(background.dark, background.light, strict=True)
    # each channel goes from its dark end to its light end as the mask goes from 0 to 255
    return Image.merge("RGB", [mask.point([low + (high - low) * i // 255 for i in range(256)]) for low, high in ends])


def _texture(name: str, size: int, rng: random.Random, photos: Photos | None) -> Image.Image:
    """How light each pixel is: a grey picture."""
    if name == "photo":
        assert photos is not None
        photo = rng.choice(photos.backdrops)
        side = rng.randint(photo.width // 4, photo.width // 2)
        x, y = rng.randint(0, photo.width - side), rng.randint(0, photo.height - side)
        return photo.resize((size, size), Image.Resampling.BILINEAR, (x, y, x + side, y + side))
    if name == "plain":
        return Image.new("L", (size, size), rng.randint(0, 255))
    if name == "noise":
        cells = rng.choice([4, 8, 16, 32, 64])
        grid = Image.frombytes("L", (cells, cells), rng.randbytes(cells * cells))
        return grid.resize((size, size), Image.Resampling.BICUBIC)
    # a function of the distance along one direction
    angle = rng.uniform(0, 2 * math.pi)
    steps = np.arange(size, dtype=np.float32) / size
    along = steps * math.cos(angle) + (steps * math.sin(angle))[:, None]  # [height, width]
    if name == "gradient":
        value = (along - along.min()) / (along.max() - along.min())
    else:
        if name == "waves":
            across = steps * -math.sin(angle) + (steps * math.cos(angle))[:, None]
            along = along + np.float32(0.03) * np.sin(across * np.float32(rng.uniform(12, 30)))
        wave = np.sin(along * np.float32(2 * math.pi * rng.uniform(4, 16)))
        value = (wave * rng.choice([0.5, 4.0]) + 0.5).clip(0, 1)  # soft or with sharp edges
    return Image.fromarray((value * 255).astype(np.uint8))
