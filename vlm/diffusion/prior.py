"""From the vector of a text to that of a photo that it describes: the prior of DALL-E 2 (arXiv:2204.06125), small.

The vectors of texts and of photos lie in two different parts of a pair's space, so that a denoiser that reads photos'
vectors cannot simply be given a text's. With a pair as small as ours, the best linear map is enough: of the sentences
that belong to a photo no more can be known than their mean photo, which is what least squares finds.
"""

import numpy as np
import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

RIDGE = 1e-3  # share of a unit vector's square that is added to each direction, so that rare ones stay small


class Prior(ModelMixin, ConfigMixin):
    """A linear map between vectors of the pair.

    Args:
        dim: of the pair's space.
    """

    config_name = "config.json"

    def __init__(self, dim: int):
        super().__init__()
        self.register_to_config(dim=dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, texts: Tensor) -> Tensor:
        """Vectors of texts, `[batch, dim]` of unit length, to those of photos, likewise."""
        return nn.functional.normalize(self.proj(texts), dim=-1)


def fit_prior(texts: np.ndarray, photos: np.ndarray) -> Prior:
    """The map with the least squared error, ridge regression.

    Args:
        texts: vectors of the pair, `float32[pairs, dim]`.
        photos: those of the photos that belong to them, of the same shape.
    """
    x, y = texts.astype(np.float64), photos.astype(np.float64)
    x_mean, y_mean = x.mean(0), y.mean(0)
    gram = (x - x_mean).T @ (x - x_mean) / len(x)
    weight = np.linalg.solve(gram + RIDGE * np.eye(len(gram)), (x - x_mean).T @ (y - y_mean) / len(x))  # [in, out]
    prior = Prior(texts.shape[1])
    with torch.no_grad():
        prior.proj.weight.copy_(torch.from_numpy(weight.T))
        prior.proj.bias.copy_(torch.from_numpy(y_mean - x_mean @ weight))
    return prior
