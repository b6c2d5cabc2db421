"""The object that `vlm.load` returns, with the shipped weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from vlm.errors import ArgumentError, ImageError

ROOT = Path(__file__).parents[1]
PHOTOS = sorted((ROOT / "datasets" / "sample").glob("*.jpg"))


@pytest.fixture(scope="module")
def model():
    return vlm.load("tiny")


def test_a_caption_does_not_depend_on_neighbours(model):
    alone = [model.captions([photo])[0] for photo in PHOTOS]
    for batch_size in (3, len(PHOTOS)):
        together = model.captions(PHOTOS, batch_size=batch_size)
        assert [[c.text for c in row] for row in together] == [[c.text for c in row] for row in alone]
        for ours, theirs in zip(together, alone, strict=True):
            assert ours[0].score == pytest.approx(theirs[0].score, abs=1e-4)


def test_every_kind_of_input_gives_the_same_caption(model):
    path = PHOTOS[0]
    image = Image.open(path).convert("RGB")
    array = np.asarray(image)
    tensor = torch.from_numpy(array.copy()).permute(2, 0, 1)
    with path.open("rb") as file:
        found = {model.caption(source) for source in (path, str(path), path.read_bytes(), file, image, array, tensor)}
    assert len(found) == 1


def test_patches_are_encoded_once_and_asked_often(model):
    photos = model.encode(PHOTOS[:2])
    patch_dim = model.bundle.module.backbone.config.patch_dim
    assert [photo.patches.shape for photo in photos] == [(9, 9, patch_dim)] * 2
    best = model.run("caption", photos)
    assert best == model.captions(PHOTOS[:2]) == model.run("caption", PHOTOS[:2])
    several = model.run("caption", photos, num_captions=3)
    assert [row[0] for row in several] == [row[0] for row in best]
    assert len({c.text for c in several[0]}) == 3


def test_cached_decoding_equals_full_decoding(model):
    photos = model.encode(PHOTOS)
    captions = model.run("caption", photos, beams=1, num_captions=1, rerank=0)
    backbone, tokenizer = model.bundle.module.backbone, model.bundle.tokenizer
    ids = torch.tensor([[0, *tokenizer.encode(" what does the image describe?"), 2]]).expand(len(PHOTOS), -1)
    with torch.inference_mode():
        encoded = backbone.encode(ids, torch.stack([photo.patches for photo in photos]))
        for row, found in enumerate(captions):
            words = [0, *tokenizer.encode(" " + found[0].text), 2]
            one = encoded.select(torch.tensor([row]))
            logits = backbone.logits(backbone.decode(torch.tensor([words[:-1]]), one))[0]
            start, end = tokenizer.text_range
            logits = torch.cat([logits[:, :4], logits[:, start:end]], 1) if start > 4 else logits[:, :end]
            scores = logits.log_softmax(-1).gather(1, torch.tensor(words[1:])[:, None])
            assert scores.mean().item() == pytest.approx(found[0].score, abs=1e-4)


def test_errors_name_what_is_wrong(model, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg"):
        model.caption(tmp_path / "gone.jpg")
    with pytest.raises(ArgumentError, match="beam_width"):
        model.caption(PHOTOS[0], beam_width=3)
    with pytest.raises(ArgumentError, match="num_captions=6"):
        model.caption(PHOTOS[0], num_captions=6)
    with pytest.raises(AttributeError, match="load"):
        _ = vlm.nosuch  # type: ignore[attr-defined]


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", [None, pytest.param("data/flickr8k/images", marks=pytest.mark.reference("data/flickr8k/images"))]
)
def test_photos_give_the_same_caption_alone_and_in_batches_of_32(model, reference, folder):
    """Ours, and 200 of the reference."""
    photos = sorted((reference / folder).glob("*.jpg"))[:200] if folder else PHOTOS
    together = [row[0].text for row in model.captions(photos, batch_size=32)]
    backwards = [row[0].text for row in model.captions(photos[::-1], batch_size=7)][::-1]
    alone = [model.caption(photo) for photo in photos]
    assert together == alone and backwards == alone
