"""Features of a tower's frozen trunk, computed once and kept on disk."""

import hashlib
import json
import os
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from vlm.data.augment import Augmentation, View, may_flip, random_view
from vlm.data.shards import Sample, Skipped
from vlm.data.stream import ordered_map
from vlm.errors import DataError, ImageError
from vlm.files.atomic import write_text
from vlm.image import ImageTransform, load_image
from vlm.models.towers import Tower, trunk_features, trunk_tensors


def view(
    sample: Sample, transform: ImageTransform, augmentation: Augmentation | None, seed: str
) -> tuple[Tensor, View]:
    """One view of a photo, `float32[3, size, size]`: the whole photo, or a random one that depends on `seed` alone."""
    image, part = load_image(sample.open(), name=sample.key), View()
    if augmentation is not None and not sample.intact:
        rng = random.Random(f"{seed}/{sample.key}")
        image, part = random_view(image, augmentation, rng, sample.squashed, may_flip(sample.texts()))
    return transform(image), part


class KeptFeatures:
    """Features of several views of each photo, on disk.

    Attributes:
        features: `float16[samples, views, channels, height, width]`, NaN for photos that cannot be decoded.
        views: `float32[samples, views, 5]`: the box of each `View`, and 1 where it is mirrored.
    """

    def __init__(self, features: np.ndarray, views: np.ndarray):
        self.features, self.views = features, views

    def read(self, row: int, number: int, sample: Sample) -> tuple[Tensor, View]:
        """Features of one view of a photo, `float32[channels, height, width]`, and the view.

        Raises:
            ImageError: the photo could not be decoded.
        """
        found = torch.from_numpy(np.array(self.features[row, number])).float()
        if found[0, 0, 0].isnan():
            raise ImageError(f"{sample.key!r} could not be decoded when its features were computed")
        left, top, right, bottom, mirrored = self.views[row, number].tolist()
        return found, View((left, top, right, bottom), mirrored > 0)


def cached_features(
    folder: Path,
    samples: Sequence[Sample],
    tower: Tower,
    stage: int,
    transform: ImageTransform,
    augmentation: Augmentation,
    views: int,
    seed: int,
    batch_size: int = 32,
    device: str = "cpu",
) -> KeptFeatures:
    """Trunk features of several views of each photo; view 0 is the whole photo, the others are random.

    Goes on where an interrupted call stopped. Another tower, stage, size or set of photos starts anew.

    Raises:
        DataError: too many photos cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(samples, tower, stage, transform, augmentation, views, seed)
    state, file, boxes = (folder / name for name in ("features.json", "features.npy", "views.npy"))
    done = 0
    if state.exists() and file.exists() and boxes.exists():
        saved = json.loads(state.read_text())
        done = saved["done"] if saved["stamp"] == stamp else 0
    tower = tower.eval()
    probe = trunk_features(tower, torch.zeros(1, 3, transform.size, transform.size, device=device), stage)
    shape = (len(samples), views, *probe.shape[1:])
    if not done:
        state.unlink(missing_ok=True)  # it must not vouch for the file that is overwritten now
    features = open_memmap(file, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    parts = open_memmap(boxes, mode="r+" if done else "w+", dtype=np.float32, shape=(*shape[:2], 5))
    _reserve(file)
    skipped = Skipped(len(samples))
    jobs = [(i, v) for i in range(len(samples)) for v in range(views)]

    def load(job: tuple[int, int]) -> tuple[Tensor, View]:
        i, v = job
        try:
            return view(samples[i], transform, augmentation if v else None, f"{seed}/view{v}")
        except ImageError as error:
            skipped.add(samples[i], error)
            return torch.full((3, transform.size, transform.size), torch.nan), View()

    flat = features.reshape(-1, *probe.shape[1:])
    images = ordered_map(load, jobs[done:], ahead=3 * batch_size)
    with tqdm(total=len(jobs), initial=done, unit="view", desc="features", disable=done == len(jobs)) as bar:
        while done < len(jobs):
            loaded = list(islice(images, batch_size))
            batch = torch.stack([image for image, _ in loaded])
            found = trunk_features(tower, batch.to(device), stage).cpu().numpy()
            found[batch[:, 0, 0, 0].isnan().numpy()] = np.nan  # a network may turn NaN into numbers
            flat[done : done + len(batch)] = found
            parts.reshape(-1, 5)[done : done + len(batch)] = [(*part.box, part.mirrored) for _, part in loaded]
            done += len(batch)
            bar.update(len(batch))
            if done == len(jobs) or done // batch_size % 50 == 0:
                features.flush()
                parts.flush()
                write_text(state, json.dumps({"stamp": stamp, "done": done}))
    return KeptFeatures(open_memmap(file, mode="r"), np.load(boxes))


def _reserve(file: Path) -> None:
    """Take the space of a mapped file: a process that writes to a map on a full disk is killed.

    Raises:
        DataError: there is not enough space.
    """
    size = file.stat().st_size
    try:
        with file.open("r+b") as stream:
            if hasattr(os, "posix_fallocate"):
                os.posix_fallocate(stream.fileno(), 0, size)
    except OSError as error:
        raise DataError(
            f"{str(file)!r} takes {size / 1e9:.1f} GB and cannot be written: {error.strerror}; free some space, or "
            "lower views"
        ) from None


def _stamp(samples: Sequence[Sample], tower: Tower, stage: int, *settings: object) -> str:
    digest = hashlib.sha256(repr((stage, settings)).encode())
    for sample in samples:
        digest.update(f"{sample.key} {len(sample.image)} {may_flip(sample.texts())}".encode())
    for tensor in trunk_tensors(tower, stage):  # the head may go on learning
        digest.update(tensor.detach().cpu().add(0).numpy().tobytes())  # averages turn -0 into 0
    return digest.hexdigest()
