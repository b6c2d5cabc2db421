"""Write an OFA checkpoint as a model folder that loads without the original files."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import command
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    checkpoint: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="CHECKPOINT")]
    """A fairseq .pt file, or a folder or hub id in OFA's transformers format (OFA-Sys/ofa-base)."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write: model.safetensors, config.json and tokenizer.json."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary; by default it is read from the checkpoint's folder."""
    ema: bool = False
    """Use the averaged (EMA) weights, as OFA's own VQA evaluation does."""
    image_size: int | None = None
    """Side of the square that photos are resized to, if different from the checkpoint's setting."""
    half: bool = False
    """Store float16: half the size; captions may differ in rare cases."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("convert", Args, lambda args: print(convert(args)), __doc__, argv)


def convert(args: Args) -> Path:
    """Write the folder and return it."""
    import torch

    from vlm.convert.ofa.checkpoint import load_ofa
    from vlm.files.bundle import save_bundle
    from vlm.files.lock import LOCK, locked

    out = Path(os.path.expanduser(args.out))
    if out.exists() and (not out.is_dir() or {path.name for path in out.iterdir()} - {LOCK}):
        raise ArgumentError(f"{args.out!r} exists and is not an empty folder; name another")
    name = args.checkpoint.removeprefix("ofa:")
    bundle = load_ofa(name, tokenizer=args.tokenizer, ema=args.ema, image_size=args.image_size)
    with locked(out):
        save_bundle(out, bundle, torch.float16 if args.half else torch.float32)
        (out / LOCK).unlink(missing_ok=True)  # the folder may be copied elsewhere
    return out


if __name__ == "__main__":
    sys.exit(main())
