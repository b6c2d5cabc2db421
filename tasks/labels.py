"""Fit the 1,000 labels of ImageNet to a model, so that vlm classify needs no labels of yours."""

import random
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from tasks._command import command, no_collections
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    model: str
    """Folder of a model that was trained from the ImageNet weights that come with the extra `train`, as tiny was;
    labels.json and labels.safetensors are written into it."""
    data: tuple[str, ...]
    """Folder of .tar shards of photos, or several folders. The photos need no labels."""
    photos: int = 2000
    """How many photos to read, drawn at random."""
    seed: int = 0
    """Random seed of the draw."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("labels", Args, run, __doc__, argv)


def run(args: Args) -> None:
    """Fit the labels and write them."""
    if args.photos < 1:
        raise ArgumentError(f"--photos {args.photos} is below 1; give 1,000 or more")
    with no_collections():
        from vlm.convert.imagenet import TOWER, recover_labels
        from vlm.data.shards import find_shards, read_samples
        from vlm.files.bundle import load_bundle, save_labels
        from vlm.models.towers import StagedTower

        bundle = load_bundle(args.model)
    tower = bundle.module.tower
    if bundle.module.tower_config.name != TOWER or bundle.folder is None or not isinstance(tower, StagedTower):
        raise ArgumentError(f"--model {args.model!r} has no tower of the kind that tiny has, {TOWER}; choose another")
    shards = [shard for folder in args.data for shard in find_shards(folder)]
    samples = [sample for sample in read_samples(shards) if sample.split != "test"]
    chosen = random.Random(args.seed).sample(samples, min(args.photos, len(samples)))
    head = recover_labels(tower, bundle.transform, [sample.open() for sample in chosen], show_progress_bar=True)
    save_labels(bundle.folder, head)
    print(bundle.folder / "labels.safetensors")


if __name__ == "__main__":
    sys.exit(main())
