"""The training objective: rectified flow whose network predicts the clean picture.

A noisy picture is `(1 - share) * picture + share * noise` (rectified flow, Liu et al., 2022, arXiv:2209.03003). The
network predicts the picture, and the loss compares velocities, `noise - picture` (JiT, Li and He, 2025,
arXiv:2511.13720, table 1: x-prediction with v-loss).
"""

import torch
from torch import Tensor

from vlm.models.denoiser import LEAST_NOISE


def draw_shares(count: int, mean: float, std: float, generator: torch.Generator) -> Tensor:
    """Shares of noise to train on, `float32[count]` in (0, 1): logit-normal (SD3, arXiv:2403.03206, equation 19).

    Args:
        count: how many.
        mean: of the logits; above 0, more than half of the picture is noise more often than not.
        std: of the logits.
        generator: of the random numbers.
    """
    return torch.sigmoid(mean + std * torch.randn(count, generator=generator))


def add_noise(clean: Tensor, noise: Tensor, share: Tensor) -> Tensor:
    """`(1 - share) * clean + share * noise`: `[batch, channels, height, width]`, with `share` `float32[batch]`."""
    share = share[:, None, None, None]
    return (1 - share) * clean + share * noise


def velocity_loss(predicted: Tensor, clean: Tensor, share: Tensor) -> Tensor:
    """Mean squared error of the velocities that follow from clean pictures, `float32[batch]`.

    Both velocities come from the same noisy picture, so that their difference is that of the pictures, divided by the
    share of noise.

    Args:
        predicted: `[batch, channels, height, width]`.
        clean: the same shape.
        share: of noise, `float32[batch]`.
    """
    error = (predicted.float() - clean.float()).square().flatten(1).mean(1)
    return error / share.clamp(min=LEAST_NOISE).square()


def alignment_loss(projected: Tensor, features: Tensor) -> Tensor:
    """1 minus the mean cosine between inner patches and a tower's features (REPA, Yu et al., 2024, arXiv:2410.06940).

    Args:
        projected: `[batch, patches, dim]`.
        features: `[batch, patches, dim]`.

    Returns:
        A number.
    """
    return 1 - torch.nn.functional.cosine_similarity(projected.float(), features.float(), dim=-1).mean()
