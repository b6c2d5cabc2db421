"""Say whether sentences follow from photos, contradict them, or neither."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tasks._command import command, json_line
from tasks._photos import PhotoArgs, labelled, print_each

if TYPE_CHECKING:
    from vlm.decoding.answer import Answer


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Sentence to judge; each sentence is judged for each photo."""
    caption: str | None = None
    """Caption of the photo, given to the model as additional evidence."""
    prefix: Literal["auto", "none", "source", "source_and_end", "source_only"] = "auto"
    """What the decoder is given before the answer: nothing (none), the instruction (source), the instruction with its
    end token (source_and_end), or the instruction, which the encoder then does not read (source_only); auto is the
    setting in the model's config."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("entail", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print entailment, contradiction or neutral; 1 where a photo could not be used."""
    paths = args.paths()
    model = args.load("entail")

    found = model.stream(
        "entail",
        paths,
        [(text, args.caption or "") for text in args.text],
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
        prefix=None if args.prefix == "auto" else args.prefix,
    )

    def lines(path: Path, results: list[list["Answer"]]) -> Iterator[str]:
        for text, answers in zip(args.text, results, strict=True):
            if args.json:
                probabilities = {answer.text: math.exp(answer.score) for answer in answers}
                record = {"path": str(path), "text": text, "label": answers[0].text, "probabilities": probabilities}
                yield json_line(record)
            else:
                yield labelled(path, len(paths) > 1, text if len(args.text) > 1 else None, answers[0].text)

    return print_each(paths, found, lines)


if __name__ == "__main__":
    sys.exit(main())
