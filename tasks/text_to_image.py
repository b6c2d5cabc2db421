"""Generate images from text."""

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
    """Description of the image. Text after the first 64 words is ignored."""
    model: str
    """ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME: an OFA checkpoint that generates images, such as
    image_gen_large_best.pt."""
    vqgan: str
    """The VQGAN that turns the model's codes into pixels: OFA's last.ckpt, or a folder of diffusers' VQModel."""
    out: str = "."
    """Folder for the images, named TEXT-IMAGE.png by number: 1-1.png, 1-2.png, 2-1.png."""
    tokenizer: str | None = None
    """Folder or hub id of an OFA checkpoint's vocabulary, if it is not in the same folder as the checkpoint."""
    num_images: int = 1
    """Images to generate for each text."""
    seed: int = 0
    """Seed of the random numbers."""
    temperature: float = 1.0
    """Values below 1 favour likely codes, values above 1 give more varied images."""
    top_k: int = 256
    """Draw from the k most likely codes; 0 means all."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("text_to_image", Args, run, __doc__, argv)


def run(args: Args) -> None:
    """Write the pictures and print their paths."""
    from vlm.files.lock import locked

    with locked(os.path.expanduser(args.out)) as folder:
        generate(args, folder)


def generate(args: Args, folder: Path) -> None:
    """Write the pictures into a folder and print their paths."""
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
