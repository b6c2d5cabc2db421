"""The transformer that draws: a noisy picture, the share of noise in it and a text, to a picture with less noise.

A diffusion transformer (DiT, Peebles and Xie, 2022, arXiv:2212.09748): patches of the picture attend to each other and,
by cross-attention, to the states of the text; the share of noise and the pooled text modulate the norms (adaLN-zero).
As in JiT (Li and He, 2025, arXiv:2511.13720), the network predicts the clean picture, from which the velocity of
rectified flow follows; queries and keys are normalised, and the feed-forward is SwiGLU. As in U-ViT (Bao et al., 2022,
arXiv:2209.12152), convolutions at the end smooth the borders of patches; here they also see the noisy picture.

It is a model of diffusers, so that `save_pretrained`, `from_pretrained`, schedulers and pipelines work. Of diffusers'
own classes, `PixArtTransformer2DModel` has no pooled text, and `SD3Transformer2DModel` processes the text in every
layer, which doubles the weights, and cannot hide padding.
"""

import math
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn

from vlm.models.attention import merge_heads, split_heads
from vlm.models.config import DenoiserConfig

TIMESTEPS = 1000  # of diffusers' schedulers: a timestep is the share of noise times this
LEAST_NOISE = 0.05  # below it, the velocity is computed as if there was this share of noise (JiT)
TIME_DIM = 256  # sines and cosines of the share of noise
REFINE_DIM = 32  # channels between the two convolutions at the end
EXTENT = 16.0  # a picture is this many units wide for the rotary positions, whatever its number of patches


@dataclass
class Denoised:
    """What the denoiser says, under the name that diffusers' code expects.

    Attributes:
        sample: velocity, `[batch, channels, height, width]`: what a step towards less noise subtracts.
    """

    sample: Tensor


class Denoiser(ModelMixin, ConfigMixin):
    """The whole network.

    Args:
        sizes: a `DenoiserConfig`, or its fields as `config.json` holds them.
    """

    config_name = "config.json"
    _no_split_modules = ("Block",)  # of accelerate, for several devices

    def __init__(self, sizes: DenoiserConfig | dict[str, Any]):
        super().__init__()
        self.sizes = sizes = sizes if isinstance(sizes, DenoiserConfig) else DenoiserConfig(**sizes)
        self.register_to_config(sizes=asdict(sizes))
        dim, patch = sizes.dim, sizes.channels * sizes.patch_size**2
        self.patch_proj = nn.Linear(patch, dim)
        self.text_proj = nn.Sequential(nn.LayerNorm(sizes.text_dim), nn.Linear(sizes.text_dim, dim))
        self.pooled_proj = nn.Linear(sizes.pooled_dim, dim)
        self.time_proj = nn.Sequential(nn.Linear(TIME_DIM, dim), nn.SiLU(), nn.Linear(dim, dim))
        self.blocks = nn.ModuleList(Block(dim, sizes.heads) for _ in range(sizes.layers))
        self.modulation = nn.Linear(dim, 2 * dim)
        self.out = nn.Linear(dim, patch)
        channels = sizes.channels
        last = nn.Conv2d(REFINE_DIM, channels, 3, padding=1)
        self.refine = nn.Sequential(nn.Conv2d(2 * channels, REFINE_DIM, 3, padding=1), nn.SiLU(), last)
        for layer in (self.modulation, self.out, last):  # adaLN-zero: an untrained network predicts nothing
            for parameter in layer.parameters():
                nn.init.zeros_(parameter)

    def resize(self, size: int) -> None:
        """Change the side of the pictures that are drawn by default; the weights fit any."""
        self.sizes = replace(self.sizes, size=size)
        self.register_to_config(sizes=asdict(self.sizes))

    def forward(
        self,
        sample: Tensor,
        timestep: Tensor | float,
        encoder_hidden_states: Tensor,
        pooled_projections: Tensor,
        encoder_attention_mask: Tensor | None = None,
        return_dict: bool = True,
    ) -> Denoised | tuple[Tensor]:
        """The velocity `noise - picture` of rectified flow, in the terms of diffusers' schedulers.

        Args:
            sample: `[batch, channels, height, width]`, `(1 - noise share) * picture + noise share * noise`.
            timestep: share of noise times 1000, a number or `[batch]`.
            encoder_hidden_states: states of the text, `[batch, tokens, text_dim]`.
            pooled_projections: the text as one vector, `[batch, pooled_dim]`.
            encoder_attention_mask: `bool[batch, tokens]`, True at real tokens; None where all are real.
            return_dict: whether to return `Denoised` instead of a tuple.
        """
        share = torch.as_tensor(timestep, dtype=torch.float32, device=sample.device) / TIMESTEPS
        share = share.expand(len(sample))
        clean, _ = self.predict(sample, share, encoder_hidden_states, pooled_projections, encoder_attention_mask)
        found = velocity(sample, clean, share).to(sample.dtype)
        return Denoised(found) if return_dict else (found,)

    def predict(
        self,
        sample: Tensor,
        share: Tensor,
        states: Tensor,
        pooled: Tensor,
        mask: Tensor | None = None,
        layer: int = 0,
    ) -> tuple[Tensor, Tensor | None]:
        """The clean picture, and the patches after a layer.

        Args:
            sample: `[batch, channels, height, width]`.
            share: of noise, `float32[batch]`, 0 to 1.
            states: of the text, `[batch, tokens, text_dim]`.
            pooled: `[batch, pooled_dim]`.
            mask: `bool[batch, tokens]`, True at real tokens.
            layer: 1 for the first; 0: none.

        Returns:
            `[batch, channels, height, width]`, and `[batch, patches, dim]` or None.
        """
        size = self.sizes.patch_size
        rows, columns = sample.shape[2] // size, sample.shape[3] // size
        assert sample.shape[2:] == (rows * size, columns * size), "callers check sizes"
        dtype = self.patch_proj.weight.dtype
        x = self.patch_proj(to_patches(sample.to(dtype), size))  # [batch, patches, dim]
        grid = grid_positions(rows, columns, x.device)  # [patches, 2]
        x = x + sinusoids(grid * EXTENT, x.shape[-1] // 2, EXTENT).flatten(1).to(dtype)
        turns = rotations(grid * EXTENT, x.shape[-1] // self.sizes.heads).to(dtype)
        text = self.text_proj(states.to(dtype))
        condition = self.time_proj(sinusoids(share * TIMESTEPS, TIME_DIM, 10_000.0).to(dtype))
        condition = nn.functional.silu(condition + self.pooled_proj(pooled.to(dtype)))  # [batch, dim]
        hidden = None if mask is None else mask[:, None, None, :]  # [batch, 1, 1, tokens]
        inner = None
        for number, block in enumerate(self.blocks, 1):
            x = block(x, condition, turns, text, hidden)
            if number == layer:
                inner = x
        shift, scale = self.modulation(condition)[:, None].chunk(2, dim=-1)
        clean = from_patches(self.out(modulate(x, shift, scale)), rows, columns, size)
        return clean + self.refine(torch.cat([clean, sample.to(dtype)], dim=1)), inner


class Block(nn.Module):
    """Patches attend to each other, then to the text; then the feed-forward."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.modulation = nn.Linear(dim, 6 * dim)
        self.attn = SelfAttention(dim, heads)
        self.cross_norm = nn.LayerNorm(dim)
        self.cross = CrossAttention(dim, heads)
        hidden = 64 * round(dim * 8 / 3 / 64) or dim  # SwiGLU has three matrices where others have two
        self.gate_up = nn.Linear(dim, 2 * hidden)
        self.down = nn.Linear(hidden, dim)
        for layer in (self.modulation, self.cross.out_proj):  # at first each block is the identity
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)

    def forward(self, x: Tensor, condition: Tensor, turns: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        """One layer.

        Args:
            x: `[batch, patches, dim]`.
            condition: `[batch, dim]`.
            turns: from `rotations`.
            text: `[batch, tokens, dim]`.
            mask: `bool[batch, 1, 1, tokens]`, True at real tokens.
        """
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)[:, None].chunk(6, dim=-1)
        x = x + gate1 * self.attn(modulate(x, shift1, scale1), turns)
        x = x + self.cross(self.cross_norm(x), text, mask)
        gate, up = self.gate_up(modulate(x, shift2, scale2)).chunk(2, dim=-1)
        return x + gate2 * self.down(nn.functional.silu(gate) * up)


class SelfAttention(nn.Module):
    """Attention between patches with rotary positions; queries and keys have unit size (ViT-22B, arXiv:2302.05442)."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, turns: Tensor) -> Tensor:
        q, k, v = (split_heads(part.contiguous(), self.heads) for part in self.qkv(x).chunk(3, dim=-1))
        q, k = rotate(normed(q, self.q_norm), turns), rotate(normed(k, self.k_norm), turns)
        return self.out_proj(merge_heads(nn.functional.scaled_dot_product_attention(q.to(v), k.to(v), v)))


class CrossAttention(nn.Module):
    """Attention from patches to the text."""

    def __init__(self, dim: int, heads: int):
        super().__init__()
        self.heads = heads
        self.q_proj = nn.Linear(dim, dim)
        self.kv_proj = nn.Linear(dim, 2 * dim)
        self.q_norm, self.k_norm = nn.RMSNorm(dim // heads, eps=1e-6), nn.RMSNorm(dim // heads, eps=1e-6)
        self.out_proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, text: Tensor, mask: Tensor | None) -> Tensor:
        k, v = (split_heads(part.contiguous(), self.heads) for part in self.kv_proj(text).chunk(2, dim=-1))
        q = normed(split_heads(self.q_proj(x), self.heads), self.q_norm)
        y = nn.functional.scaled_dot_product_attention(q.to(v), normed(k, self.k_norm).to(v), v, mask)
        return self.out_proj(merge_heads(y))


def normed(x: Tensor, norm: nn.RMSNorm) -> Tensor:
    """The norm in the type of its weights: under autocast, `x` may be of another."""
    return norm(x.to(norm.weight))


def modulate(x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
    """Layer norm whose weights follow from the condition: `[batch, patches, dim]` with `[batch, 1, dim]` each."""
    return nn.functional.layer_norm(x, x.shape[-1:], eps=1e-6) * (1 + scale) + shift


def velocity(sample: Tensor, clean: Tensor, share: Tensor) -> Tensor:
    """`noise - picture` where `sample = (1 - share) * clean + share * noise`, in float32.

    Args:
        sample: `[batch, channels, height, width]`.
        clean: the same shape.
        share: of noise, `float32[batch]`.
    """
    return (sample.float() - clean.float()) / share.clamp(min=LEAST_NOISE)[:, None, None, None]


def to_patches(x: Tensor, size: int) -> Tensor:
    """`[batch, channels, height, width]` to `[batch, patches, channels * size * size]`, row by row."""
    x = x.unflatten(3, (-1, size)).unflatten(2, (-1, size))  # [batch, channels, rows, size, columns, size]
    return x.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)


def from_patches(x: Tensor, rows: int, columns: int, size: int) -> Tensor:
    """The inverse of `to_patches`."""
    x = x.unflatten(2, (-1, size, size)).unflatten(1, (rows, columns))  # [batch, rows, columns, channels, size, size]
    return x.permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)


def grid_positions(rows: int, columns: int, device: torch.device) -> Tensor:
    """Centres of patches as fractions of the longer side, around 0: `float32[patches, 2]`, y before x.

    A picture of more pixels has its patches at the same places with others between them, so that a network grows from
    small pictures to larger ones.
    """
    y = torch.arange(rows, device=device) + 0.5 - rows / 2
    x = torch.arange(columns, device=device) + 0.5 - columns / 2
    return torch.cartesian_prod(y, x) / max(rows, columns)


def sinusoids(values: Tensor, dim: int, longest: float) -> Tensor:
    """`float32[...]` to `float32[..., dim]`: cosines and sines with periods from 2 pi to `longest` times that."""
    rates = torch.exp(-math.log(longest) * torch.arange(dim // 2, device=values.device) / (dim // 2))
    angles = values[..., None].float() * rates
    return nn.functional.pad(torch.cat([angles.cos(), angles.sin()], dim=-1), (0, dim % 2))


def rotations(positions: Tensor, head_dim: int) -> Tensor:
    """Rotary positions (RoFormer, arXiv:2104.09864), half of the channels for rows and half for columns.

    Args:
        positions: `float32[patches, 2]`.
        head_dim: channels of a head, a multiple of 4.

    Returns:
        Cosines and sines, `float32[2, patches, head_dim // 2]`, one for each pair of channels.
    """
    rates = 100.0 ** (-torch.arange(head_dim // 4, device=positions.device) / (head_dim // 4))
    angles = (positions[:, :, None] * rates).flatten(1)  # [patches, head_dim / 2]
    return torch.stack([angles.cos(), angles.sin()])


def rotate(x: Tensor, turns: Tensor) -> Tensor:
    """Turn the pairs of channels (i, i + head_dim / 2) of `[batch, heads, patches, head_dim]`."""
    cos, sin = turns
    a, b = x.chunk(2, dim=-1)
    return torch.cat([a * cos - b * sin, a * sin + b * cos], dim=-1)
