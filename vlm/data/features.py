"""Features of a tower's frozen trunk, computed once and kept on disk."""

import hashlib
import json
import random
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor
from tqdm import tqdm

from vlm.data.augment import Augmentation, may_flip, random_view
from vlm.data.shards import Sample, Skipped
from vlm.data.stream import ordered_map
from vlm.errors import ImageError
from vlm.files.atomic import write_text
from vlm.image import ImageTransform, load_image
from vlm.models.towers import Tower, trunk_features, trunk_tensors


def view(sample: Sample, transform: ImageTransform, augmentation: Augmentation | None, seed: str) -> Tensor:
    """One view of a photo, `float32[3, size, size]`: the whole photo, or a random one that depends on `seed` alone."""
    image = load_image(sample.image, name=sample.key)
    if augmentation is not None:
        rng = random.Random(f"{seed}/{sample.key}")
        image = random_view(image, augmentation, rng, sample.squashed, may_flip(sample.captions))
    return transform(image)


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
) -> np.ndarray:
    """Trunk features of several views of each photo; view 0 is the whole photo, the others are random.

    Goes on where an interrupted call stopped. Another tower, stage, size or set of photos starts anew.

    Returns:
        A memory map `float16[samples, views, channels, height, width]`, NaN for photos that cannot be decoded.

    Raises:
        DataError: too many photos cannot be decoded.
    """
    folder.mkdir(parents=True, exist_ok=True)
    stamp = _stamp(samples, tower, stage, transform, augmentation, views, seed)
    state, file = folder / "features.json", folder / "features.npy"
    done = 0
    if state.exists() and file.exists():
        saved = json.loads(state.read_text())
        done = saved["done"] if saved["stamp"] == stamp else 0
    tower = tower.eval()
    probe = trunk_features(tower, torch.zeros(1, 3, transform.size, transform.size, device=device), stage)
    shape = (len(samples), views, *probe.shape[1:])
    if not done:
        state.unlink(missing_ok=True)  # it must not vouch for the file that is overwritten now
    features = open_memmap(file, mode="r+" if done else "w+", dtype=np.float16, shape=shape)
    skipped = Skipped(len(samples))
    jobs = [(i, v) for i in range(len(samples)) for v in range(views)]

    def load(job: tuple[int, int]) -> Tensor:
        i, v = job
        try:
            return view(samples[i], transform, augmentation if v else None, f"{seed}/view{v}")
        except ImageError as error:
            skipped.add(samples[i], error)
            return torch.full((3, transform.size, transform.size), torch.nan)

    flat = features.reshape(-1, *probe.shape[1:])
    images = ordered_map(load, jobs[done:], ahead=3 * batch_size)
    with tqdm(total=len(jobs), initial=done, unit="view", desc="features", disable=done == len(jobs)) as bar:
        while done < len(jobs):
            batch = torch.stack(list(islice(images, batch_size)))
            found = trunk_features(tower, batch.to(device), stage).cpu().numpy()
            found[batch[:, 0, 0, 0].isnan().numpy()] = np.nan  # a network may turn NaN into numbers
            flat[done : done + len(batch)] = found
            done += len(batch)
            bar.update(len(batch))
            if done == len(jobs) or done // batch_size % 50 == 0:
                features.flush()
                write_text(state, json.dumps({"stamp": stamp, "done": done}))
    return open_memmap(file, mode="r")


def _stamp(samples: Sequence[Sample], tower: Tower, stage: int, *settings: object) -> str:
    digest = hashlib.sha256(repr((stage, settings)).encode())
    for sample in samples:
        digest.update(f"{sample.key} {len(sample.image)}".encode())
    for tensor in trunk_tensors(tower, stage):  # the head may go on learning
        digest.update(tensor.detach().cpu().add(0).numpy().tobytes())  # averages turn -0 into 0
    return digest.hexdigest()
