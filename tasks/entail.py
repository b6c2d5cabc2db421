"""Say whether sentences follow from photos, contradict them, or neither."""

import json
import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from tasks._command import command
from tasks._photos import PhotoArgs, print_each

if TYPE_CHECKING:
    from vlm.asking import Answer
    from vlm.looking import Photo


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    text: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Sentence to judge; each is held against each photo."""
    caption: str | None = None
    """What is known of the photo, to be judged with it."""
    prefix: Literal["auto", "none", "source", "source_and_end"] = "auto"
    """What the decoder is given before it answers: nothing, the instruction, or that with its end token; auto is
    what the model says of itself."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("entail", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print entailment, contradiction or neutral; 1 where a photo could not be used."""
    paths = args.paths()
    model = args.load("entail")

    def ask(photos: list["Photo"]) -> Iterator[list[list["Answer"]]]:
        each = [photo for photo in photos for _ in args.text]
        known = None if args.caption is None else [args.caption] * len(each)
        found = iter(
            model.judgements(
                each, args.text * len(photos), known, prefix=None if args.prefix == "auto" else args.prefix
            )
        )
        return ([next(found) for _ in args.text] for _ in photos)

    def lines(path: Path, found: list[list["Answer"]]) -> Iterator[str]:
        for text, answers in zip(args.text, found, strict=True):
            if args.json:
                probabilities = {answer.text: math.exp(answer.score) for answer in answers}
                record = {"path": str(path), "text": text, "label": answers[0].text, "probabilities": probabilities}
                yield json.dumps(record, ensure_ascii=False)
            else:
                yield ": ".join([str(path)] * (len(paths) > 1) + [text] * (len(args.text) > 1) + [answers[0].text])

    return print_each(paths, model.ask_each(paths, ask, batch_size=args.batch_size, max_pixels=args.max_pixels), lines)


if __name__ == "__main__":
    sys.exit(main())
