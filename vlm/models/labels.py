"""A classifier on an image tower, with names for its classes, such as those of ImageNet."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LabelHead:
    """A linear classifier on the mean of a tower's patches.

    Attributes:
        names: of the classes.
        weight: `float32[classes, dim]`.
        bias: `float32[classes]`.
    """

    names: tuple[str, ...]
    weight: Tensor
    bias: Tensor

    def log_probabilities(self, features: Tensor) -> Tensor:
        """Of the classes, `float32[batch, classes]` on the CPU, from features `[batch, dim]` on any device."""
        return torch.log_softmax(features.float().cpu() @ self.weight.T + self.bias, dim=-1)
