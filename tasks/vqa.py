"""Answer questions about photos."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tasks._command import command
from tasks._photos import PhotoArgs, print_each, read_list
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.asking import Answer
    from vlm.looking import Photo


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    question: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """What to ask; each question is asked about each photo."""
    answers: str | None = None
    """The only answers that may be given: "yes,no", or a text file, one a line. Without it, any text."""
    score_all: bool = False
    """With --answers: weigh every one of them, not only those that a beam search meets."""
    top: int = 1
    """Answers a question, the best first."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. Without it, the model's own (5)."""
    max_length: int | None = None
    """Longest answer, in tokens. Without it, the model's own (30)."""
    prefix: Literal["auto", "none", "source", "source_and_end"] = "auto"
    """What the decoder is given before it answers: nothing, the question, or the question with its end token; auto
    is what the model says of itself."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("vqa", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the answers; 1 where a photo could not be used."""
    if args.top < 1:
        raise ArgumentError(f"--top {args.top} is below 1; give 1 or more")
    options: dict[str, Any] = {"prefix": None if args.prefix == "auto" else args.prefix}
    if args.answers is not None:
        options |= {"choices": read_list("--answers", args.answers), "score_all": args.score_all}
    elif args.score_all:
        raise ArgumentError("--score-all weighs given answers; give --answers")
    if args.num_beams is not None:
        options["beams"] = args.num_beams
    if args.max_length is not None:
        options["max_tokens"] = args.max_length
    paths = args.paths()
    model = args.load("answer")

    def ask(photos: list["Photo"]) -> Iterator[list[list["Answer"]]]:
        each = [photo for photo in photos for _ in args.question]
        answers = iter(model.answers(each, args.question * len(photos), **options))
        return ([next(answers) for _ in args.question] for _ in photos)

    def lines(path: Path, found: list[list["Answer"]]) -> Iterator[str]:
        for question, answers in zip(args.question, found, strict=True):
            for answer in answers[: args.top]:
                if args.json:
                    record = {"path": str(path), "question": question, "answer": answer.text, "score": answer.score}
                    yield json.dumps(record, ensure_ascii=False)
                else:
                    yield ": ".join(
                        [str(path)] * (len(paths) > 1) + [question] * (len(args.question) > 1) + [answer.text]
                    )

    return print_each(paths, model.ask_each(paths, ask, batch_size=args.batch_size, max_pixels=args.max_pixels), lines)


if __name__ == "__main__":
    sys.exit(main())
