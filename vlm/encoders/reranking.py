"""A second opinion on captions: how well each agrees with its photo, by the contrastive pair that shares the tower.

A beam's captions are all likely sentences; the pair, trained to tell photos apart, knows which of them is about this
one. The agreement is the cosine of CLIPScore (Hessel et al., 2021, arXiv:2104.08718).
"""

import math
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from vlm.decoding.answer import Answer
from vlm.encoders.pair import PairEncoders
from vlm.errors import ArgumentError


def check_weight(weight: object) -> float:
    """A weight of the agreement, as users give it.

    Raises:
        ArgumentError: it is not a number from 0 up.
    """
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < math.inf:
        raise ArgumentError(f"rerank={weight!r} is not a weight; give 0, which turns reranking off, or more")
    return float(weight)


@torch.inference_mode()
def rerank(
    encoders: PairEncoders, patches: Tensor, captions: Sequence[Sequence[Answer]], weight: float
) -> list[list[Answer]]:
    """Order the captions of each photo anew.

    Args:
        encoders: the pair.
        patches: of each photo, `[photos, height, width, patch_dim]`.
        captions: of each photo, one or more.
        weight: what a cosine of 1 is worth beside a caption's own score.

    Returns:
        The captions, the best first; `weight` times the cosine of photo and caption is added to their scores.
    """
    photos = encoders.pair.encode_patches(patches.to(encoders.pair.logit_scale))  # [photos, dim]
    texts = encoders.encode_text([caption.text for found in captions for caption in found])
    owners = torch.repeat_interleave(torch.tensor([len(found) for found in captions]))
    cosines = iter((photos[owners.to(photos.device)] * texts).sum(1).tolist())
    scored = [
        [replace(caption, score=caption.score + weight * next(cosines)) for caption in found] for found in captions
    ]
    return [sorted(found, key=lambda caption: -caption.score) for found in scored]
