"""Random views of a photo for training."""

import random
import re
from dataclasses import dataclass

import torch
from PIL import Image, ImageEnhance
from torch import Tensor, nn

from vlm.models.config import BOS, PAD, UNK

_SIDES = re.compile(r"\b(left|right)\b", re.IGNORECASE)


@dataclass(frozen=True)
class Augmentation:
    """Crop, flip and colours of a random view.

    Attributes:
        min_area: smallest part of the photo that a crop keeps, before it is cut back at the photo's edges.
        flip: probability of mirroring, where no caption speaks of left or right.
        jitter: largest relative change of brightness, contrast and saturation.
    """

    min_area: float = 0.5
    flip: float = 0.5
    jitter: float = 0.2


def may_flip(captions: tuple[str, ...]) -> bool:
    """Whether a mirrored photo is still described by the captions."""
    return not any(_SIDES.search(caption) for caption in captions)


def random_view(
    image: Image.Image, config: Augmentation, rng: random.Random, squashed: bool = False, flip: bool = True
) -> Image.Image:
    """A random view, to be resized to the model's square input.

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
    image = image.crop((box[0], box[1], max(box[2], box[0] + 1), max(box[3], box[1] + 1)))
    mirror = rng.random() < config.flip
    if mirror and flip:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        factor = 1 + rng.uniform(-config.jitter, config.jitter)
        if config.jitter:
            image = enhance(image).enhance(factor)
    return image


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
