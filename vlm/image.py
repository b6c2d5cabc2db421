"""Pictures: whatever a user has becomes RGB, and RGB becomes the tensor that a model reads.

`load_image` decodes, `ImageTransform` resizes and normalises; `vlm.files.photos` finds files.
Files are untrusted: only the formats listed here are tried (Pillow would hand an EPS file to Ghostscript), their size
is read from the header before a pixel is decoded, and whatever goes wrong is an `ImageError` of one line.
"""

import io
import math
import os
import re
import stat
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, BinaryIO, Literal, TypeAlias

from PIL import Image

from vlm.errors import ArgumentError, ImageError, quoted, reason

if TYPE_CHECKING:
    import numpy as np
    import torch

ImageSource: TypeAlias = (
    "str | os.PathLike[str] | bytes | bytearray | memoryview | BinaryIO | Image.Image | np.ndarray | torch.Tensor"
)

MAX_PIXELS = 64_000_000

# HEIF opens where pillow-heif is installed; AVIF and JPEG 2000 depend on how Pillow was
# built. Icons are left out: an ICO file holds whole PNGs whose size its own header does not tell.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "TIFF", "BMP", "DIB", "PPM", "AVIF", "HEIF", "JPEG2000")
_HEIF = (b"heic", b"heix", b"hevc", b"hevx", b"heim", b"heis", b"mif1", b"msf1")  # brands of the container

# EXIF tag 0x0112 says how the camera was held; the value names the operation that puts the picture upright.
_ORIENTATION_TAG = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}
URL = re.compile(r"[a-z][a-z0-9+.-]+:/|data:", re.IGNORECASE)  # one slash: Path("http://x") drops the other


def load_image(source: ImageSource, *, max_pixels: int = MAX_PIXELS, name: str | None = None) -> Image.Image:
    """Turn any picture into an upright 8-bit RGB image that shares nothing with `source`.

    EXIF orientation is applied, an animation gives its first frame, and transparency is dropped as by Pillow's
    `convert("RGB")` (the colour stored under transparent pixels shows), which is what OFA was trained with. Colour
    profiles are ignored. Grey pictures of more than 8 bits are scaled, not clipped: 65535 becomes 255.

    Args:
        source: a path; the bytes of an image file; a binary file object, read from its position to its end;
            a PIL image (of an animation, the frame it is at); an array `[height, width]` or `[height, width, 1|3|4]`;
            a tensor `[height, width]` or `[1|3|4, height, width]`. Arrays and tensors are uint8, uint16, bool, or
            floats in [0, 1].
        max_pixels: larger pictures are refused before they are decoded.
        name: what error messages call the picture, instead of its path or kind.

    Raises:
        ImageError: the picture is missing, unreadable, empty, damaged, too large, or not an image.
    """
    if max_pixels < 1:
        raise ArgumentError(f"max_pixels={max_pixels} allows no picture; pass a positive number")
    label = quoted(name) if name is not None else _describe(source)
    try:
        return _load(source, max_pixels)
    except ImageError as error:  # the helpers below say what is wrong, here it gets the name
        raise ImageError(f"{label} {error}") from error.__cause__


@dataclass(frozen=True)
class ImageTransform:
    """From an RGB picture to the tensor that an image tower was trained on; saved in `config.json` beside the weights.

    Resizes to a square without keeping the aspect ratio, with Pillow's antialiased filter on 8-bit values, then
    scales to [0, 1] and normalises each channel: the pipeline of OFA's captioning, VQA, SNLI-VE and ImageNet tasks.
    """

    size: int
    """Side of the square that photos are resized to, in pixels."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Subtracted from red, green and blue, which are scaled to [0, 1]."""
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    """Divides red, green and blue after the mean is subtracted."""
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"
    """Filter for resizing photos."""

    def __post_init__(self):
        if not isinstance(self.size, int) or self.size < 1:
            raise ArgumentError(f"ImageTransform: size={self.size!r} is not a positive whole number of pixels")
        if self.interpolation not in _RESAMPLING:
            choices = ", ".join(_RESAMPLING)
            raise ArgumentError(f"ImageTransform: interpolation={self.interpolation!r} is unknown; choose {choices}")
        for field in ("mean", "std"):
            value = getattr(self, field)
            if not isinstance(value, (list, tuple)) or len(value) != 3 or not all(map(_is_finite, value)):
                raise ArgumentError(f"ImageTransform: {field}={value!r} is not three numbers, one per colour")
            object.__setattr__(self, field, tuple(map(float, value)))  # JSON has lists; tuples compare and hash
        if min(self.std) <= 0:
            raise ArgumentError(f"ImageTransform: std={self.std} divides the pixels; give three positive numbers")

    def __call__(self, image: Image.Image) -> "torch.Tensor":
        """An RGB image, as `load_image` returns it, to `float32[3, size, size]`."""
        import numpy as np
        import torch

        if image.mode != "RGB":
            image = image.convert("RGB")
        square = image.resize((self.size, self.size), _RESAMPLING[self.interpolation])
        pixels = torch.from_numpy(np.array(square)).permute(2, 0, 1).contiguous()  # uint8[3, size, size]
        mean = torch.tensor(self.mean)[:, None, None]
        std = torch.tensor(self.std)[:, None, None]
        return pixels.float().div_(255).sub_(mean).div_(std)


def check_photos(images: object) -> None:
    """Refuse one photo where a list of photos belongs: its letters, bytes or rows are not photos.

    Raises:
        ArgumentError: see above.
    """
    one = isinstance(images, str | os.PathLike | bytes | bytearray | memoryview | Image.Image)
    array = _is_a("numpy", "ndarray", images) or _is_a("torch", "Tensor", images)
    if one or hasattr(images, "read") or (array and getattr(images, "ndim", 4) < 4):
        raise ArgumentError(f"{_describe(images)} is one photo where a list of photos belongs; put it into a list")
    if not isinstance(images, Iterable):
        raise ArgumentError(f"{images!r} is not a list of photos; give a list")


def _load(source: Any, max_pixels: int) -> Image.Image:
    if isinstance(source, Image.Image):
        return _to_rgb(source, max_pixels)
    if isinstance(source, (str, os.PathLike)):
        with _open_file(source) as file:
            return _to_rgb(_read_header(file), max_pixels)
    if isinstance(source, (bytes, bytearray, memoryview)):
        return _to_rgb(_read_header(io.BytesIO(bytes(source))), max_pixels)
    if hasattr(source, "read"):
        return _to_rgb(_read_header(_read_stream(source, max_pixels)), max_pixels)
    if _is_a("torch", "Tensor", source):
        return _from_array(_tensor_to_array(source), max_pixels)
    if _is_a("numpy", "ndarray", source):
        return _from_array(source, max_pixels)
    raise ImageError("is not a picture; pass a path, bytes, a binary file, a PIL image, an array or a tensor")


def _open_file(path: "str | os.PathLike[str]") -> BinaryIO:
    """Open a regular file; reading anything else, such as a pipe, could wait for ever."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISREG(mode):
            return open(path, "rb")
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        if URL.match(os.fsdecode(path)):
            why = "is a URL, and nothing is downloaded here; download the picture and pass the file"
        elif isinstance(error, (FileNotFoundError, NotADirectoryError)):
            why = "does not exist; check the path"
        elif isinstance(error, PermissionError):
            why = "may not be read by this user; change its permissions"
        else:
            why = f"cannot be opened ({reason(error)}); check the path"
        raise ImageError(why) from None
    kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or a device"
    raise ImageError(f"is {kind}, not a picture; pass the path of an image file")


def _read_stream(stream: Any, max_pixels: int) -> BinaryIO:
    """Copy a file object from its position on, since Pillow rewinds to the start and some streams cannot."""
    if isinstance(stream, io.TextIOBase):
        raise ImageError("was opened as text; open it in binary mode, 'rb'")
    limit = 8 * max_pixels + (16 << 20)  # the largest permitted picture, uncompressed 16-bit RGBA, and its metadata
    copy = io.BytesIO()
    with _explained("cannot be read", "pass an open binary file"):  # a network stream raises anything
        while chunk := stream.read(1 << 20):
            copy.write(chunk)
            if copy.tell() > limit:
                raise ImageError(f"holds more than {limit} bytes; raise max_pixels if it is a picture")
    copy.seek(0)
    return copy


def _read_header(file: BinaryIO) -> Image.Image:
    """What `Image.open` does, for our formats and without its size check.

    That check warns, or raises, by a limit that is global to the process; `_check_size` has the caller's.
    """
    failure: ImageError | None = None
    with _explained("cannot be read", "copy it anew"):
        head = file.read(16)
    if not head:
        raise ImageError("is empty; save or download the picture again")
    head = head.ljust(16, b"\0")  # some plugins index it
    if head[4:8] == b"ftyp" and head[8:12] in _HEIF and "HEIF" not in Image.OPEN:
        _register_heif()
    for load_plugins in (Image.preinit, Image.init):  # the five common formats, then every plugin
        load_plugins()
        for read, accepts in (Image.OPEN[name] for name in _FORMATS if name in Image.OPEN):
            try:
                with _explained("is damaged or incomplete", "save or download it again"):
                    if accepts is not None and accepts(head) is True:  # a string: this build of Pillow cannot read it
                        file.seek(0)
                        return read(file, "")
            except ImageError as error:
                failure = error  # AVIF and HEIF begin alike: the next reader may know it
    raise failure or ImageError("is not an image that can be read; save it as JPEG or PNG")


def _register_heif() -> None:
    """Let Pillow read the photos of phones, if the package for it is installed."""
    try:
        import pillow_heif  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise ImageError("is HEIC, which needs pillow-heif; pip install 'vlm-foundation[heic]'") from None
    pillow_heif.register_heif_opener()


def _check_size(width: int, height: int, max_pixels: int) -> None:
    if width < 1 or height < 1:
        raise ImageError(f"has no pixels ({width}x{height}); pass a picture of at least 1x1")
    if width * height > max_pixels:
        raise ImageError(
            f"has {width}x{height} pixels, more than max_pixels={max_pixels}; "
            "shrink it, or raise max_pixels if you trust it"
        )


def _to_rgb(image: Image.Image, max_pixels: int) -> Image.Image:
    """A fresh upright RGB image without metadata, so that nobody can turn it upright a second time."""
    _check_size(*image.size, max_pixels)
    with _explained("is damaged or incomplete", "save or download it again"):
        image.load()
        turn = _orientation(image)
        if image.mode.startswith(("I", "F")):  # I, I;16, I;16B, F
            image = Image.fromarray(_grey_to_8bit(image))
        elif "transparency" in image.info:  # Pillow would warn that it is lost
            image = image.copy()
            del image.info["transparency"]
        rgb = image.convert("RGB")
        if turn in _UPRIGHT:
            rgb = rgb.transpose(_UPRIGHT[turn])
    rgb.info = {}
    return rgb


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except Exception:  # a damaged EXIF block raises nearly anything and does not spoil the pixels
        return 1


def _grey_to_8bit(image: Image.Image) -> "np.ndarray":
    """Modes of more than 8 bits to `uint8[height, width]`.

    I;16 is 16-bit by definition. I and F say nothing of their range: it is the first of [0, 1] (floats), [0, 255] and
    [0, 65535] that holds all values, or else from the least to the greatest.
    """
    import numpy as np

    values = np.asarray(image)
    if image.mode.startswith("I;16"):
        return _from_16bit(values)
    low, high = float(values.min()), float(values.max())
    if not (math.isfinite(low) and math.isfinite(high)):  # NaN spreads to both
        raise ImageError("holds infinite values or NaN; replace them by numbers")
    tops = (1.0, 255.0, 65535.0) if image.mode == "F" else (255.0, 65535.0)
    top = next((top for top in tops if low >= 0 and high <= top), None)
    start, span = (0.0, top) if top else (low, high - low or 1.0)
    return np.rint((values.astype(np.float64) - start) * (255 / span)).astype(np.uint8)


def _from_16bit(values: "np.ndarray") -> "np.ndarray":
    """uint16 to the nearest uint8: 65535 = 255 * 257, and half of the odd 257 cannot occur."""
    return ((values.astype("uint32") + 128) // 257).astype("uint8")


def _from_array(array: Any, max_pixels: int) -> Image.Image:
    """uint8, uint16, bool or floating `[height, width]` or `[height, width, 1|3|4]`."""
    import numpy as np

    if array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ImageError(f"has shape {array.shape}; pass [height, width] or [height, width, 1|3|4]")
    _check_size(array.shape[1], array.shape[0], max_pixels)
    if array.dtype == np.bool_:
        array = array.astype(np.uint8) * 255
    elif array.dtype == np.uint16:
        array = _from_16bit(array)
    elif np.issubdtype(array.dtype, np.floating):
        if not (array.min() >= 0 and array.max() <= 1):  # so written, NaN is refused as well
            raise ImageError(f"holds {array.dtype} values outside [0, 1]; divide them by the largest possible value")
        array = np.rint(array.astype(np.float32) * 255).astype(np.uint8)
    elif array.dtype != np.uint8:
        raise ImageError(f"has dtype {array.dtype}; convert it to uint8, or to floats in [0, 1]")
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    return Image.fromarray(np.ascontiguousarray(array)).convert("RGB")


def _tensor_to_array(tensor: Any) -> "np.ndarray":
    """`[height, width]` or `[1|3|4, height, width]` to channels last."""
    if tensor.ndim not in (2, 3) or (tensor.ndim == 3 and tensor.shape[0] not in (1, 3, 4)):
        raise ImageError(f"has shape {tuple(tensor.shape)}; pass [height, width] or [1|3|4, height, width]")
    tensor = tensor.detach().cpu()
    if tensor.is_floating_point():
        tensor = tensor.float()  # numpy has no bfloat16, and float32 holds all of its values
    return (tensor if tensor.ndim == 2 else tensor.permute(1, 2, 0)).numpy()


def _is_a(module: str, name: str, value: object) -> bool:
    """isinstance without importing: whoever holds such a value has imported its module."""
    return isinstance(value, getattr(sys.modules.get(module), name, ()))


def _is_finite(value: object) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)


def _describe(source: object) -> str:
    """What an error message calls a source that has no name of its own."""
    if isinstance(source, (str, os.PathLike)):
        name = os.fsdecode(source)
        return quoted(re.sub(r"^([a-z][a-z0-9+.-]+:)/(?!/)", r"\1//", name))  # a Path drops one slash
    if isinstance(source, (bytes, bytearray, memoryview)):
        return "<bytes>"
    name = getattr(source, "filename" if isinstance(source, Image.Image) else "name", None)
    if isinstance(name, str) and name and (isinstance(source, Image.Image) or hasattr(source, "read")):
        return quoted(name)
    return "<file object>" if hasattr(source, "read") else f"<{type(source).__name__}>"


@contextmanager
def _explained(what: str, remedy: str) -> Iterator[None]:
    """Turn whatever Pillow raises on damaged files (OSError, SyntaxError, struct.error, ...) into an ImageError."""
    try:
        yield
    except ImageError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:  # a few readers check on their own
        remedy = "shrink it, or raise max_pixels and PIL.Image.MAX_IMAGE_PIXELS if you trust it"
        raise ImageError(f"has too many pixels ({reason(error)}); {remedy}") from error
    except Exception as error:
        raise ImageError(f"{what} ({reason(error)}); {remedy}") from error
