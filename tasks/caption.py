"""Describe photos, one sentence each."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from tasks._command import command, json_line, search_options
from tasks._photos import PhotoArgs, labelled, print_each
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.decoding.answer import Answer


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    language: Literal["en", "zh", "de"] = "en"
    """Language of the captions: English, Chinese or German, where the model knows it."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. By default the model's own setting (5)."""
    max_length: int | None = None
    """Longest caption, in tokens (most words are one token). By default the model's own setting (tiny: 20, OFA: 16)."""
    num_captions: int = 1
    """Captions to print for each photo, the best first."""
    rerank: float | None = None
    """When ranking the candidates of the beam search: weight of the similarity of photo and caption, as computed by the
    image and text encoders; 0 turns this off. By default the model's own setting (tiny: 2)."""
    sample: bool = False
    """Draw captions at random instead of searching for the best."""
    temperature: float | None = None
    """With --sample: values below 1 favour likely tokens, values above 1 give more varied captions. By default the
    model's own setting (0.7)."""
    top_k: int | None = None
    """With --sample: draw from the k most likely tokens; 0 means all."""
    top_p: float | None = None
    """With --sample: draw from the most likely tokens that together have this probability; 0 means all. By default the
    model's own setting (0.8)."""
    seed: int | None = None
    """With --sample: seed of the random numbers, 0 by default. Each photo has its own stream of random numbers, which
    depends on the seed and on the photo's place among the photos."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("caption", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print captions on stdout and what went wrong with single photos on stderr; 1 where anything did."""
    paths = args.paths()
    options = {"rerank": args.rerank, "num_captions": args.num_captions, **search_options(args, "max_length")}
    check_sampling(args)
    if args.sample:
        options |= {"seed": args.seed or 0, **search_options(args, "sample", "temperature", "top_k", "top_p")}
    else:
        options |= search_options(args, "num_beams")
    from vlm.tasks import CAPTION_TASKS

    task = CAPTION_TASKS[args.language]
    model = args.load(task)
    found = model.stream(task, paths, batch_size=args.batch_size, max_pixels=args.max_pixels, **options)

    def lines(path: Path, results: list[list["Answer"]]) -> Iterator[str]:
        for caption in results[0]:
            if args.json:
                record = {"path": str(path), "caption": caption.text, "score": caption.score}
                yield json_line(record)
            else:
                yield labelled(path, len(paths) > 1, caption.text)

    return print_each(paths, found, lines)


def check_sampling(args: Args) -> None:
    """Refuse options of sampling without --sample, and of beam search with it.

    Raises:
        ArgumentError: there is one, which would do nothing.
    """
    if args.sample and args.num_beams is not None:
        raise ArgumentError("--num-beams is for beam search and --sample draws at random; leave one of them out")
    for name in ("temperature", "top_k", "top_p", "seed"):
        if not args.sample and getattr(args, name) is not None:
            raise ArgumentError(f"--{name.replace('_', '-')} needs --sample; add it, or leave the option out")


if __name__ == "__main__":
    sys.exit(main())
