"""Image encoders of timm: the same numbers as the package's own calls."""

from pathlib import Path
from typing import Any

import pytest
import timm
import torch

import vlm
from vlm.errors import ArgumentError

PHOTO = Path(__file__).parents[2] / "datasets" / "sample" / "cat.jpg"


@torch.no_grad()
def test_timm_features_equal_timms_own_calls(small_clip):
    encoders = vlm.load_encoders(f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}")
    torch.manual_seed(0)
    model: Any = timm.create_model("vit_tiny_patch16_224").eval()
    pixels = encoders.pixels([PHOTO])
    assert pixels.shape == (1, 3, 224, 224)
    expected = torch.nn.functional.normalize(model.forward_head(model.forward_features(pixels), pre_logits=True))
    torch.testing.assert_close(encoders.encode_image([PHOTO]), expected)
    torch.testing.assert_close(encoders.patch_embeddings(pixels), model.forward_features(pixels)[:, 1:])
    assert encoders.dim == 192 and encoders.logit_scale is None
    with pytest.raises(ArgumentError, match="reads photos only; load a pair such as 'tiny' to encode text"):
        encoders.encode_text(["a cat"])
