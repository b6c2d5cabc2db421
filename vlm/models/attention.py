"""Attention with an additive bias, and the position biases that OFA adds to it.

OFA (Wang et al., 2022, arXiv:2202.03052) keeps positions out of the embeddings. Every attention layer instead adds two
biases to its logits: an absolute one, `q(p) k(p)^T` of the position vectors, shared by all layers ("untied", TUPE,
arXiv:2006.15595), and a relative one, looked up per layer in a table of bucketed distances.
"""

import math

import torch
from torch import Tensor, nn

MAX_DISTANCE = 1024  # text distances saturate here whatever the model's length, as in the released checkpoints


def split_heads(x: Tensor, heads: int) -> Tensor:
    """`[batch, tokens, dim]` to `[batch, heads, tokens, head_dim]`."""
    return x.view(*x.shape[:-1], heads, -1).transpose(1, 2)


def merge_heads(x: Tensor) -> Tensor:
    """`[batch, heads, tokens, head_dim]` to `[batch, tokens, dim]`."""
    return x.transpose(1, 2).flatten(2)


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None, dropout: float = 0.0) -> Tensor:
    """Softmax attention over already scaled queries.

    Args:
        q: `[batch, heads, queries, head_dim]`, already multiplied by the attention scale.
        k: `[batch, heads, keys, head_dim]`.
        v: `[batch, heads, keys, head_dim]`.
        bias: added to the logits, broadcastable to `[batch, heads, queries, keys]`; -inf hides a key.
        dropout: probability of dropping an attention weight.

    Returns:
        `[batch, heads, queries, head_dim]`.
    """
    if not torch.is_grad_enabled() and not dropout and (bias is None or bias.dtype == q.dtype):
        # the fused kernel, which never writes the weights down; with a gradient, or a bias of higher precision than
        # the queries, it has no advantage or rounds the bias
        return nn.functional.scaled_dot_product_attention(q, k, v, bias, scale=1.0)
    logits = q @ k.transpose(-1, -2)
    if bias is not None:
        logits = logits + bias
    weights = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32)).to(v.dtype)
    if dropout:
        weights = nn.functional.dropout(weights, dropout)
    return weights @ v


class Attention(nn.Module):
    """Multi-head attention with a learned scale per head (NormFormer, arXiv:2110.09456)."""

    def __init__(self, dim: int, heads: int, scale_factor: float, scale_heads: bool = True, dropout: float = 0.0):
        super().__init__()
        self.heads = heads
        # content and position logits share one softmax, hence the factor of two inside the root in OFA
        self.scale = (dim // heads * scale_factor) ** -0.5
        self.dropout = dropout
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)
        self.v_proj = nn.Linear(dim, dim)
        self.out_proj = nn.Linear(dim, dim)
        self.head_scale = nn.Parameter(torch.ones(heads)) if scale_heads else None

    def keys_values(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Project what is attended to: `[batch, keys, dim]` to two `[batch, heads, keys, head_dim]`."""
        return split_heads(self.k_proj(x), self.heads), split_heads(self.v_proj(x), self.heads)

    def forward(self, x: Tensor, keys: Tensor, values: Tensor, bias: Tensor | None) -> Tensor:
        """Attend from `x` to keys and values that `keys_values` made.

        Args:
            x: `[rows, queries, dim]`, where rows is a multiple of batch: rows of one sample follow each other
                (captions of one image, beams of one search) and read the same keys without copying them.
            keys: `[batch, heads, keys, head_dim]`.
            values: `[batch, heads, keys, head_dim]`.
            bias: `[rows, batch or 1, heads, queries, keys]`.

        Returns:
            `[rows, queries, dim]`.
        """
        q, bias = self._queries(x, keys, bias)
        y = attend(q, keys, values, bias, self.dropout if self.training else 0.0)
        if self.head_scale is not None:
            y = y * self.head_scale.to(y.dtype).view(-1, 1, 1)
        return self.out_proj(merge_heads(y).view_as(x))

    def weights(self, x: Tensor, keys: Tensor, bias: Tensor | None) -> Tensor:
        """How `forward` weighs the keys, without dropout, `[rows, heads, queries, keys]`; arguments as there."""
        q, bias = self._queries(x, keys, bias)
        logits = q @ keys.transpose(-1, -2)
        weights = (logits if bias is None else logits + bias).softmax(-1)
        return weights.unflatten(2, (-1, x.shape[1])).transpose(1, 2).flatten(0, 1)

    def _queries(self, x: Tensor, keys: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Scaled queries and the bias; rows of one sample stand side by side, to its keys one long row of queries."""
        batch, group = keys.shape[0], x.shape[0] // keys.shape[0]
        q = split_heads((self.q_proj(x) * self.scale).reshape(batch, -1, x.shape[-1]), self.heads)
        return q, self._group_bias(bias, batch, group) if bias is not None and group > 1 else bias

    @staticmethod
    def _group_bias(bias: Tensor, batch: int, group: int) -> Tensor:
        """`[rows, batch or 1, heads, queries, keys]` to what adds to `[batch, heads, group * queries, keys]`."""
        if bias.shape[0] == batch * group:
            return bias.unflatten(0, (-1, group)).transpose(1, 2).flatten(2, 3)
        return bias if bias.shape[2] == 1 else bias.repeat(1, 1, group, 1)


class AbsoluteBias(nn.Module):
    """Attention logits between position vectors, computed once and added in every layer."""

    def __init__(self, dim: int, heads: int, scale_factor: float):
        super().__init__()
        self.heads = heads
        self.scale = (dim // heads * scale_factor) ** -0.5
        self.q_proj = nn.Linear(dim, dim)
        self.k_proj = nn.Linear(dim, dim)

    def forward(self, query_positions: Tensor, key_positions: Tensor) -> Tensor:
        """`[a, queries, dim]` and `[b, keys, dim]` (a, b: batch or 1) to `[batch or 1, heads, queries, keys]`."""
        q = split_heads(self.q_proj(query_positions) * self.scale, self.heads)
        k = split_heads(self.k_proj(key_positions), self.heads)
        return q @ k.transpose(-1, -2)


def text_buckets(length: int, bucket_size: int, device: torch.device | None = None) -> Tensor:
    """Bucket of each pair of text positions: exact up to half of `bucket_size`, logarithmic beyond.

    Returns:
        `int64[length, length]` indexed `[query, key]`, values in `[0, 2 * bucket_size - 2]`.
    """
    position = torch.arange(length, device=device)
    distance = position[:, None] - position[None, :]
    mid = bucket_size // 2
    steps = torch.log(distance.abs().clamp(min=1) / mid) / math.log((MAX_DISTANCE - 1) / mid) * (mid - 1)
    far = distance.sign() * (steps.ceil().long() + mid)
    return torch.where(distance.abs() <= mid, distance, far) + bucket_size - 1


def image_position_ids(height: int, width: int, bucket_size: int, device: torch.device | None = None) -> Tensor:
    """Position ids of a patch grid, row by row: `y * bucket_size + x + 1` (id 0 is no patch).

    Returns:
        `int64[height * width]`.
    """
    y = torch.arange(height, device=device)
    x = torch.arange(width, device=device)
    return (y[:, None] * bucket_size + x[None, :] + 1).flatten()


def image_buckets(ids: Tensor, bucket_size: int) -> Tensor:
    """Bucket of each pair of image positions: one per offset (dy, dx), and three for pairs with id 0.

    Args:
        ids: `int64[patches]` from `image_position_ids`; 0 stands for the start token of a code sequence.
        bucket_size: the largest grid side.

    Returns:
        `int64[patches, patches]` indexed `[query, key]`, values in `[0, (2 * bucket_size - 1)**2 + 2]`.
    """
    side = 2 * bucket_size - 1
    y, x = (ids - 1) // bucket_size, (ids - 1) % bucket_size
    dy = y[:, None] - y[None, :] + bucket_size - 1
    dx = x[:, None] - x[None, :] + bucket_size - 1
    buckets = dy * side + dx
    query_none, key_none = (ids == 0)[:, None], (ids == 0)[None, :]
    buckets = torch.where(query_none, side * side, buckets)
    buckets = torch.where(key_none, side * side + 1, buckets)
    return torch.where(query_none & key_none, side * side + 2, buckets)


def sinusoids(positions: Tensor, dim: int, longest: float) -> Tensor:
    """Sines and cosines of positions, `float32[positions, dim]`, of variance 1/2 (Vaswani et al., 2017, section 3.5).

    Args:
        positions: `float32[positions]`.
        dim: width.
        longest: the longest wavelength; the shortest is 4 positions.
    """
    rates = 2 * math.pi / longest * (longest / 4) ** torch.linspace(0, 1, (dim + 1) // 2, device=positions.device)
    angles = positions[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], 1)[:, :dim]


def grid_sinusoids(side: int, dim: int) -> Tensor:
    """A smooth table for the positions of `image_position_ids`, `float32[side**2 + 1, dim]`, each value of variance 1.

    Half of the values tell the row, half the column; id 0, no patch, is all zeros.
    """
    line = sinusoids(torch.arange(side).float(), (dim + 1) // 2, 2 * side) * math.sqrt(2)
    rows, columns = line[:, None].expand(side, side, -1), line[None].expand(side, side, -1)
    return nn.functional.pad(torch.cat([rows, columns], -1)[..., :dim].flatten(0, 1), (0, 0, 1, 0))


class RelativeBias(nn.Module):
    """One layer's tables of relative position biases, for text and for the image grid."""

    def __init__(self, heads: int, token_bucket_size: int, image_bucket_size: int):
        super().__init__()
        self.text = nn.Embedding(2 * token_bucket_size - 1, heads)
        self.image = nn.Embedding((2 * image_bucket_size - 1) ** 2 + 3, heads)

    @staticmethod
    def look_up(table: nn.Embedding, buckets: Tensor) -> Tensor:
        """`int64[queries, keys]` buckets to `[1, heads, queries, keys]`."""
        return table(buckets).permute(2, 0, 1).unsqueeze(0)
