"""The contrastive pair of CLIP (Radford et al., 2021, arXiv:2103.00020): photos and sentences as vectors of one space.

The image side is the backbone's own tower with a head on the mean of its patches; the text side is a BERT encoder
(Devlin et al., 2019, arXiv:1810.04805) whose token states are averaged, so that MiniLM's sentence weights fit.
"""

import math

import torch
from torch import Tensor, nn

from vlm.models.config import PairConfig, TextConfig

PAD = 0  # BERT's padding id


class TextTower(nn.Module):
    """Token ids to a sentence vector: the mean over the tokens' states."""

    def __init__(self, config: TextConfig):
        super().__init__()
        self.words = nn.Embedding(config.vocab_size, config.dim)
        self.positions = nn.Embedding(config.max_positions, config.dim)
        self.segment = nn.Parameter(torch.zeros(config.dim))  # of the first segment; there is no second
        self.norm = nn.LayerNorm(config.dim, eps=1e-12)
        layer = nn.TransformerEncoderLayer(
            config.dim,
            config.heads,
            config.ffn_dim,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=1e-12,
            batch_first=True,
        )
        self.layers = nn.TransformerEncoder(layer, config.layers, enable_nested_tensor=False)

    def forward(self, ids: Tensor) -> Tensor:
        """`int64[batch, tokens]`, padded on the right with 0, to `[batch, dim]`."""
        return self.mean(self.states(ids), ids)

    def states(self, ids: Tensor) -> Tensor:
        """`int64[batch, tokens]`, padded on the right with 0, to token states, `[batch, tokens, dim]`."""
        x = self.norm(self.words(ids) + self.positions.weight[: ids.shape[1]] + self.segment)
        return self.layers(x, src_key_padding_mask=ids == PAD)

    @staticmethod
    def mean(states: Tensor, ids: Tensor) -> Tensor:
        """Mean of the states at real tokens: `[batch, tokens, dim]` to `[batch, dim]`."""
        real = (ids != PAD)[..., None].to(states.dtype)
        return (states * real).sum(1) / real.sum(1).clamp(min=1)


class ImageHead(nn.Module):
    """The mean of the patches to an image vector: a linear map, and a hidden layer beside it."""

    def __init__(self, patch_dim: int, dim: int, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(patch_dim)
        self.dropout = nn.Dropout(0.0)  # training sets it
        self.linear = nn.Linear(patch_dim, dim)
        self.hidden = nn.Sequential(
            nn.Linear(patch_dim, width), nn.GELU(), nn.Dropout(0.0), nn.Linear(width, dim, bias=False)
        )

    def forward(self, patches: Tensor) -> Tensor:
        """`[batch, patches, patch_dim]` to `[batch, dim]`."""
        x = self.dropout(self.norm(patches.mean(1)))
        return self.linear(x) + self.hidden(x)


class ContrastivePair(nn.Module):
    """All of the pair but the image tower, which belongs to the backbone.

    Attributes:
        logit_scale: logarithm of the factor on cosines, as in CLIP.
        logit_bias: added to them in the sigmoid loss (SigLIP, Zhai et al., 2023, arXiv:2303.15343).
    """

    def __init__(self, config: PairConfig):
        super().__init__()
        self.config = config
        self.image = ImageHead(config.patch_dim, config.dim, config.width)
        self.text = TextTower(config.text)
        self.text_proj = nn.Linear(config.text.dim, config.dim)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.logit_bias = nn.Parameter(torch.tensor(0.0))

    def encode_patches(self, grid: Tensor) -> Tensor:
        """The tower's `[batch, height, width, patch_dim]` to `[batch, dim]`, unit length."""
        return nn.functional.normalize(self.image(grid.flatten(1, 2)), dim=-1)

    def encode_text(self, ids: Tensor) -> Tensor:
        """`int64[batch, tokens]`, padded on the right with 0, to `[batch, dim]`, unit length."""
        return self.project_text(self.text(ids))

    def project_text(self, vectors: Tensor) -> Tensor:
        """The text tower's `[batch, text dim]` to `[batch, dim]`, unit length."""
        return nn.functional.normalize(self.text_proj(vectors), dim=-1)
