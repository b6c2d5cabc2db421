"""Say how likely it is that sentences fit photos."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from tasks._command import command, json_line
from tasks._photos import PhotoArgs, labelled, print_each


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Sentence to check; each sentence is checked for each photo. Repeat the option for several."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("match", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the probability of each sentence, 0 to 1; 1 where a photo could not be used."""
    paths = args.paths()
    model = args.load("match")
    inputs = [(text,) for text in args.text]
    found = model.stream("match", paths, inputs, batch_size=args.batch_size, max_pixels=args.max_pixels)

    def lines(path: Path, results: list[float]) -> Iterator[str]:
        for text, probability in zip(args.text, results, strict=True):
            if args.json:
                record = {"path": str(path), "text": text, "probability": probability}
                yield json_line(record)
            else:
                yield labelled(path, len(paths) > 1, text if len(args.text) > 1 else None, f"{probability:.3f}")

    return print_each(paths, found, lines)


if __name__ == "__main__":
    sys.exit(main())
