"""Pairs of open_clip: the same numbers as the package's own calls, and files that are not to be trusted."""

from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from PIL import Image

import vlm
from vlm.errors import ModelError

SAMPLES = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = [SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg", SAMPLES / "rocket.jpg"]
TEXTS = ["a cat", "a cup of coffee", "a rocket on its pad"]


def theirs(small_clip: Path) -> tuple[Any, Any, Any]:
    made: Any = open_clip.create_model_from_pretrained("small", pretrained=str(small_clip / "small.pt"))
    model, transform = made
    return model.eval(), transform, open_clip.get_tokenizer("small")


@torch.no_grad()
def test_features_equal_open_clips_own_calls(small_clip, pair):
    model, transform, tokenizer = theirs(small_clip)
    pixels = torch.stack([transform(Image.open(photo).convert("RGB")) for photo in PHOTOS])
    torch.testing.assert_close(pair.encode_image(PHOTOS), model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(pair.encode_image(pixels), model.encode_image(pixels, normalize=True))
    torch.testing.assert_close(pair.encode_text(TEXTS), model.encode_text(tokenizer(TEXTS), normalize=True))
    torch.testing.assert_close(pair(pixels, pair.tokenize(TEXTS)), model(pixels, tokenizer(TEXTS)))
    assert pair.dim == 16 and pair.patch_embeddings(PHOTOS).shape == (3, 16, 64)


def test_weights_of_another_model_are_refused(small_clip):
    with pytest.raises(ModelError, match=r"cannot be loaded"):
        vlm.load_encoders(f"open_clip:small/{small_clip / 'vit.pt'}")


def test_a_malicious_pickle_does_not_run(small_clip, tmp_path):
    class Bad:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"x": Bad()}, tmp_path / "bad.pt")
    with pytest.raises(ModelError, match="cannot be loaded"):
        vlm.load_encoders(f"open_clip:small/{tmp_path / 'bad.pt'}")
    assert not (tmp_path / "ran").exists()
