"""What training of the denoiser computes once and keeps on disk: small pictures, states of texts, features of a tower.

Each kind is a few `.npy` files in a folder and `stamp.json`, written last, which says what they were made from. Files
are mapped into memory, so that a data set may be larger than the memory.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from PIL import Image, ImageOps
from torch import Tensor, nn
from tqdm import tqdm

from vlm.data.shards import Sample, Skipped
from vlm.data.stream import ordered_map
from vlm.diffusion.text import TextEncoder, TextStates
from vlm.encoders.pair import PairEncoders
from vlm.errors import ImageError
from vlm.files.atomic import write_text
from vlm.files.digest import weights_sha256
from vlm.image import ImageTransform, load_image
from vlm.models.towers import Tower

STAMP = "stamp.json"
ALIGN_SIZE = 128  # side of the photos that the tower reads for the alignment: a quarter of the time of 260 pixels
ALIGN_GRID, ALIGN_DIM = 4, 64  # cells a side, and principal components, of the features of a photo
BATCH = 64


def square(sample: Sample) -> Image.Image:
    """The middle square of a photo, of any size.

    Raises:
        ImageError: the photo cannot be used.
    """
    image = load_image(sample.open(), name=sample.key)
    side = min(image.size)
    return image if image.width == image.height else ImageOps.fit(image, (side, side), Image.Resampling.BICUBIC)


def keep_pictures(folder: Path, samples: Sequence[Sample], size: int, skipped: Skipped) -> np.ndarray:
    """The middle squares of photos, `uint8[samples, 3, size, size]`; those that cannot be decoded stay black.

    Args:
        folder: where they are kept; what is there is used if it is of the same photos and size.
        samples: the photos.
        size: in pixels.
        skipped: notes photos that cannot be decoded.

    Raises:
        DataError: too many photos cannot be decoded.
    """
    stamp: dict[str, object] = {"size": size, "keys": _digest(sample.key for sample in samples)}
    bad = folder / "bad.npy"

    def small(row: int) -> np.ndarray | None:
        try:
            image = square(samples[row]).resize((size, size), Image.Resampling.BICUBIC)
            return np.asarray(image).transpose(2, 0, 1)
        except ImageError as error:
            skipped.add(samples[row], error)
            return None

    def make() -> None:
        pictures = open_memmap(folder / "pictures.npy", "w+", np.uint8, (len(samples), 3, size, size))
        missing = []
        ready = ordered_map(small, range(len(samples)), ahead=BATCH)
        for row, picture in enumerate(tqdm(ready, "pictures", len(samples), unit="photo", disable=len(samples) < 1000)):
            if picture is None:
                missing.append(row)
            else:
                pictures[row] = picture
        pictures.flush()
        np.save(bad, np.array(missing, np.int64))

    _make_once(folder, stamp, make)
    for row in np.load(bad):
        skipped.add(samples[row], ImageError(f"{samples[row].key!r} could not be decoded"))
    return np.load(folder / "pictures.npy", mmap_mode="r")


@dataclass(frozen=True)
class KeptTexts:
    """States of many texts.

    Attributes:
        states: `float16[tokens of all texts, dim]`.
        first: `int64[texts + 1]`, where those of each text begin.
        pooled: `float32[texts, pooled dim]`.
    """

    states: np.ndarray
    first: np.ndarray
    pooled: np.ndarray

    def read(self, numbers: Sequence[int], device: torch.device) -> TextStates:
        """The states of some texts, padded to the longest."""
        rows = [torch.from_numpy(np.array(self.states[self.first[i] : self.first[i + 1]])).float() for i in numbers]
        states = nn.utils.rnn.pad_sequence(rows, batch_first=True)  # [batch, tokens, dim]
        mask = torch.arange(states.shape[1])[None] < torch.tensor([len(row) for row in rows])[:, None]
        pooled = torch.from_numpy(self.pooled[list(numbers)])
        return TextStates(states.to(device), mask.to(device), pooled.to(device))


def keep_texts(folder: Path, texts: Sequence[str], encoder: TextEncoder) -> KeptTexts:
    """States of texts, computed once.

    Args:
        folder: where they are kept; what is there is used if it is of the same texts and encoder.
        texts: none of them too long.
        encoder: in evaluation mode.
    """
    weights = encoder.pair if encoder.states == "pair" else nn.ModuleList([encoder.pair, encoder.backbone])
    stamp: dict[str, object] = {"texts": _digest(texts), "states": encoder.states, "encoder": weights_sha256(weights)}

    def make() -> None:
        rows = encoder.token_ids(texts)
        first = np.cumsum([0, *(len(row) for row in rows)])
        states = open_memmap(folder / "states.npy", "w+", np.float16, (int(first[-1]), encoder.dim))
        pooled = np.zeros((len(texts), encoder.pooled_dim), np.float32)
        order = sorted(range(len(texts)), key=lambda i: len(rows[i]))  # a batch of like lengths has little padding
        with tqdm(total=len(texts), unit="text", desc="texts", disable=len(texts) < 1000) as bar:
            for start in range(0, len(order), BATCH):
                part = order[start : start + BATCH]
                found = encoder.encode([texts[i] for i in part])
                pooled[part] = found.pooled.float().cpu().numpy()
                for i, row in zip(part, found.states.half().cpu().numpy(), strict=True):
                    states[first[i] : first[i + 1]] = row[: len(rows[i])]
                bar.update(len(part))
        states.flush()
        np.save(folder / "first.npy", first)
        np.save(folder / "pooled.npy", pooled)

    _make_once(folder, stamp, make)
    states, first, pooled = (np.load(folder / f"{name}.npy", mmap_mode="r") for name in ("states", "first", "pooled"))
    return KeptTexts(states, np.array(first), np.array(pooled))


def keep_features(
    folder: Path,
    samples: Sequence[Sample],
    rows: Sequence[int],
    tower: Tower,
    transform: ImageTransform,
    device: torch.device,
) -> np.ndarray:
    """Patch features of a tower for the alignment, `float16[samples, ALIGN_DIM, ALIGN_GRID, ALIGN_GRID]`.

    Of the features only the first principal components are kept, each scaled to a variance of 1: they are a twentieth
    of the size, and say nearly as much.

    Args:
        folder: where they are kept; what is there is used if it is of the same photos and tower.
        samples: the photos.
        rows: numbers of those that are aligned; the others have zeros.
        tower: in evaluation mode.
        transform: of the tower.
        device: of the tower.
    """
    keys = _digest([str(len(samples)), *(samples[row].key for row in rows)])
    stamp: dict[str, object] = {"keys": keys, "tower": weights_sha256(tower), "size": transform.size}

    def grids(part: Sequence[int]) -> Iterable[Tensor]:
        """Batches of `float32[photos, dim, ALIGN_GRID, ALIGN_GRID]`."""
        for images in _batches([samples[row] for row in part], transform):
            grid = tower(images.to(device, memory_format=torch.channels_last)).permute(0, 3, 1, 2)
            yield nn.functional.adaptive_avg_pool2d(grid, ALIGN_GRID).float().cpu()

    @torch.no_grad()
    def make() -> None:
        known = torch.cat(list(grids(rows[:: max(1, len(rows) // 500)])))
        known = known.permute(0, 2, 3, 1).flatten(0, 2)  # [cells, dim]
        mean = known.mean(0)
        values, vectors = torch.linalg.eigh((known - mean).T @ (known - mean) / len(known))
        count = min(ALIGN_DIM, len(values))
        project = vectors[:, -count:] / values[-count:].clamp(min=1e-6).sqrt()  # [dim, count]
        shape = (len(samples), ALIGN_DIM, ALIGN_GRID, ALIGN_GRID)
        features = open_memmap(folder / "features.npy", "w+", np.float16, shape)
        features[:] = 0
        place = 0
        with tqdm(total=len(rows), unit="photo", desc="features", disable=len(rows) < 1000) as bar:
            for grid in grids(rows):
                found = torch.einsum("nchw,cd->ndhw", grid - mean[:, None, None], project)
                features[rows[place : place + len(grid)], :count] = found.half().numpy()
                place += len(grid)
                bar.update(len(grid))
        features.flush()

    _make_once(folder, stamp, make)
    return np.load(folder / "features.npy", mmap_mode="r")


def keep_vectors(folder: Path, samples: Sequence[Sample], encoders: PairEncoders) -> np.ndarray:
    """Vectors of photos in the space of the pair, `float16[samples, dim]`, unit length.

    Args:
        folder: where they are kept; what is there is used if it is of the same photos and encoders.
        samples: the photos; of those that cannot be decoded, the vectors mean nothing.
        encoders: in evaluation mode.
    """
    keys = _digest(sample.key for sample in samples)
    stamp: dict[str, object] = {"keys": keys, "encoders": encoders.weights_sha256()}

    @torch.no_grad()
    def make() -> None:
        vectors = open_memmap(folder / "vectors.npy", "w+", np.float16, (len(samples), encoders.dim))
        with tqdm(total=len(samples), unit="photo", desc="vectors", disable=len(samples) < 1000) as bar:
            for images in _batches(samples, encoders.image_transform):
                found = encoders.encode_image(images)
                vectors[bar.n : bar.n + len(found)] = found.half().cpu().numpy()
                bar.update(len(found))
        vectors.flush()

    _make_once(folder, stamp, make)
    return np.load(folder / "vectors.npy", mmap_mode="r")


def _batches(samples: Sequence[Sample], transform: Callable[[Image.Image], Tensor]) -> Iterator[Tensor]:
    """Middle squares of photos, `float32[BATCH, 3, height, width]` each; those that cannot be decoded are black."""

    def pixels(sample: Sample) -> Tensor:
        try:
            return transform(square(sample))
        except ImageError:
            return transform(Image.new("RGB", (1, 1)))

    ready = ordered_map(pixels, samples, ahead=2 * BATCH)
    while batch := list(islice(ready, BATCH)):
        yield torch.stack(batch)


def _make_once(folder: Path, stamp: dict[str, object], make: Callable[[], None]) -> None:
    """Make what belongs to a stamp, unless it is there."""
    file, text = folder / STAMP, json.dumps(stamp, indent=2) + "\n"
    if file.is_file() and file.read_text(encoding="utf-8") == text:
        return
    folder.mkdir(parents=True, exist_ok=True)
    file.unlink(missing_ok=True)
    make()
    write_text(file, text)


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode() + b"\0")
    return digest.hexdigest()
