"""The decoder learns where to look for a box: its attention is drawn into the box that it shall write.

Nothing in the next-token loss of a box says which patches to look at, so that a model finds out late, if at all. Here
the attention of the tokens that write the box is supervised directly, as Liu et al. (2017, arXiv:1605.09553) do it for
captions.
"""

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from vlm.models.attention import Attention
from vlm.models.layers import DecoderBlock
from vlm.models.seq2seq import Seq2Seq


class AttentionSeen:
    """What the cross attention of some decoder layers was given in one pass."""

    def __init__(self) -> None:
        self.calls: list[tuple[Attention, Tensor, Tensor, Tensor | None]] = []

    def weights(self) -> Iterator[Tensor]:
        """By layer, `[rows, heads, tokens of the decoder, tokens of the encoder]`."""
        for attention, x, keys, bias in self.calls:
            yield attention.weights(x, keys, bias)


@contextmanager
def watched(backbone: Seq2Seq) -> Iterator[AttentionSeen]:
    """Keep what the cross attention of the decoder's inner layers is given (of all, where there are fewer than three).

    The first layer has not read the whole phrase yet, and the last one is busy with the token to write.
    """
    seen = AttentionSeen()
    layers = list(backbone.decoder.layers)

    def keep(module: nn.Module, given: tuple[Tensor, Tensor, Tensor, Tensor | None]) -> None:
        assert isinstance(module, Attention)
        x, keys, _, bias = given
        seen.calls.append((module, x, keys, bias))

    handles = []
    for layer in layers[1:-1] or layers:
        assert isinstance(layer, DecoderBlock)
        handles.append(layer.cross_attn.register_forward_pre_hook(keep))
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()


def box_attention_loss(weights: Tensor, tokens: Tensor, boxes: Tensor, patches: int) -> Tensor:
    """Mean of -log of the attention that lies in a box; a patch that the box covers in part counts in part.

    Args:
        weights: attention of one layer, `[rows, heads, tokens of the decoder, tokens of the encoder]`, the photo's
            patches first, row by row of a square grid. The mean over heads is drawn into the box.
        tokens: which tokens of the decoder write each box, `int64[rows, count]`.
        boxes: left, top, right and bottom as fractions of the photo, `float32[rows, 4]`.
        patches: how many tokens of the encoder are patches.
    """
    cover = box_cover(boxes, math.isqrt(patches)).flatten(1)  # [rows, patches]
    rows = torch.arange(len(tokens), device=tokens.device)[:, None]
    heads = weights.mean(1)[rows, tokens][..., :patches]  # [rows, count, patches]
    inside = (heads.float() * cover[:, None]).sum(-1)
    return -inside.clamp(min=1e-6).log().mean()


def box_cover(boxes: Tensor, side: int) -> Tensor:
    """How far boxes cover the cells of a grid, `float32[boxes, side, side]`, divided by the most covered cell's share.

    Args:
        boxes: as in `box_attention_loss`.
        side: cells a side.
    """
    edges = torch.arange(side + 1, device=boxes.device) / side

    def along(first: Tensor, last: Tensor) -> Tensor:
        ends = torch.minimum(last[:, None], edges[1:]) - torch.maximum(first[:, None], edges[:-1])
        return side * ends.clamp(min=0)

    left, top, right, bottom = boxes.unbind(1)
    cover = along(top, bottom)[:, :, None] * along(left, right)[:, None, :]
    return cover / cover.amax((1, 2), keepdim=True).clamp(min=1e-6)


def as_fractions(boxes: Sequence[Sequence[float] | None], device: torch.device) -> Tensor:
    """Boxes, `float32[boxes, 4]`; where there is none, the whole photo."""
    whole = (0.0, 0.0, 1.0, 1.0)
    return torch.tensor([whole if box is None else tuple(box) for box in boxes], device=device)
