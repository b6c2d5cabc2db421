"""Which coloured shapes a picture shows, by its pixels alone: a judge of drawn scenes that is no network."""

from dataclasses import dataclass
from functools import cache
from typing import cast

import numpy as np
from PIL import Image, ImageDraw
from scipy import ndimage

from vlm.data.scenes_draw import COLOURS, SHAPES, Thing, outlines

SIDE = 64  # pixels that pictures are looked at with
CELLS = 24  # side of the masks that shapes are compared by
FAR = 150  # distance from a colour from which on a pixel is not of it; colours of things differ by up to 60
LEAST, MOST = 0.08, 0.6  # sides of a thing, as shares of the picture's
TURNS = {"circle": 0, "ring": 0, "star": 36, "moon": 180, "square": 10, "cross": 10}  # how far scenes turn a shape
STEP = 6  # degrees


@dataclass(frozen=True)
class Found:
    """A thing in a picture.

    Attributes:
        colour: one of `vlm.data.scenes_draw.COLOURS`.
        shape: the one of `vlm.data.scenes_draw.SHAPES` that it is most like.
        x: of the middle of its box, as a share of the width.
        y: likewise, from the top.
        width: of its box, likewise.
        height: of its box.
    """

    colour: str
    shape: str
    x: float
    y: float
    width: float
    height: float


def find_shapes(picture: Image.Image) -> list[Found]:
    """For each colour, the largest connected thing of it that is neither a speck nor the ground.

    The shape is the one whose mask, turned as far as scenes turn it, overlaps most with the thing in its box.
    """
    pixels = np.asarray(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BOX)).astype(np.float64)
    far = np.stack([_distance(pixels, np.array(rgb, float)) for rgb in COLOURS.values()])  # [colours, SIDE, SIDE]
    nearest = np.where(far.min(0) < FAR, far.argmin(0), -1)
    found = []
    for number, colour in enumerate(COLOURS):
        areas, count = cast("tuple[np.ndarray, int]", ndimage.label(nearest == number))
        sizes = np.bincount(areas.ravel(), minlength=count + 1)[1:]
        for area in sizes.argsort()[::-1][:3] + 1:
            mask = areas == area
            rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
            top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
            height, width = (bottom - top) / SIDE, (right - left) / SIDE
            if min(height, width) >= LEAST and max(height, width) <= MOST:
                middle = float(left + right) / 2 / SIDE, float(top + bottom) / 2 / SIDE
                shape = shape_of(mask[top:bottom, left:right])
                found.append(Found(colour, shape, *middle, float(width), float(height)))
                break
    return found


def shape_of(mask: np.ndarray) -> str:
    """The shape with the largest intersection over union with a mask, `bool[height, width]`, that fills its box."""
    seen = np.asarray(Image.fromarray(mask).convert("L").resize((CELLS, CELLS), Image.Resampling.BOX)) >= 128
    names, known = _masks()
    overlap = (known & seen).sum((1, 2)) / (known | seen).sum((1, 2))
    return names[int(overlap.argmax())]


@cache
def _masks() -> tuple[list[str], np.ndarray]:
    """Names, and masks `bool[masks, CELLS, CELLS]`, of all shapes in all their turns."""
    names, masks = [], []
    for name in SHAPES:
        most = TURNS.get(name, 15)
        for angle in range(-most, most + 1, STEP):
            large = Image.new("L", (4 * CELLS, 4 * CELLS))
            for points, fill in outlines(Thing(name, "red", "", (0, 0, 1, 1), angle=angle)):
                ImageDraw.Draw(large).polygon([(4 * CELLS * x, 4 * CELLS * y) for x, y in points], fill=fill)
            names.append(name)
            masks.append(np.asarray(large.reduce(4)) >= 128)
    return names, np.stack(masks)


def _distance(pixels: np.ndarray, rgb: np.ndarray) -> np.ndarray:
    """`vlm.data.scenes_draw.colour_distance` of each pixel, `float64[height, width]`."""
    red = (pixels[..., 0] + rgb[0]) / 2
    dr, dg, db = np.moveaxis(pixels - rgb, -1, 0)
    return np.sqrt((2 + red / 256) * dr**2 + 4 * dg**2 + (2 + (255 - red) / 256) * db**2)
