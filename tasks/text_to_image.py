"""Draw pictures of texts."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import command, no_collections
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """What the picture shows; give it as often as you like. Text after the first 64 words is ignored."""
    model: str
    """ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME: a checkpoint of OFA that draws, such as image_gen_large_best.pt."""
    vqgan: str
    """The VQGAN that turns the model's codes into pixels: OFA's last.ckpt, or a folder of diffusers' VQModel."""
    out: str = "."
    """Folder for the pictures, named by text and picture: 1-1.png, 1-2.png, 2-1.png."""
    tokenizer: str | None = None
    """Folder or hub id of an OFA checkpoint's vocabulary, where it does not lie beside the checkpoint."""
    num_images: int = 1
    """Pictures of each text."""
    seed: int = 0
    """Of the random numbers."""
    temperature: float = 1.0
    """Below 1 makes pictures safer, above 1 bolder."""
    top_k: int = 256
    """Draw among the k likeliest codes; 0 means all."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("text_to_image", Args, run, __doc__, argv)


def run(args: Args) -> None:
    """Write the pictures and print their paths."""
    folder = Path(os.path.expanduser(args.out))
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ArgumentError(f"--out {args.out!r} cannot be a folder: {error.strerror}; name another") from None
    with no_collections():
        import vlm
        from vlm.convert.vqgan import load_vqgan

        vqgan = load_vqgan(args.vqgan)
        model = vlm.load(args.model, device=args.device, tokenizer=args.tokenizer)
    vqgan.to(args.device)
    for number, text in enumerate(args.text, 1):  # one by one: a text's pictures do not depend on the others
        codes = model.image_codes(
            text, num_images=args.num_images, seed=args.seed, temperature=args.temperature, top_k=args.top_k
        )
        for place, picture in enumerate(vqgan.pictures(codes), 1):
            path = folder / f"{number}-{place}.png"
            try:
                picture.save(path)
            except OSError as error:
                raise ArgumentError(f"{str(path)!r} cannot be written: {error.strerror or error}") from None
            print(path, flush=True)


if __name__ == "__main__":
    sys.exit(main())
