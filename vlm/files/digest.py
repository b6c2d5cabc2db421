"""Digests that tell one set of weights, or one file, from another."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import nn


def files_sha256(files: Iterable[Path]) -> str:
    """SHA-256 of files one after the other, in hexadecimal; of a single file, what `sha256sum` prints."""
    digest = hashlib.sha256()
    for file in files:
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def weights_sha256(module: nn.Module) -> str:
    """SHA-256 of weights by name, type, shape and value, in hexadecimal: equal weights have an equal one."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
