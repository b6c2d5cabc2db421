"""Describe photos, one sentence each."""

import gc
import json
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated

import tyro

import vlm  # lazy: torch loads on first use, so --help and typos answer at once
from vlm.errors import ImageError, VLMError

MANY = 8  # photos from which a progress bar is worth its line


@dataclass(frozen=True)
class Args:
    image: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Photo, folder of photos, or pattern such as "trip/*.jpg"; give it as often as you like."""
    model: str = "tiny"
    """Bundled name, local folder or hub id; ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME for a checkpoint of OFA."""
    tokenizer: str | None = None
    """Folder or hub id of an OFA checkpoint's vocabulary, where it does not lie beside the checkpoint."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. Without it, the model's own (5)."""
    max_length: int | None = None
    """Longest caption, in tokens (most words are one token). Without it, the model's own (tiny: 20, OFA: 16)."""
    num_captions: int = 1
    """Captions a photo, the best first."""
    sample: bool = False
    """Draw captions at random instead of searching for the best."""
    temperature: float = 1.0
    """With --sample: below 1 makes captions safer, above 1 bolder."""
    top_k: int = 0
    """With --sample: draw among the k likeliest tokens; 0 means all."""
    top_p: float = 0.0
    """With --sample: draw among the likeliest tokens that hold this probability together; 0 means all."""
    seed: int = 0
    """Of the random numbers of --sample."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    batch_size: int = 16
    """Photos that go through the model together; it does not change the captions."""
    max_megapixels: float = 64.0
    """Larger photos are refused before they are decoded."""
    json: bool = False
    """Print one JSON object a line: path, caption, score."""


def main(argv: Sequence[str] | None = None) -> int:
    args = tyro.cli(Args, args=argv, prog="python -m tasks.caption", description=__doc__)
    try:
        return run(args)
    except VLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def run(args: Args) -> int:
    """Print captions on stdout and what went wrong with single photos on stderr; 1 where anything did."""
    import warnings

    from tqdm import tqdm

    from vlm.image import expand_paths

    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on damaged metadata of photos that open all the same
    paths = expand_paths(args.image)
    options: dict = {"temperature": args.temperature}
    if args.max_length is not None:
        options["max_tokens"] = args.max_length
    if args.sample:
        options |= {"sample": True, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
    elif args.num_beams is not None:
        options["beams"] = args.num_beams
    with no_collections():
        model = vlm.load(args.model, device=args.device, tokenizer=args.tokenizer)
    found = model.caption_each(
        paths,
        num_captions=args.num_captions,
        batch_size=args.batch_size,
        max_pixels=round(args.max_megapixels * 1e6),
        **options,
    )
    failed = False
    bar = tqdm(total=len(paths), unit="photo", file=sys.stderr, disable=len(paths) <= MANY)
    for path, captions in zip(paths, found, strict=True):
        bar.update()
        if isinstance(captions, ImageError):
            failed = True
            tqdm.write(f"error: {captions}", file=sys.stderr)
            continue
        for caption in captions:
            if args.json:
                line = json.dumps(
                    {"path": str(path), "caption": caption.text, "score": caption.score}, ensure_ascii=False
                )
            else:
                line = caption.text if len(paths) == 1 else f"{path}: {caption.text}"
            tqdm.write(line, file=sys.stdout)
    bar.close()
    return int(failed)


@contextmanager
def no_collections() -> Iterator[None]:
    """Import and load without garbage collections, and leave what was loaded out of later ones.

    Torch and timm make hundreds of thousands of objects that stay: looking through them again and again, and once more
    at exit, is a third of the time of a first caption (`benchmarks/caption_cli.py`).
    """
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
