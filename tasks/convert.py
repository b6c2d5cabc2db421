"""Write an OFA checkpoint as a model folder that loads without the original files."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import tyro

from tasks._command import command
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    checkpoint: tyro.conf.Positional[str]
    """fairseq's .pt file, a folder of OFA's port to transformers, or a hub id of that (OFA-Sys/ofa-base)."""
    out: tyro.conf.Positional[str]
    """Folder to write: model.safetensors, config.json and tokenizer.json."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary; without it, it must lie beside the checkpoint."""
    ema: bool = False
    """Take the averaged weights, with which the original evaluates VQA."""
    image_size: int | None = None
    """Side of the square that photos are resized to, where it shall differ from what the checkpoint says."""
    half: bool = False
    """Store float16: half the size, and captions that may differ in rare cases."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("convert", Args, lambda args: print(convert(args)), __doc__, argv)


def convert(args: Args) -> Path:
    """Write the folder and return it."""
    import torch

    from vlm.convert.ofa import load_ofa
    from vlm.hub import save_model

    out = Path(os.path.expanduser(args.out))
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ArgumentError(f"{args.out!r} exists and is no empty folder; name another")
    name = args.checkpoint.removeprefix("ofa:")
    model, tokenizer, image, asked = load_ofa(name, tokenizer=args.tokenizer, ema=args.ema, image_size=args.image_size)
    dtype = torch.float16 if args.half else torch.float32
    try:
        save_model(out, model, tokenizer, image, asked, dtype)
    except OSError as error:
        raise ArgumentError(f"{args.out!r} cannot be written: {error.strerror}; name another folder") from None
    return out


if __name__ == "__main__":
    sys.exit(main())
