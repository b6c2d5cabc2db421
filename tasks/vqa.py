"""Answer questions about photos."""

import math
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tasks._command import check_top, command, json_line, search_options
from tasks._photos import PhotoArgs, labelled, print_each, read_list
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.decoding.answer import Answer
    from vlm.model import Model
    from vlm.predictor import Photo


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    question: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What to ask; each question is asked about each photo. Without this option, questions are read from the terminal,
    or from a pipe, one per line; each photo is encoded once."""
    answers: str | None = None
    """Allowed answers: "yes,no", or a text file with one answer per line. By default any text."""
    score_all: bool = False
    """With --answers: score every allowed answer, not only those that the beam search finds."""
    top: int = 1
    """Answers to print for each question, the best first; above 1, each with its probability."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. By default the model's own setting (5)."""
    max_length: int | None = None
    """Longest answer, in tokens. By default the model's own setting (30)."""
    prefix: Literal["auto", "none", "source", "source_and_end", "source_only"] = "auto"
    """What the decoder is given before the answer: nothing (none), the question (source), the question with its end
    token (source_and_end), or the question, which the encoder then does not read (source_only); auto is the setting in
    the model's config."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("vqa", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the answers; 1 where a photo could not be used."""
    check_top(args.top)
    options: dict[str, Any] = {"prefix": None if args.prefix == "auto" else args.prefix}
    options |= search_options(args, "num_beams", "max_length")
    if args.answers is not None:
        if args.max_length is not None:
            raise ArgumentError("--max-length has no meaning with --answers, which are given; leave it out")
        if args.score_all and args.num_beams is not None:
            raise ArgumentError("--score-all scores every answer and --num-beams searches; leave one of them out")
        options |= {"choices": read_list("--answers", args.answers), "score_all": args.score_all}
    elif args.score_all:
        raise ArgumentError("--score-all scores given answers; give --answers")
    paths = args.paths()
    model = args.load("answer")
    if not args.question:
        return converse(args, paths, model, options)
    questions = [(question,) for question in args.question]
    found = model.stream("answer", paths, questions, batch_size=args.batch_size, max_pixels=args.max_pixels, **options)

    def lines(path: Path, results: list[list["Answer"]]) -> Iterator[str]:
        for question, answers in zip(args.question, results, strict=True):
            yield from shown(args, path, question, answers, len(paths) > 1, len(args.question) > 1)

    return print_each(paths, found, lines)


def shown(
    args: Args, path: Path, question: str, answers: list["Answer"], with_path: bool, with_question: bool
) -> Iterator[str]:
    """What is printed of the answers to a question about a photo."""
    for answer in answers[: args.top]:
        probability = math.exp(answer.score)
        if args.json:
            record = {"path": str(path), "question": question, "answer": answer.text, "score": answer.score}
            yield json_line({**record, "probability": probability})
        else:
            text = f"{answer.text} {100 * probability:.1f} %" if args.top > 1 else answer.text
            yield labelled(path, with_path, question if with_question else None, text)


def converse(args: Args, paths: list[Path], model: "Model", options: dict[str, Any]) -> int:
    """Answer the questions on stdin, one a line, until it ends; 1 where a photo or a question could not be used."""
    from vlm.errors import ImageError

    photos: dict[Path, Photo] = {}
    failed = False
    for path in paths:
        try:
            photos[path] = model.encode([path], max_pixels=args.max_pixels)[0]
        except ImageError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
    if not photos:
        return 1
    people = sys.stdin.isatty()
    if people:
        print("Type a question and press Enter; an empty line ends.", file=sys.stderr)
    while True:
        if people:
            print("? ", end="", file=sys.stderr, flush=True)
        question = sys.stdin.readline()
        if not question or (people and not question.strip()):
            return int(failed)
        if not question.strip():
            continue
        question = question.strip()
        try:
            found = model.run("answer", list(photos.values()), [question] * len(photos), **options)
        except ArgumentError as error:
            failed = True
            print(f"error: {error}", file=sys.stderr)
            continue
        for path, answers in zip(photos, found, strict=True):
            for line in shown(args, path, question, answers, len(photos) > 1, not people):
                print(line, flush=True)


if __name__ == "__main__":
    sys.exit(main())
