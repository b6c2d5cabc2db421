"""Annotations joined to samples by key, and boxes that follow a view."""

import gzip
import json
import random

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm.data.annotations import in_view, join_annotations
from vlm.data.augment import Augmentation, View, random_view
from vlm.data.shards import Sample
from vlm.errors import DataError

PHOTO = Sample("a", b"", ("a dog",), fields={"captions": ["a dog"], "source": "set"})


@pytest.mark.parametrize("name", ["boxes.jsonl", "boxes.jsonl.gz"])
def test_fields_are_joined_by_key(tmp_path, name):
    rows = [{"key": "a", "phrases": [1]}, {"key": "unknown", "phrases": [2]}]
    text = "\n".join(map(json.dumps, rows)) + "\n\n"
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    other = Sample("b", b"")
    joined = join_annotations([PHOTO, other], [path])
    assert joined[0].fields == {"captions": ["a dog"], "source": "set", "phrases": [1]} and joined[1] is other
    assert PHOTO.fields == {"captions": ["a dog"], "source": "set"}  # the sample given stays as it is


@pytest.mark.parametrize(
    "content, error",
    [
        (b'{"key": "a"}\n[1]\n', "line 2 is not a JSON object with a key"),
        (b'{"text": "a"}\n', "line 1 is not a JSON object with a key"),
        (b'{"key": "c"}\n', "name none of the 1 photos"),
        (b"\xff\xfe\n", "cannot be read"),
        (None, "cannot be read: No such file"),
    ],
)
def test_files_that_cannot_be_joined(tmp_path, content, error):
    path = tmp_path / "boxes.jsonl"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(DataError, match=error):
        join_annotations([PHOTO], [path])


def test_a_gzip_file_cut_off(tmp_path):
    path = tmp_path / "boxes.jsonl.gz"
    path.write_bytes(gzip.compress(b'{"key": "a"}\n' * 50)[:-12])
    with pytest.raises(DataError, match="cannot be read"):
        join_annotations([PHOTO], [path])


def test_boxes_by_hand():
    half = View((0.5, 0.0, 1.0, 1.0))  # the right half
    assert half.place((0.5, 0.2, 0.75, 0.4)) == ((0.0, 0.2, 0.5, 0.4), 1.0)
    assert half.place((0.25, 0.0, 0.75, 1.0)) == ((0.0, 0.0, 0.5, 1.0), 0.5)  # half of it lies inside
    assert half.place((0.0, 0.0, 0.5, 1.0))[1] == 0.0
    assert View(mirrored=True).place((0.0, 0.0, 0.25, 1.0)) == ((0.75, 0.0, 1.0, 1.0), 1.0)


@given(st.integers(0, 2**32), st.booleans())
def test_a_box_stays_on_its_thing(seed, squashed):
    """A red rectangle in a black photo: where a view shows it is where its box lies in the view."""
    rng = random.Random(seed)
    width, height = rng.randrange(60, 200), rng.randrange(60, 200)
    left, top = rng.randrange(width - 20), rng.randrange(height - 20)
    right, bottom = rng.randrange(left + 12, width), rng.randrange(top + 12, height)
    image = Image.new("RGB", (width, height))
    image.paste((255, 0, 0), (left, top, right, bottom))
    shown, view = random_view(image, Augmentation(0.3, 0.5, 0.0), rng, squashed)
    box, share = view.place((left / width, top / height, right / width, bottom / height))
    red = np.argwhere(np.asarray(shown)[..., 0] > 128)
    assert (share > 0) == bool(len(red))
    if len(red):
        (first_y, first_x), (last_y, last_x) = red.min(0), red.max(0) + 1
        found = [x * side for x, side in zip(box, shown.size * 2, strict=True)]
        assert found == pytest.approx([first_x, first_y, last_x, last_y], abs=1e-3)
        assert share == pytest.approx(len(red) / ((right - left) * (bottom - top)), abs=1e-6)


def test_what_a_view_does_not_show_is_left_out():
    record = {
        "phrases": [
            {"text": "a dog", "boxes": [[0.6, 0.0, 0.9, 1.0]]},
            {"text": "a cat", "boxes": [[0.0, 0.0, 0.4, 1.0]]},  # outside
            {"text": "two balls", "boxes": [[0.7, 0, 0.8, 1], [0.0, 0.0, 0.1, 1.0]]},  # one of them outside
            {"text": "today"},
        ],
        "boxes": [{"label": "dog", "box": [0.6, 0.0, 0.9, 1.0]}, {"label": "cat", "box": [0.3, 0.0, 0.6, 1.0]}],
        "boxes_complete": True,
    }
    sample = Sample("a", b"", fields=record)
    seen = in_view(sample, View((0.5, 0.0, 1.0, 1.0))).fields
    assert [phrase["text"] for phrase in seen["phrases"]] == ["a dog", "today"]
    assert seen["phrases"][0]["boxes"][0] == pytest.approx([0.2, 0.0, 0.8, 1.0])
    assert [item["label"] for item in seen["boxes"]] == ["dog"] and not seen["boxes_complete"]  # a third of the cat
    assert in_view(sample, View()) is sample and sample.fields is record
    assert in_view(sample, View((0.61, 0.0, 1.0, 1.0))).fields["boxes_complete"]  # the cat is gone altogether
