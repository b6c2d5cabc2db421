"""Answer questions about photos."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from tasks._command import check_top, command, search_options
from tasks._photos import PhotoArgs, labelled, print_each, read_list
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.decoding.answer import Answer


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    question: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """What to ask; each question is asked about each photo."""
    answers: str | None = None
    """Allowed answers: "yes,no", or a text file with one answer per line. By default any text."""
    score_all: bool = False
    """With --answers: score every allowed answer, not only those that the beam search finds."""
    top: int = 1
    """Answers to print for each question, the best first."""
    num_beams: int | None = None
    """Beam width; 1 is greedy search. By default the model's own setting (5)."""
    max_length: int | None = None
    """Longest answer, in tokens. By default the model's own setting (30)."""
    prefix: Literal["auto", "none", "source", "source_and_end"] = "auto"
    """What the decoder is given before the answer: nothing (none), the question (source), or the question with its end
    token (source_and_end); auto is the setting in the model's config."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("vqa", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the answers; 1 where a photo could not be used."""
    check_top(args.top)
    options: dict[str, Any] = {"prefix": None if args.prefix == "auto" else args.prefix}
    options |= search_options(args, "num_beams", "max_length")
    if args.answers is not None:
        options |= {"choices": read_list("--answers", args.answers), "score_all": args.score_all}
    elif args.score_all:
        raise ArgumentError("--score-all scores given answers; give --answers")
    paths = args.paths()
    model = args.load("answer")
    questions = [(question,) for question in args.question]
    found = model.stream("answer", paths, questions, batch_size=args.batch_size, max_pixels=args.max_pixels, **options)

    def lines(path: Path, results: list[list["Answer"]]) -> Iterator[str]:
        for question, answers in zip(args.question, results, strict=True):
            for answer in answers[: args.top]:
                if args.json:
                    record = {"path": str(path), "question": question, "answer": answer.text, "score": answer.score}
                    yield json.dumps(record, ensure_ascii=False)
                else:
                    shown = question if len(args.question) > 1 else None
                    yield labelled(path, len(paths) > 1, shown, answer.text)

    return print_each(paths, found, lines)


if __name__ == "__main__":
    sys.exit(main())
