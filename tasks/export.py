"""Export image and text encoders to ONNX files, which run without this package."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from tasks._command import command, no_collections


@dataclass(frozen=True)
class Args:
    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Bundled name or folder of a model with image and text encoders, open_clip:ARCHITECTURE/TAG, or timm:MODEL for an
    image encoder alone."""
    out: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="OUT")]
    """Folder to write: image.onnx, text.onnx, tokenizer.json and encoders.json."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("export", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Export, and print each file with its largest difference to the model."""
    with no_collections():
        from vlm.encoders import load_encoders
        from vlm.export.onnx import export

        encoders = load_encoders(args.model)
    for written in export(encoders, args.out):
        print(f"{written.file}: onnxruntime's vectors differ by at most {written.difference:.1e}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
