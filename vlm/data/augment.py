"""Random views of a photo for training."""

import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from vlm.models.config import BOS, PAD, UNK

Box = tuple[float, float, float, float]  # left, top, right, bottom

# in English, German and Chinese
_SIDES = re.compile(r"\b(left|right|links|rechts|(linke|rechte)[mnrs]?)\b|[左右]", re.IGNORECASE)


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and colours of a random view.

    Attributes:
        min_area: smallest part of the photo that a crop keeps, before it is cut back at the photo's edges.
        flip: probability of mirroring, where no text speaks of left or right.
        jitter: largest relative change of brightness, contrast and saturation.
    """

    min_area: float = 0.5
    flip: float = 0.5
    jitter: float = 0.2

    def __post_init__(self):
        for name, low, high in (("min_area", 0.0, 1.0), ("flip", 0.0, 1.0), ("jitter", 0.0, 1.0)):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not low <= value <= high:
                raise ValueError(f"augmentation: {name}={value!r} is not a share; give {low:g} to {high:g}")


@dataclass(frozen=True)
class View:
    """Which part of a photo a view shows.

    Attributes:
        box: the part, as fractions of the photo: left, top, right and bottom.
        mirrored: left and right are exchanged.
    """

    box: Box = (0.0, 0.0, 1.0, 1.0)
    mirrored: bool = False

    def place(self, box: Sequence[float]) -> tuple[Box, float]:
        """Where a box of the photo lies in the view.

        Args:
            box: left, top, right and bottom, as fractions of the photo.

        Returns:
            The same as fractions of the view, without what lies outside of it, and the share of the box's area that
            lies inside.
        """
        left, top, right, bottom = self.box
        width, height = right - left, bottom - top
        x = [min(max((value - left) / width, 0.0), 1.0) for value in box[::2]]
        y = [min(max((value - top) / height, 0.0), 1.0) for value in box[1::2]]
        area = (box[2] - box[0]) * (box[3] - box[1])
        share = (x[1] - x[0]) * width * (y[1] - y[0]) * height / area if area > 0 else 0.0
        if self.mirrored:
            x = [1 - x[1], 1 - x[0]]
        return (x[0], y[0], x[1], y[1]), min(share, 1.0)


def may_flip(texts: Iterable[str]) -> bool:
    """Whether a mirrored photo still fits what is said about it."""
    return not any(_SIDES.search(text) for text in texts)


def random_view(
    image: Image.Image, config: Augmentation, rng: random.Random, squashed: bool = False, flip: bool = True
) -> tuple[Image.Image, View]:
    """A random view, to be resized to the model's square input, and which part of the photo it shows.

    That resize squashes a whole photo by its aspect ratio, which is what the model sees at test time. A crop is
    therefore anything between undistorted (square) and the photo's own shape. A photo that was stored squashed is
    cropped to its own shape only: another one would distort it further.

    Args:
        image: RGB.
        config: what is random, and how far.
        rng: the only source of randomness.
        squashed: the file was stored square whatever the photo's shape.
        flip: whether mirroring is allowed.
    """
    width, height = image.size
    area = rng.uniform(config.min_area, 1.0)
    aspect = 1.0 if squashed else (height / width) ** rng.random()  # 1: the photo's own shape; h/w: square
    # a crop of the photo's own shape times `aspect`, cut back where it sticks out
    crop_width = min(1.0, (area * aspect) ** 0.5)
    crop_height = min(1.0, (area / aspect) ** 0.5)
    left = rng.uniform(0, 1 - crop_width) * width
    top = rng.uniform(0, 1 - crop_height) * height
    box = (round(left), round(top), round(left + crop_width * width), round(top + crop_height * height))
    box = (box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1))
    image = image.crop(box)
    mirrored = rng.random() < config.flip and flip
    if mirrored:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = 1 + rng.uniform(-config.jitter, config.jitter)
        if config.jitter:
            image = enhance(image).enhance(factor)
    return image, View((box[0] / width, box[1] / height, box[2] / width, box[3] / height), mirrored)


def hide_patches(images: Tensor, share: float, generator: torch.Generator, grid: int = 9) -> Tensor:
    """Blank random blocks of photos, or of features of a tower's trunk: a caption must not hang on one detail.

    Args:
        images: `[batch, channels, height, width]`, on the CPU.
        share: probability of each block.
        generator: the only source of randomness.
        grid: blocks a side.
    """
    keep = torch.rand(len(images), 1, grid, grid, generator=generator) >= share
    return images * nn.functional.interpolate(keep.to(images.dtype), size=images.shape[-2:], mode="nearest")


def hide_tokens(ids: Tensor, share: float, generator: torch.Generator) -> Tensor:
    """Replace random tokens of a decoder's input, `int64[rows, tokens]`, by the unknown token.

    Args:
        ids: start token first, padded on the right; both of these stay.
        share: probability of each token.
        generator: the only source of randomness.
    """
    drop = torch.rand(ids.shape, generator=generator) < share
    return ids.masked_fill(drop & (ids != BOS) & (ids != PAD), UNK)
