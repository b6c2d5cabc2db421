"""`load_image`: numbers of every type and range to pixels."""

import io

import numpy as np
import pytest
import torch
from PIL import Image

from vlm.errors import ImageError
from vlm.image import load_image


def encode(image: Image.Image, format: str) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


# v / 257 by hand: 128/257 = 0.498, 129/257 = 0.502, 32768/257 = 127.502, 65406/257 = 254.498
DEEP = np.array([[0, 128, 129, 257, 32768, 65406, 65535]], np.uint16)
SHALLOW = [0, 0, 1, 1, 128, 254, 255]


def test_16_bit_greys_are_scaled_not_clipped():
    image = Image.fromarray(DEEP)
    assert image.mode == "I;16"
    big_endian = b"P5 7 1 65535\n" + DEEP.astype(">u2").tobytes()  # opens as mode I
    for source in [image, encode(image, "PNG"), encode(image, "TIFF"), big_endian, DEEP, torch.from_numpy(DEEP)]:
        assert pixels(load_image(source))[0].tolist() == [[v] * 3 for v in SHALLOW]
    dark = Image.fromarray(np.full((1, 1), 200, np.uint16))  # nearly black, whatever the values beside it
    assert load_image(encode(dark, "PNG")).getpixel((0, 0)) == (1, 1, 1)


@pytest.mark.parametrize(
    "values, expected",
    [
        (np.array([[0, 100, 255]], np.int32), [0, 100, 255]),  # 8-bit values in mode I
        (np.array([[0, 1]], np.int32), [0, 1]),
        (np.array([[0, 257, 65535]], np.int32), [0, 1, 255]),  # 16-bit values in mode I
        (np.array([[-50, 0, 100, 150]], np.int32), [0, 64, 191, 255]),  # no usual range: (v + 50) * 255 / 200
        (np.array([[0.0, 0.25, 1.0]], np.float32), [0, 64, 255]),  # 63.75
        (np.array([[0.0, 99.6, 255.0]], np.float32), [0, 100, 255]),
        (np.array([[-1.0, 0.0, 3.0]], np.float32), [0, 64, 255]),
        (np.array([[7e9, 7e9]], np.float32), [0, 0]),  # flat
    ],
)
def test_modes_i_and_f(values, expected):
    image = Image.fromarray(values)
    for source in (image, encode(image, "TIFF")):
        assert pixels(load_image(source))[0, :, 0].tolist() == expected
    with pytest.raises(ImageError, match="NaN"):
        load_image(Image.fromarray(np.array([[0.0, float("nan")]], np.float32)))


def test_arrays_by_hand():
    grey = [[0, 51], [102, 255]]
    for array in [np.array(grey, np.uint8), np.array(grey) / 255, (np.array(grey) / 255).astype(np.float16)]:
        for shaped in (array, array[:, :, None], torch.from_numpy(array), torch.from_numpy(array)[None]):
            assert pixels(load_image(shaped)).tolist() == [[[v] * 3 for v in row] for row in grey]
    assert load_image(np.array([[True, False]])).tobytes() == b"\xff\xff\xff\0\0\0"
    assert load_image(torch.tensor([[True, False]])).tobytes() == b"\xff\xff\xff\0\0\0"
    assert load_image(torch.full((4, 1, 1), 0.2, dtype=torch.bfloat16)).getpixel((0, 0)) == (51, 51, 51)
    assert load_image(np.array([[[1, 2, 3, 0]]], np.uint8)).getpixel((0, 0)) == (1, 2, 3)  # alpha dropped
