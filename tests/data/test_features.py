"""Kept features of a frozen trunk: what is kept, and that an interruption changes nothing."""

import io
import json

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.data import features as module
from vlm.data.augment import Augmentation, View, random_view
from vlm.data.features import cached_features, view
from vlm.data.shards import Sample
from vlm.errors import DataError, ImageError
from vlm.image import ImageTransform, load_image
from vlm.models.config import TowerConfig
from vlm.models.towers import build_tower, trunk_features
from vlm.train.checkpoint import Average

TRANSFORM = ImageTransform(32)
AUGMENTATION = Augmentation()
STAGE = 3


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 48)).save(buffer, "JPEG")
    return buffer.getvalue()


def samples(count: int, **fields) -> list[Sample]:
    return [Sample(f"photo{i}", photo(i), ("a dog",), **fields) for i in range(count)]


def tower(seed: int = 0):
    torch.manual_seed(seed)
    return build_tower(TowerConfig("test_efficientnet")).eval()


def keep(folder, photos, trunk=None, views=3, batch_size=2, seed=0) -> np.ndarray:
    trunk = trunk or tower()
    return cached_features(folder, photos, trunk, STAGE, TRANSFORM, AUGMENTATION, views, seed, batch_size).features


def look(sample: Sample, augmentation: Augmentation | None, seed: str) -> torch.Tensor:
    return view(sample, TRANSFORM, augmentation, seed)[0]


def damaged(i: int) -> Sample:
    return Sample(f"photo{i}", photo(i)[:300], ("a dog",))


def test_the_first_view_is_the_whole_photo():
    sample = samples(1)[0]
    expected = TRANSFORM(load_image(sample.image))
    assert torch.equal(look(sample, None, "any"), expected)


def test_a_view_depends_on_seed_and_photo_alone():
    first, second = samples(2)
    same = [look(first, AUGMENTATION, "0/view1") for _ in range(2)]
    assert torch.equal(*same)
    assert not torch.equal(same[0], look(first, AUGMENTATION, "0/view2"))
    renamed = Sample(second.key, first.image, first.captions)
    assert not torch.equal(same[0], look(renamed, AUGMENTATION, "0/view1"))


def test_captions_with_sides_are_never_mirrored_and_squashed_photos_keep_their_shape(monkeypatch):
    seen = []

    def spy(image, config, rng, squashed, flip):
        seen.append((squashed, flip))
        return random_view(image, config, rng, squashed, flip)

    monkeypatch.setattr(module, "random_view", spy)
    look(Sample("a", photo(0), ("a dog on the left",), squashed=True), AUGMENTATION, "")
    look(Sample("a", photo(0), ("a dog",)), AUGMENTATION, "")
    assert seen == [(True, False), (False, True)]


def test_kept_features_equal_the_direct_computation(tmp_path):
    photos, trunk = samples(3), tower()
    kept = keep(tmp_path, photos, trunk, views=3, batch_size=2)
    assert kept.shape[:2] == (3, 3) and kept.dtype == np.float16
    images = [look(sample, AUGMENTATION if v else None, f"0/view{v}") for sample in photos for v in range(3)]
    batches = [torch.stack(images[i : i + 2]) for i in range(0, 9, 2)]
    direct = torch.cat([trunk_features(trunk, batch, STAGE) for batch in batches]).unflatten(0, (3, 3))
    assert np.array_equal(kept, direct.numpy()) and np.isfinite(kept).all() and kept.std() > 0
    assert not np.array_equal(kept[:, 0], kept[:, 1]) and not np.array_equal(kept[0, 0], kept[1, 0])


class Interrupted(Exception):
    pass


def counting(monkeypatch, limit: int | None = None) -> list[int]:
    """Count the passes through the trunk; the one behind `limit` fails, as a killed process would."""
    calls: list[int] = []

    def run(*arguments):
        calls.append(1)
        if limit is not None and len(calls) > limit:
            raise Interrupted
        return trunk_features(*arguments)

    monkeypatch.setattr(module, "trunk_features", run)
    return calls


def test_an_interrupted_run_goes_on_and_ends_equal(tmp_path, monkeypatch):
    photos = samples(20)
    whole = np.array(keep(tmp_path / "whole", photos, views=3, batch_size=1))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        counting(patch, limit=56)  # one probe of the shape and 55 of the 60 views
        keep(tmp_path / "broken", photos, views=3, batch_size=1)
    assert json.loads((tmp_path / "broken" / "features.json").read_text())["done"] == 50  # kept every 50 batches
    calls = counting(monkeypatch)
    assert np.array_equal(keep(tmp_path / "broken", photos, views=3, batch_size=1), whole)
    assert len(calls) == 1 + 10
    calls.clear()
    assert np.array_equal(keep(tmp_path / "broken", photos, views=3, batch_size=1), whole)
    assert len(calls) == 1  # all there


def test_a_tower_whose_weights_were_averaged_is_the_same(tmp_path, monkeypatch):
    photos, trunk = samples(2), tower()
    with torch.no_grad():
        next(trunk.parameters()).flatten()[0] = -0.0
    keep(tmp_path, photos, trunk)
    average = Average(trunk, 0.9)
    average.update(trunk, 100)
    average.copy_to(trunk)
    assert not torch.signbit(next(trunk.parameters()).flatten()[0])  # -0 has become 0
    calls = counting(monkeypatch)
    keep(tmp_path, photos, trunk)
    assert len(calls) == 1  # the probe of the shape


@pytest.mark.parametrize("change", ["tower", "photos", "views", "seed"])
def test_another_tower_or_other_photos_start_anew(tmp_path, change):
    photos = samples(4)
    keep(tmp_path / "a", photos)
    changed = {
        "tower": {"trunk": tower(1)},
        "photos": {"photos": samples(5)},
        "views": {"views": 2},
        "seed": {"seed": 1},
    }[change]
    arguments = {"photos": photos, **changed}
    assert np.array_equal(keep(tmp_path / "a", **arguments), keep(tmp_path / "new", **arguments))


def test_an_overwritten_file_is_not_taken_for_the_old_one(tmp_path, monkeypatch):
    photos = samples(4)
    expected = np.array(keep(tmp_path, photos))
    with monkeypatch.context() as patch, pytest.raises(Interrupted):
        counting(patch, limit=1)
        keep(tmp_path, photos, seed=1)  # empties the file and is killed at once
    assert np.array_equal(keep(tmp_path, photos), expected)


def test_a_damaged_photo_is_marked_and_named(tmp_path):
    photos = [*samples(100)]
    photos[7] = damaged(7)
    with pytest.raises(ImageError):
        look(photos[7], None, "")
    with pytest.warns(UserWarning, match="skipped photo: 'photo7' is damaged") as warned:
        kept = keep(tmp_path, photos, views=2, batch_size=32)
    assert len(warned) == 1  # once, not once a view
    assert np.isnan(kept[7]).all() and np.isfinite(np.delete(kept, 7, axis=0)).all()


def test_too_many_damaged_photos_fail(tmp_path):
    photos = samples(20)
    photos[3] = damaged(3)
    with pytest.warns(UserWarning), pytest.raises(DataError, match=r"1 of 20 photos cannot be decoded \(photo3\)"):
        keep(tmp_path, photos)


def test_the_part_of_the_photo_is_kept_with_each_view(tmp_path):
    """The view that is kept says where in the photo it lies: cut out there, the photo looks the same."""
    photos = samples(5)
    plain = Augmentation(min_area=0.3, flip=0.5, jitter=0.0)
    for _ in range(2):  # computed, and read again
        kept = cached_features(tmp_path, photos, tower(), STAGE, TRANSFORM, plain, 4, 0)
    mirrored = 0
    for i, sample in enumerate(photos):
        assert kept.read(i, 0, sample)[1] == View()
        for number in range(1, 4):
            features, part = kept.read(i, number, sample)
            image = load_image(sample.image)
            left, top, right, bottom = (round(v * side) for v, side in zip(part.box, image.size * 2, strict=True))
            image = image.crop((left, top, right, bottom))
            if part.mirrored:
                image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
                mirrored += 1
            expected = trunk_features(tower(), TRANSFORM(image)[None], STAGE)[0].float()
            torch.testing.assert_close(features, expected, atol=2e-3, rtol=2e-3)  # kept as float16
    assert 0 < mirrored < 15
