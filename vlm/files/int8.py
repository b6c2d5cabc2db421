"""Matrices stored as int8 with one scale a row."""

import torch
from torch import Tensor

SCALE = "_scale"  # added to the name of an int8 matrix: the name of its scales


def to_int8(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """`float32[rows, columns]` to `int8[rows, columns]` and `float32[rows, 1]`, whose product is nearest to it."""
    scale = (matrix.abs().amax(1, keepdim=True) / 127).clamp(min=torch.finfo(torch.float32).tiny)
    return (matrix / scale).round().to(torch.int8), scale


def from_int8(matrix: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """The inverse of `to_int8`.

    Raises:
        ValueError: the matrix is not int8, or does not have one scale a row.
    """
    if scale.shape != (len(matrix), 1) or matrix.dtype != torch.int8:
        raise ValueError(f"has scales of shape {tuple(scale.shape)}, not one for each row of int8")
    return matrix.to(dtype) * scale.to(dtype)
