"""The Inception network behind published FIDs, from a file that the user brings: `--model inception:FILE`.

The network, its resizing included, is torch-fidelity's, which gives the features of the original TensorFlow graph of
2015. torchvision's `inception_v3` is another network, and its distances are not FIDs.
"""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vlm.errors import ArgumentError, ModelError
from vlm.files.digest import files_sha256
from vlm.image import load_image
from vlm.models.device import move

WANTED = (
    "give pt_inception-2015-12-05-6726825d.pth of github.com/mseitzer/pytorch-fid/releases, or the same file of "
    "torch-fidelity's, called weights-inception-2015-12-05-6726825d.pth"
)


class Inception:
    """Photos to the 2,048 numbers before the network's last layer.

    Args:
        file: the state dict.
        device: where it runs.

    Raises:
        ModelError: the file is missing, is not such a state dict, or holds more than tensors.
        ArgumentError: torch-fidelity is not installed, or the device cannot be used.
    """

    def __init__(self, file: str | Path, device: str):
        path = Path(file).expanduser()
        self.name, self.device = f"inception:{path.name}", device
        self.model = move(_network(path), device)
        self.weights = files_sha256([path])

    def prepare(self, image: Any) -> Tensor:
        """`uint8[3, height, width]`, of the photo's own size."""
        import numpy as np

        return torch.from_numpy(np.array(load_image(image))).permute(2, 0, 1)

    def settings(self, task: str) -> dict[str, Any]:
        return {"layer": LAYER}

    @torch.inference_mode()
    def features(self, images: Sequence[Tensor]) -> Tensor:
        """`float32[batch, 2048]`; photos of one size go through the network together."""
        sizes: dict[torch.Size, list[int]] = {}
        for number, image in enumerate(images):
            sizes.setdefault(image.shape, []).append(number)
        found = torch.empty(len(images), DIM, device=self.device)
        for numbers in sizes.values():
            (found[numbers],) = self.model(torch.stack([images[number] for number in numbers]).to(self.device))
        return found


LAYER, DIM = "2048", 2048  # torch-fidelity's name of the pooled features, and their number


def _network(path: Path) -> torch.nn.Module:
    """torch-fidelity's network with the tensors of a file."""
    try:
        from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
    except ModuleNotFoundError:
        raise ArgumentError("inception: needs torch-fidelity; install it: pip install 'vlm-foundation[fid]'") from None
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ModelError(f"no file at {str(path)!r}; {WANTED}") from None
    except Exception as error:  # torch raises whatever a damaged file makes of it
        raise ModelError(f"{str(path)!r} is not a file of tensors only ({_first_line(error)}); {WANTED}") from None
    # torch-fidelity unpickles whatever it is given: it is given tensors that have already been read safely
    safe = io.BytesIO()
    torch.save(tensors, safe)
    safe.seek(0)
    try:
        return FeatureExtractorInceptionV3("inception", [LAYER], feature_extractor_weights_path=safe)  # pyright: ignore
    except (RuntimeError, TypeError) as error:
        raise ModelError(f"{str(path)!r} is not FID's network ({_first_line(error)}); {WANTED}") from None


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else type(error).__name__
