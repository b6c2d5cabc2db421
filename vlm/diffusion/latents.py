"""Between pixels and what the denoiser draws: pixels themselves, or the latents of an autoencoder of diffusers."""

from typing import Any

import torch
from torch import Tensor

PROBE = 64  # side of the picture that tells how much smaller the latents are


def latent_scale(vae: Any) -> int:
    """Pixels per latent; 1 where there is no autoencoder."""
    if vae is None:
        return 1
    parameter = next(vae.parameters())
    picture = torch.zeros(1, 3, PROBE, PROBE, dtype=parameter.dtype, device=parameter.device)
    with torch.no_grad():
        return PROBE // encode(vae, picture).shape[-1]


def encode(vae: Any, pixels: Tensor) -> Tensor:
    """Pixels in [-1, 1], `[batch, 3, height, width]`, to what the denoiser draws, about as large as unit noise."""
    if vae is None:
        return pixels
    found = vae.encode(pixels.to(next(vae.parameters()).dtype))
    # of AutoencoderKL the mode: no noise is added to it
    latents = found.latent_dist.mode() if hasattr(found, "latent_dist") else getattr(found, "latents", None)
    latents = found.latent if latents is None else latents
    shift, scale = _normalisation(vae)
    return ((latents - shift) * scale).to(pixels.dtype)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """The inverse of `encode`; values may lie outside of [-1, 1]."""
    if vae is None:
        return latents
    shift, scale = _normalisation(vae)
    return vae.decode((latents / scale + shift).to(next(vae.parameters()).dtype), return_dict=False)[0]


def _normalisation(vae: Any) -> tuple[float, float]:
    config = vae.config
    return config.get("shift_factor") or 0.0, config.get("scaling_factor") or 1.0
