"""Random views measured on a picture whose colours are its coordinates."""

import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm.data.augment import Augmentation, hide_patches, hide_tokens, may_flip, random_view
from vlm.models.config import BOS, PAD, UNK

GEOMETRY = Augmentation(min_area=0.5, flip=0.0, jitter=0.0)


def coordinates(width: int, height: int) -> Image.Image:
    """Red is x, green is y: a crop tells where it was cut."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x, y, x * 0 + 7], axis=-1).astype(np.uint8))


def box(view: Image.Image) -> tuple[int, int, int, int]:
    """Left, top, width and height of a crop of `coordinates`, which must hold its pixels unchanged."""
    pixels = np.asarray(view).astype(int)
    height, width = pixels.shape[:2]
    left, top = pixels[0, 0, :2]
    assert (pixels[..., 0] == left + np.arange(width)).all()
    assert (pixels[..., 1] == (top + np.arange(height))[:, None]).all()
    return int(left), int(top), width, height


sides = st.integers(20, 250)
seeds = st.integers(0, 10**6)


@settings(max_examples=200, deadline=None)
@given(sides, sides, seeds, st.floats(0.2, 1.0))
def test_a_crop_lies_between_square_and_the_photos_own_shape(width, height, seed, min_area):
    config = Augmentation(min_area, flip=0, jitter=0)
    left, top, w, h = box(random_view(coordinates(width, height), config, random.Random(seed))[0])
    assert left >= 0 and top >= 0 and left + w <= width and top + h <= height
    # both sides are rounded to whole pixels
    low, high = sorted([1.0, width / height])
    assert (w - 1) / (h + 1) <= high and low <= (w + 1) / (h - 1)


@settings(max_examples=200, deadline=None)
@given(sides, sides, seeds, st.floats(0.2, 1.0))
def test_a_crop_of_a_squashed_photo_keeps_its_shape_and_area(width, height, seed, min_area):
    config = Augmentation(min_area, flip=0, jitter=0)
    _, _, w, h = box(random_view(coordinates(width, height), config, random.Random(seed), squashed=True)[0])
    # the same share of both sides, so that the resize to a square distorts it exactly as the whole photo
    assert abs(w / width - h / height) <= 1 / width + 1 / height
    assert (w + 1) * (h + 1) >= min_area * width * height


def test_crops_reach_square_and_own_shape_and_every_corner():
    views = [box(random_view(coordinates(240, 120), GEOMETRY, random.Random(i))[0]) for i in range(300)]
    ratios = [w / h for _, _, w, h in views]
    assert min(ratios) < 1.1 and max(ratios) > 1.9 and 1.3 < np.median(ratios) < 1.6
    assert min(v[0] for v in views) < 5 and max(v[0] + v[2] for v in views) > 235
    assert min(v[1] for v in views) < 5 and max(v[1] + v[3] for v in views) > 115
    areas = [w * h / (240 * 120) for _, _, w, h in views]
    assert min(areas) > 0.45 and max(areas) > 0.9


def test_whole_area_of_a_squashed_photo_is_the_whole_photo():
    config = Augmentation(min_area=1.0, flip=0, jitter=0)
    view = random_view(coordinates(90, 60), config, random.Random(0), squashed=True)[0]
    assert box(view) == (0, 0, 90, 60)


def test_a_view_depends_on_its_seed_alone():
    image = coordinates(200, 120)
    config = Augmentation()
    views = [np.asarray(random_view(image, config, random.Random(seed))[0]) for seed in (1, 1, 2)]
    assert np.array_equal(views[0], views[1]) and views[0].shape != views[2].shape


def test_mirroring_turns_the_same_crop_around():
    image = coordinates(200, 120)
    always = Augmentation(flip=1.0, jitter=0)
    for seed in range(20):
        plain = random_view(image, always, random.Random(seed), flip=False)[0]
        box(plain)  # not mirrored
        mirrored = random_view(image, always, random.Random(seed), flip=True)[0]
        assert np.array_equal(np.asarray(mirrored), np.asarray(plain)[:, ::-1])


def test_half_of_the_views_are_mirrored():
    image = coordinates(40, 40)
    config = Augmentation(flip=0.5, jitter=0)
    views = [np.asarray(random_view(image, config, random.Random(seed))[0]) for seed in range(200)]
    assert 70 < sum(view[0, 0, 0] > view[0, -1, 0] for view in views) < 130


@pytest.mark.parametrize(
    "captions, expected",
    [
        (("a dog", "a cat"), True),
        (("a dog", "a man to the LEFT of a car"), False),
        (("Right hand raised",), False),
        (("a left-handed player",), False),
        (("bright leftovers", "an upright piano"), True),
        ((), True),
    ],
)
def test_captions_with_sides_forbid_mirroring(captions, expected):
    assert may_flip(captions) is expected


def test_colours_change_within_the_limit():
    grey = Image.new("RGB", (8, 8), (100, 100, 100))  # contrast and saturation leave grey alone: brightness is left
    config = Augmentation(min_area=1, flip=0, jitter=0.2)
    values = [np.asarray(random_view(grey, config, random.Random(seed))[0]) for seed in range(200)]
    assert all((v == v[0, 0, 0]).all() for v in values)
    levels = [int(v[0, 0, 0]) for v in values]
    assert 79 <= min(levels) < 84 and 116 < max(levels) <= 120


def test_a_picture_of_one_pixel_survives():
    for seed in range(20):
        assert random_view(Image.new("RGB", (1, 1)), Augmentation(), random.Random(seed))[0].size == (1, 1)


def test_hidden_patches_are_whole_blocks_of_a_ninth():
    images = torch.ones(200, 3, 27, 27)
    found = hide_patches(images, 0.3, torch.Generator().manual_seed(0))
    blocks = found.reshape(200, 3, 9, 3, 9, 3)
    assert torch.equal(blocks, blocks[:, :1, :, :1, :, :1].expand_as(blocks))  # all channels and pixels of a block
    assert 1 - found.mean().item() == pytest.approx(0.3, abs=0.01)
    assert len({tuple(one.flatten().tolist()) for one in found[:, 0, ::3, ::3]}) == 200  # each photo by itself
    again = hide_patches(images, 0.3, torch.Generator().manual_seed(0))
    assert torch.equal(found, again)


@given(st.integers(3, 40), st.integers(3, 40), st.floats(0, 1))
def test_patches_are_hidden_or_unchanged_at_any_size(height, width, share):
    images = torch.randn(2, 4, height, width)
    found = hide_patches(images, share, torch.Generator().manual_seed(1))
    assert ((found == images) | (found == 0)).all()
    assert torch.equal(hide_patches(images, 0.0, torch.Generator()), images)


def test_hidden_words_spare_start_and_padding():
    row = torch.cat([torch.tensor([BOS]), torch.arange(100, 120), torch.full((5,), PAD)])
    ids = row.repeat(500, 1)
    found = hide_tokens(ids, 0.2, torch.Generator().manual_seed(0))
    assert torch.equal(found[:, 0], ids[:, 0]) and torch.equal(found[:, -5:], ids[:, -5:])
    assert set(found[found != ids].tolist()) == {UNK}
    assert (found[:, 1:-5] == UNK).float().mean().item() == pytest.approx(0.2, abs=0.01)
