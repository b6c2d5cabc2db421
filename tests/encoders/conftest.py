"""A small random pair of open_clip, loaded as encoders."""

import pytest

import vlm
from vlm.encoders import Encoders


@pytest.fixture(scope="module")
def pair(small_clip) -> Encoders:
    return vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
