"""Draw pictures of texts."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro

from tasks._command import command, no_collections
from vlm.errors import ArgumentError


@dataclass(frozen=True)
class Args:
    prompt: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What to draw. Give the option again for another prompt."""
    prompts: str | None = None
    """Text file with one prompt per line."""
    out: str = "picture.png"
    """File of the picture. Several pictures get numbers, picture-1.png and so on, and picture.png is a sheet of all."""
    model: str = "tiny"
    """Bundled name, folder or hub id: a model with a diffusion head, or any text-to-image pipeline of diffusers, such
    as Stable Diffusion; ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME for an OFA checkpoint, with --vqgan."""
    num_images: int = 1
    """Pictures of each prompt."""
    seed: int = 0
    """Seed of the first picture; each next picture has the next seed. The same seed gives the same picture."""
    steps: int | None = None
    """Steps of the solver: more take longer and give finer pictures. By default the pipeline's own setting (tiny:
    30)."""
    guidance_scale: float | None = None
    """How closely to follow the prompt; 1 turns guidance off. By default the pipeline's own setting (tiny: 4)."""
    negative_prompt: str = ""
    """What to stay away from."""
    size: int | None = None
    """Side of the square pictures, in pixels. By default what the model was trained for."""
    init_image: str | None = None
    """Picture to start from, instead of noise."""
    strength: float | None = None
    """With --init-image: how much of it to redraw, above 0 to 1. By default 0.6."""
    mask: str | None = None
    """With --init-image: picture that is white where to redraw and black where to keep."""
    variations_of: str | None = None
    """A photo: draw other pictures of what it shows; --prompt may add to it. For models trained with photo_vectors.
    tiny has learned little of this: it mostly draws textures."""
    prior: bool = False
    """Draw from the photo vector that the prior expects for the prompt, instead of from the prompt's own vector. As
    with --variations-of, the pictures of tiny are mostly textures."""
    rerank: int = 0
    """Draw this many pictures of each prompt, and keep the --num-images that match it best, as computed by an image and
    a text encoder; 0 keeps all. Variations without a prompt are matched with their photo."""
    rank_model: str = "tiny"
    """With --rerank: the encoders, as for vlm.load_encoders."""
    preview: str | None = None
    """PNG file that shows, after every step, what the picture is going to be; an image viewer that reloads changed
    files shows it growing."""
    again: str | None = None
    """A picture that this command has drawn: draw it again, from the settings that it holds. With --model, by another
    copy of the same model."""
    adapter: str | None = None
    """With a pipeline of diffusers: folder of an adapter that `vlm adapt` has trained, through which our base model
    reads the prompt instead of the pipeline's text encoder."""
    vqgan: str | None = None
    """With an OFA checkpoint: the VQGAN that turns its codes into pixels, OFA's last.ckpt or a folder of diffusers'
    VQModel."""
    tokenizer: str | None = None
    """With an OFA checkpoint: folder or hub id of its vocabulary, if it is not in the same folder."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Type of the weights; the half types take half of the memory."""
    cpu_offload: bool = False
    """Move each part of the pipeline to the GPU only while it works; for large pipelines."""
    attention_slicing: bool = False
    """Compute attention in parts: slower, with less memory; for large pipelines of diffusers."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("generate", Args, run, __doc__, argv)


def run(args: Args) -> None:
    """Write the pictures and print their paths."""
    if args.again is not None and (args.prompt or args.prompts is not None):
        raise ArgumentError("--again takes the prompt from the picture; leave --prompt out")
    prompts = [] if args.again is not None else _prompts(args)
    if args.num_images < 1:
        raise ArgumentError(f"--num-images {args.num_images} is below 1; give 1 or more")
    if args.rerank and args.rerank < args.num_images:
        raise ArgumentError(f"--rerank {args.rerank} draws fewer than --num-images {args.num_images}; raise it")
    out = Path(os.path.expanduser(args.out))
    for name, path in (("out", args.out), ("preview", args.preview)):
        if path is not None and not path.lower().endswith(".png"):
            raise ArgumentError(f"--{name} {path!r} is not the name of a .png file; give one")
    with no_collections():
        from tasks._drawing import draw_again, draw_all

    for path in draw_again(args, out) if args.again is not None else draw_all(args, prompts, out):
        print(path, flush=True)


def _prompts(args: Args) -> list[str]:
    prompts = list(args.prompt)
    if args.prompts is not None:
        try:
            lines = Path(os.path.expanduser(args.prompts)).read_text(encoding="utf-8-sig").splitlines()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ArgumentError(f"--prompts {args.prompts!r} cannot be read: {reason}") from None
        prompts += [line.strip() for line in lines if line.strip()]
    if not prompts and args.variations_of is not None:
        return [""]
    if not prompts:
        raise ArgumentError('there is nothing to draw; give --prompt "a red shoe", or --prompts FILE')
    if bad := [prompt for prompt in prompts if not prompt.strip()]:
        raise ArgumentError(f"the prompt {bad[0]!r} is empty; write what to draw")
    return prompts


if __name__ == "__main__":
    sys.exit(main())
