"""`load_image`: every kind of source and format, damaged files, hostile files."""

import io
import itertools
import os
import socket
import struct
import subprocess
import sys
import time
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from vlm.errors import ArgumentError, ImageError, VLMError
from vlm.image import load_image

Image.init()
AVIF = [name for name in ("AVIF",) if name in Image.SAVE]  # in Pillow since 11.3


def picture(width: int = 40, height: int = 24, seed: int = 0) -> Image.Image:
    """Smooth colours with noise, so that every format compresses it and no two rows or columns are alike."""
    y, x = np.mgrid[:height, :width]
    noise = np.random.default_rng(seed).integers(0, 20, (height, width, 3))
    pixels = np.stack([x * 200 // width, y * 200 // height, (x + y) * 2], axis=-1) + noise
    return Image.fromarray(pixels.astype(np.uint8))


def encode(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def pixels(image: Image.Image) -> np.ndarray:
    assert image.mode == "RGB"
    return np.asarray(image)


def refusal(source, **options) -> str:
    """The message with which `source` is refused: always one line."""
    with pytest.raises(ImageError) as caught:
        load_image(source, **options)
    message = str(caught.value)
    assert message.isprintable() and isinstance(caught.value, VLMError) and isinstance(caught.value, ValueError)
    return message


class Stream:
    """A pipe or socket: reads a little at a time and cannot seek."""

    def __init__(self, data: bytes):
        self.read_some = io.BytesIO(data).read

    def read(self, size: int = -1) -> bytes:
        return self.read_some(min(size, 100))


def test_every_kind_of_source_gives_the_same_pixels(tmp_path):
    image = picture()
    data = encode(image, "PNG")
    path = tmp_path / "a.png"
    path.write_bytes(data)
    after_header = io.BytesIO(b"header" + data)
    after_header.seek(6)
    array = np.asarray(image).copy()
    tensor = torch.from_numpy(array).permute(2, 0, 1)
    with path.open("rb") as file:
        sources = [str(path), path, data, bytearray(data), memoryview(data), file, after_header, Stream(data), image]
        sources += [Image.open(path), array, array[:, ::-1][:, ::-1], array / 255, array.astype(np.uint16) * 257]
        sources += [tensor, tensor / 255, (tensor / 255).double().requires_grad_(), tensor.to(torch.uint16) * 257]
        for source in sources:
            np.testing.assert_array_equal(pixels(load_image(source)), array, err_msg=f"{type(source)}")


def test_the_result_shares_nothing_with_the_source():
    image, array = picture(), np.zeros((4, 4, 3), np.uint8)
    load_image(image).putpixel((0, 0), (9, 9, 9))
    load_image(array).putpixel((0, 0), (9, 9, 9))
    assert image.getpixel((0, 0)) == picture().getpixel((0, 0)) and array.max() == 0


@pytest.mark.parametrize("format", ["PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000"])
def test_lossless_formats_keep_every_pixel(format):
    image = picture().quantize(64).convert("RGB")  # GIF holds 256 colours
    options = {"lossless": True} if format == "WEBP" else {}
    np.testing.assert_array_equal(pixels(load_image(encode(image, format, **options))), np.asarray(image))


@pytest.mark.parametrize("format", ["JPEG", "WEBP", "MPO", *AVIF])
def test_lossy_formats_decode_as_pillow_does(format):
    data = encode(picture(), format, quality=90)
    np.testing.assert_array_equal(pixels(load_image(data)), np.asarray(Image.open(io.BytesIO(data)).convert("RGB")))


def test_modes_become_rgb():
    red, mixed = (200, 10, 30), Image.new("RGBA", (2, 1), (200, 10, 30, 0))
    assert load_image(encode(mixed, "PNG")).getpixel((0, 0)) == red  # the colour under full transparency, not white
    assert load_image(Image.new("LA", (1, 1), (77, 0))).getpixel((0, 0)) == (77, 77, 77)
    assert load_image(encode(Image.new("L", (1, 1), 77), "JPEG")).getpixel((0, 0)) == (77, 77, 77)
    assert load_image(encode(Image.new("1", (1, 1), 1), "PNG")).getpixel((0, 0)) == (255, 255, 255)
    # CMYK without a profile: 255 - ink, so full cyan ink (255, 0, 0, 0) is (0, 255, 255)
    assert load_image(encode(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF")).getpixel((0, 0)) == (0, 255, 255)
    ink = load_image(encode(Image.new("CMYK", (8, 8), (0, 255, 255, 0)), "JPEG")).getpixel((0, 0))
    assert isinstance(ink, tuple) and ink[0] > 250 and max(ink[1:]) < 5


@pytest.mark.parametrize("transparency", [0, bytes([255, 0, 128])])
def test_palette_transparency_is_dropped_silently(transparency):
    image = picture().quantize(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = load_image(encode(image, "PNG", transparency=transparency))
    np.testing.assert_array_equal(pixels(loaded), np.asarray(image.convert("RGB")))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(format):
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "lime", "blue")]
    options = {"lossless": True} if format == "WEBP" else {}
    data = encode(frames[0], format, save_all=True, append_images=frames[1:], **options)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames") == 3  # noqa: B009
    assert load_image(data).getpixel((4, 4)) == (255, 0, 0)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF", *AVIF])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation(format, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    data = encode(picture(), format, exif=exif)
    expected = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    loaded = load_image(data)
    assert loaded.size == ((24, 40) if orientation >= 5 else (40, 24))
    np.testing.assert_array_equal(pixels(loaded), np.asarray(expected))
    np.testing.assert_array_equal(pixels(load_image(Image.open(io.BytesIO(data)))), np.asarray(expected))
    np.testing.assert_array_equal(pixels(load_image(loaded)), np.asarray(expected))  # never turned twice


def test_orientation_6_by_hand():
    """The camera lay on its left side: the first row stored is the right edge of the upright picture."""
    exif = Image.Exif()
    exif[0x0112] = 6
    rows = np.array([[10, 20, 30], [40, 50, 60]], np.uint8)
    upright = pixels(load_image(encode(Image.fromarray(rows), "PNG", exif=exif)))[:, :, 0]
    np.testing.assert_array_equal(upright, [[40, 10], [50, 20], [60, 30]])


@pytest.mark.parametrize("exif", [bytes(60), b"not a TIFF header", b"II*\0\xff\xff\xff\xff", b"MM\0*\0\0\0\x08\xff"])
@pytest.mark.filterwarnings("ignore:.*EXIF")
def test_damaged_exif_does_not_lose_the_photo(exif):
    image = picture()
    np.testing.assert_array_equal(pixels(load_image(encode(image, "PNG", exif=b"Exif\0\0" + exif))), np.asarray(image))


def test_huge_exif():
    exif = Image.Exif()
    exif[0x0112] = 3
    exif[0x9286] = b"x" * 65_000  # a JPEG segment ends at 65,533 bytes
    assert load_image(encode(picture(), "JPEG", exif=exif)).size == (40, 24)
    exif[0x9286] = b"x" * 5_000_000
    upside_down = load_image(encode(picture(), "PNG", exif=exif))
    np.testing.assert_array_equal(pixels(upside_down), np.asarray(picture())[::-1, ::-1])


@pytest.mark.parametrize(
    "source, message",
    [
        (
            np.zeros((2, 2, 2), np.uint8),
            "<ndarray> has shape (2, 2, 2); pass [height, width] or [height, width, 1|3|4]",
        ),
        (np.zeros((1, 2, 2, 3), np.uint8), "<ndarray> has shape (1, 2, 2, 3)"),
        (np.zeros((0, 5), np.uint8), "<ndarray> has no pixels (5x0)"),
        (np.zeros((2, 2), np.int64), "<ndarray> has dtype int64; convert it to uint8"),
        (np.full((2, 2), 1.5), "<ndarray> holds float64 values outside [0, 1]"),
        (np.full((2, 2), np.nan), "outside [0, 1]"),
        (torch.zeros(5, 5, 3), "<Tensor> has shape (5, 5, 3); pass [height, width] or [1|3|4, height, width]"),
        (torch.zeros(()), "<Tensor> has shape ()"),
        (Image.new("RGB", (0, 5)), "<Image> has no pixels (0x5)"),
        (None, "<NoneType> is not a picture; pass a path, bytes"),
        (["a.jpg"], "<list> is not a picture"),
        (b"", "<bytes> is empty"),
        (b"P", "<bytes> is not an image"),
        (b"GIF89a", "<bytes> is damaged or incomplete"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "<bytes> is not an image that can be read; save it as"),
        (io.BytesIO(b"no picture at all"), "<file object> is not an image that can be read; save it as JPEG or PNG"),
        (io.StringIO("text"), "<file object> was opened as text; open it in binary mode"),
        ("nowhere/x.jpg", "'nowhere/x.jpg' does not exist; check the path"),
        ("", "'' does not exist"),
        ("bad\0name.jpg", r"'bad\x00name.jpg' cannot be opened (embedded null byte)"),
        ("two\nlines\x1b[31m\udcff.jpg", r"'two\nlines\x1b[31m\udcff.jpg' does not exist"),
        (
            "https://example.com/cat.jpg?w=9",
            "'https://example.com/cat.jpg?w=9' is a URL, and nothing is downloaded here;",
        ),
        (Path("s3://bucket/cat.jpg"), "'s3://bucket/cat.jpg' is a URL"),
        ("data:image/png;base64," + "A" * 100_000, "is a URL"),
    ],
)
def test_bad_sources(source, message):
    assert message in refusal(source)


def test_bad_files(tmp_path):
    (tmp_path / "empty.jpg").write_bytes(b"")
    (tmp_path / "notes.jpg").write_text("dear diary")
    assert refusal(tmp_path / "empty.jpg") == f"'{tmp_path}/empty.jpg' is empty; save or download the picture again"
    assert "notes.jpg' is not an image that can be read" in refusal(tmp_path / "notes.jpg")
    assert "notes.jpg/x.jpg' does not exist" in refusal(tmp_path / "notes.jpg" / "x.jpg")
    assert refusal(tmp_path) == f"'{tmp_path}' is a folder, not a picture; pass the path of an image file"
    with (tmp_path / "notes.jpg").open("rb") as file:
        assert "notes.jpg' is not an image" in refusal(file)
    assert f"'{tmp_path}/notes.jpg' cannot be read (read of closed file)" in refusal(file)
    assert refusal(b"junk", name="key\n7").startswith(r"'key\n7' is not an image")
    long_name = refusal("x" * 100_000)
    assert "File name too long" in long_name and len(long_name) < 500


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="pipes and devices are named files only on POSIX")
def test_pipes_and_devices_are_refused_at_once(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe.jpg")
    server = socket.socket(socket.AF_UNIX)
    monkeypatch.chdir(tmp_path)  # a socket's path may have 107 characters
    server.bind("socket.jpg")
    for path in (tmp_path / "pipe.jpg", tmp_path / "socket.jpg", "/dev/zero", "/dev/null"):
        assert "is a pipe or a device, not a picture" in refusal(path)
    server.close()


def test_an_endless_stream_is_given_up():
    class Endless:
        served = 0

        def read(self, size: int) -> bytes:
            self.served += size
            return bytes(size)

    stream: Any = Endless()
    assert "holds more than 16857216 bytes" in refusal(stream, max_pixels=10_000)  # 8 bytes a pixel and 16 MiB
    assert stream.served <= 17 << 20


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="permissions of another user need POSIX")
def test_unreadable_file(tmp_path):
    path = tmp_path / "secret.jpg"
    path.write_bytes(encode(picture(), "JPEG"))
    path.chmod(0)
    user = os.geteuid()
    try:
        if user == 0:  # root reads everything: become nobody
            os.seteuid(65534)
        message = refusal(path)
    finally:
        os.seteuid(user)
    assert message == f"'{path}' may not be read by this user; change its permissions"


FORMATS = ["JPEG", "PNG", "GIF", "WEBP", "TIFF", "BMP", "PPM", "JPEG2000", *AVIF]
REAL = [(format, encode(picture(), format)) for format in FORMATS]
REAL += [("TIFF", encode(picture(), "TIFF", compression=kind)) for kind in ("tiff_lzw", "jpeg", "packbits")]
REAL += [
    ("JPEG", encode(picture(), "JPEG", progressive=True, exif=b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\6\0"))
]
REAL += [("PNG", encode(picture().quantize(8), "PNG", transparency=bytes(8)))]


@pytest.mark.parametrize("format, data", REAL)
@pytest.mark.parametrize("share", [0.01, 0.1, 0.5, 0.9])
@pytest.mark.filterwarnings("ignore:.*(EXIF|Truncated)")
def test_truncated_files_are_refused(format, data, share, tmp_path):
    path = tmp_path / f"cut.{format}"
    path.write_bytes(data[: int(len(data) * share)])
    message = refusal(path)
    assert message.startswith(f"'{path}' is ") and ("damaged or incomplete" in message or share == 0.01)


@settings(max_examples=400, deadline=None)
@given(
    file=st.sampled_from(REAL),
    edits=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.binary(min_size=1, max_size=6)), max_size=6),
    early=st.booleans(),
    end=st.floats(0.05, 1),
)
@pytest.mark.filterwarnings("ignore")
def test_damaged_files_load_or_are_refused(file, edits, early, end):
    data = bytearray(file[1])
    for place, new in edits:
        start = int(place * (min(120, len(data)) if early else len(data)))  # headers are where the traps are
        data[start : start + len(new)] = new
    try:
        image = load_image(bytes(data[: int(len(data) * end)]), max_pixels=200_000)
    except ImageError as error:
        assert str(error).startswith("<bytes> ") and str(error).isprintable()
    else:
        assert image.mode == "RGB" and 0 < image.width * image.height <= 200_000


def bomb(format: str) -> bytes:
    """A small file whose header promises more than 64 megapixels."""
    if format == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", 100_000, 100_000, 8, 2, 0, 0, 0)
        chunk = b"IDAT" + zlib.compress(bytes(1000))
        blocks = [
            struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, chunk, b"IEND")
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(blocks)
    if format == "PPM":
        return b"P6 100000 100000 255\n" + bytes(100)
    data = encode(picture(), format)
    where = {"GIF": (6, "<HH", 40, 24), "BMP": (18, "<II", 40, 24), "JPEG": (0, ">HH", 24, 40)}[format]
    offset, layout, *size = where
    offset = data.index(struct.pack(layout, *size), offset)
    large = struct.pack(layout, 60_000, 60_000)
    return data[:offset] + large + data[offset + len(large) :]


@pytest.mark.parametrize("format", ["PNG", "PPM", "GIF", "BMP", "JPEG"])
def test_bombs_are_refused_before_decoding(format):
    resource = pytest.importorskip("resource", reason="peak memory is measured on POSIX")
    data = bomb(format)
    load_image(encode(picture(), format))  # plugins are imported
    peak, start = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter()
    message = refusal(data, name="bomb")
    assert time.perf_counter() - start < 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak < 20_000  # kB; one decoded row set is gigabytes
    assert "more than max_pixels=64000000; shrink it, or raise max_pixels" in message and message.startswith(
        "'bomb' has"
    )


def test_a_gigapixel_webp_meets_pillows_own_limit():
    """16383 x 16383, the format's greatest size: Pillow's reader refuses it before we see a size."""
    data = bytearray(encode(picture(), "WEBP", lossless=True))
    assert data[12:16] == b"VP8L"
    data[21:25] = struct.pack("<I", struct.unpack("<I", data[21:25])[0] | 0x0FFFFFFF)  # 14 bits of width, of height
    message = refusal(bytes(data))
    assert message.startswith("<bytes> has ") and "max_pixels" in message


def test_the_limit_is_the_callers_not_pillows(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)  # 960 pixels would be an error of Image.open
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for format in ("JPEG", "PNG", "BMP", "PPM", "GIF"):
            assert load_image(encode(picture(), format), max_pixels=960).size == (40, 24)
            assert "40x24 pixels, more than max_pixels=959" in refusal(encode(picture(), format), max_pixels=959)
    for source in (picture(), np.asarray(picture())):
        assert "more than max_pixels=959" in refusal(source, max_pixels=959)
    with pytest.raises(ArgumentError, match="max_pixels=0 allows no picture"):
        load_image(picture(), max_pixels=0)


def test_threads_do_not_disturb_each_other():
    images = [picture(seed=seed) for seed in range(8)]
    jobs = [(encode(image, "PNG"), limit) for image, limit in itertools.product(images, (959, 960))] * 10
    before = Image.MAX_IMAGE_PIXELS

    def run(job):
        try:
            return load_image(job[0], max_pixels=job[1]).tobytes()
        except ImageError:
            return None

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(run, jobs))
    expected = [
        image.tobytes() if limit == 960 else None for image, limit in itertools.product(images, (959, 960))
    ] * 10
    assert results == expected and before == Image.MAX_IMAGE_PIXELS


def test_import_is_cheap():
    code = "import sys, vlm.image; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[1]).returncode == 0
