"""The layers that the encoder and the decoder of the backbone are stacked from."""

import torch
from torch import Tensor, nn

from vlm.models.attention import Attention
from vlm.models.config import Seq2SeqConfig


class DropPath(nn.Module):
    """Drop a residual branch of whole samples in training (stochastic depth, arXiv:1603.09382)."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        if not self.rate or not self.training:
            return x
        keep = x.new_empty(x.shape[0], 1, 1).bernoulli_(1 - self.rate)
        return x * keep / (1 - self.rate)


def drop_path_rates(rate: float, layers: int) -> list[float]:
    """Rates from 0 at the first layer to `rate` at the last."""
    return [rate * i / max(1, layers - 1) for i in range(layers)]


class FeedForward(nn.Module):
    def __init__(self, config: Seq2SeqConfig):
        super().__init__()
        self.fc1 = nn.Linear(config.dim, config.ffn_dim)
        self.norm = nn.LayerNorm(config.ffn_dim) if config.scale_fc else nn.Identity()
        self.fc2 = nn.Linear(config.ffn_dim, config.dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(self.norm(nn.functional.gelu(self.fc1(x))))


class Block(nn.Module):
    """What encoder and decoder layers share: self attention, feed-forward, and the residual rule around them."""

    def __init__(self, config: Seq2SeqConfig, drop_path: float):
        super().__init__()
        self.pre_norm = config.pre_norm
        self.self_attn = self._attention(config)
        self.self_attn_norm = nn.LayerNorm(config.dim)
        self.self_attn_out_norm = nn.LayerNorm(config.dim) if config.scale_attn else nn.Identity()
        self.ffn = FeedForward(config)
        self.ffn_norm = nn.LayerNorm(config.dim)
        self.ffn_resid = nn.Parameter(torch.ones(config.dim)) if config.scale_resids else None
        self.dropout = nn.Dropout(config.dropout)
        self.drop_path = DropPath(drop_path)

    @staticmethod
    def _attention(config: Seq2SeqConfig) -> Attention:
        return Attention(
            config.dim, config.heads, config.attn_scale_factor, config.scale_heads, config.attention_dropout
        )

    def enter(self, x: Tensor, norm: nn.Module) -> Tensor:
        return norm(x) if self.pre_norm else x

    def leave(self, residual: Tensor, branch: Tensor, norm: nn.Module) -> Tensor:
        x = residual + (self.drop_path(self.dropout(branch)) if self.training else branch)
        return x if self.pre_norm else norm(x)

    def feed_forward(self, x: Tensor) -> Tensor:
        residual = x if self.ffn_resid is None else x * self.ffn_resid
        return self.leave(residual, self.ffn(self.enter(x, self.ffn_norm)), self.ffn_norm)


class EncoderBlock(Block):
    def forward(self, x: Tensor, bias: Tensor) -> Tensor:
        """`[batch, tokens, dim]` and a bias `[batch or 1, heads, tokens, tokens]` to `[batch, tokens, dim]`."""
        y = self.enter(x, self.self_attn_norm)
        y = self.self_attn_out_norm(self.self_attn(y, *self.self_attn.keys_values(y), bias))
        return self.feed_forward(self.leave(x, y, self.self_attn_norm))


class DecoderBlock(Block):
    def __init__(self, config: Seq2SeqConfig, drop_path: float):
        super().__init__(config, drop_path)
        self.cross_attn = self._attention(config)
        self.cross_attn_norm = nn.LayerNorm(config.dim)
        self.cross_attn_out_norm = nn.LayerNorm(config.dim) if config.scale_attn else nn.Identity()

    def forward(
        self,
        x: Tensor,
        self_bias: Tensor,
        cross: tuple[Tensor, Tensor],
        cross_bias: Tensor,
        past: Tensor | None = None,
        length: int = 0,
    ) -> Tensor:
        """One decoder layer.

        Args:
            x: `[rows, words, dim]`.
            self_bias: `[rows or 1, heads, words, length + words]`.
            cross: keys and values of the encoder states, `[batch, heads, tokens, head_dim]`.
            cross_bias: `[rows, batch or 1, heads, words, tokens]`.
            past: buffer of keys and values, `[2, rows, heads, max_length, head_dim]`, which this call extends in place.
            length: words already in `past`.

        Returns:
            `[rows, words, dim]`.
        """
        y = self.enter(x, self.self_attn_norm)
        keys, values = self.self_attn.keys_values(y)
        if past is not None:
            filled = past.narrow(3, 0, length + y.shape[1])
            filled.narrow(3, length, y.shape[1]).copy_(torch.stack([keys, values]))
            keys, values = filled.unbind()
        y = self.self_attn_out_norm(self.self_attn(y, keys, values, self_bias))
        x = self.leave(x, y, self.self_attn_norm)
        y = self.cross_attn_out_norm(self.cross_attn(self.enter(x, self.cross_attn_norm), *cross, cross_bias))
        x = self.leave(x, y, self.cross_attn_norm)
        return self.feed_forward(x)
