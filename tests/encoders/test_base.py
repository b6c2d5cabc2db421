"""What all encoders share: batches, every form of input, devices, and names that load nothing."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from vlm.errors import ArgumentError, ImageError, ModelError

SAMPLES = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = [SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg", SAMPLES / "rocket.jpg"]
TEXTS = ["a cat", "a cup of coffee", "a rocket on its pad"]


def test_encode_in_batches_equals_one_pass(pair, capsys):
    with torch.no_grad():
        images, texts = pair.encode_image(PHOTOS), pair.encode_text(TEXTS)
    for size in (1, 2, 3, 32):
        torch.testing.assert_close(pair.encode(PHOTOS, batch_size=size), images)
        torch.testing.assert_close(pair.encode(TEXTS, batch_size=size), texts)
    assert capsys.readouterr().err == ""
    pair.encode(TEXTS, show_progress_bar=True)
    assert "3/3" in capsys.readouterr().err
    assert pair.encode([]).shape == (0, 16)


def test_photos_in_any_form_give_the_same(pair):
    photo = PHOTOS[0]
    array = np.asarray(Image.open(photo).convert("RGB"))
    with torch.no_grad():
        found = pair.encode_image([photo, str(photo), photo.read_bytes(), array, Image.open(photo)])
    torch.testing.assert_close(found, found[:1].expand(5, -1))


def test_gradients_flow_into_both_encoders(pair):
    loss = (pair.encode_image(PHOTOS) * pair.encode_text(TEXTS)).sum()
    loss.backward()
    assert pair.model.visual.conv1.weight.grad.any() and pair.model.token_embedding.weight.grad.any()
    pair.zero_grad()


def test_module_moves_compiles_and_saves(pair, small_clip):
    again: Any = vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
    for parameter in again.parameters():
        parameter.data.zero_()
    again.load_state_dict(pair.state_dict())
    pixels, ids = pair.pixels(PHOTOS), pair.tokenize(TEXTS)
    with torch.no_grad():
        torch.testing.assert_close(again(pixels, ids), pair(pixels, ids))
        compiled: Any = torch.compile(again, backend="eager")
        torch.testing.assert_close(compiled(pixels, ids), pair(pixels, ids))
        half = again.to(torch.bfloat16)
        assert half.encode_image(pixels.bfloat16()).dtype == torch.bfloat16
        torch.testing.assert_close(half.encode_image(PHOTOS), half.encode_image(pixels.bfloat16()))


@pytest.mark.parametrize("call, message", [
    (lambda pair: pair.encode_text("a cat"), "texts='a cat' is one text where a list belongs"),
    (lambda pair: pair.encode("a cat"), "encode takes a list"),
    (lambda pair: pair.encode_text(None), "texts=None is not a list"),
    (lambda pair: pair.encode_image(None), "None is not a list of photos"),
    (lambda pair: pair.encode(None), "None is not a list of photos"),
    (lambda pair: pair.tokenize(None), "texts=None is not a list"),
    (lambda pair: pair.encode(TEXTS, batch_size=1.5), "batch_size=1.5 is not a whole number"),
    (lambda pair: pair.encode_text(torch.zeros(0, 5, dtype=torch.long)), "give int64.batch, tokens. made by tokenize"),
    (lambda pair: pair.encode_text(torch.ones(1, 5)), "ids of torch.float32"),
    (lambda pair: pair.encode_text(-torch.ones(1, 5, dtype=torch.long)), "made by tokenize"),
    (lambda pair: pair.encode_image(torch.zeros(1, 1, 32, 32)), r"shape \(1, 1, 32, 32\)"),
    (lambda pair: pair.encode_image(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)), "photos of torch.uint8"),
    (lambda pair: pair.encode(["a cat", PHOTOS[0]]), "not both at once"),
])  # fmt: skip
def test_calls_that_cannot_be_meant(pair, call, message):
    with pytest.raises(ArgumentError, match=message):
        call(pair)


def test_a_photo_that_cannot_be_read_is_named(pair, tmp_path):
    with pytest.raises(ImageError, match=r"gone\.jpg. does not exist"):
        pair.encode([*PHOTOS, tmp_path / "gone.jpg"])


@pytest.mark.parametrize("name, message", [
    ("open_clip:ViT-B-33/x.pt", "no architecture 'ViT-B-33'; did you mean ViT-B-32"),
    ("open_clip:?/x.pt", "no architecture '.'; open_clip.list_models"),
    ("open_clip:small", "names no weights; give open_clip:ARCHITECTURE/TAG"),
    ("open_clip:small/no_such_tag", "cannot be loaded: .*no_such_tag"),
    ("timm:no_such_model", "cannot be loaded: .*no_such_model"),
    (str(SAMPLES), "is not a model's folder: config.json, tokenizer.json, model.safetensors missing"),
    ("no_such_model", "no model 'no_such_model'"),
])  # fmt: skip
def test_models_that_do_not_exist(small_clip, name, message):
    with pytest.raises(ModelError, match=message):
        vlm.load_encoders(name)


@pytest.mark.parametrize("device", ["no_such_device", "cuda:99"])
def test_devices_that_are_not_there(small_clip, device):
    with pytest.raises(ArgumentError, match=f"device {device!r} cannot be used"):
        vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}", device=device)
