"""Choose a label for each photo: one of yours, or one of the model's own."""

import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tasks._command import check_top, command, json_line, no_collections
from tasks._photos import PhotoArgs, labelled, print_each, read_list
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.decoding.answer import Answer


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    model: str = "tiny"
    """Bundled name, local folder or hub id; open_clip:ARCHITECTURE/TAG; ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME. With
    image and text encoders, photos and labels are compared; other models score the labels as answers."""
    labels: str | None = None
    """Labels to choose from: "cat,dog,car", or a text file with one label per line. By default the model's own
    labels; tiny has the 1,000 of ImageNet, such as espresso or tripod."""
    template: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Sentence to put each label into, with {} for the label (image and text encoders only). The features of several
    templates are averaged. By default "a photo of a {}"."""
    top: int = 1
    """Labels to print for each photo, the most likely first; above 1, with their probabilities."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("classify", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print the labels; 1 where a photo could not be used."""
    check_top(args.top)
    labels = None if args.labels is None else read_list("--labels", args.labels)
    if labels is None and args.template:
        raise ArgumentError("--template is for --labels; give labels, or leave it out")
    paths = args.paths()
    with no_collections():
        from vlm.model import Model, classify_each, load_classifier

        model = load_classifier(args.model, device=args.device, tokenizer=args.tokenizer)
    if args.template and isinstance(model, Model):
        raise ArgumentError(f"{args.model!r} scores labels as answers and puts them into no sentences; omit --template")
    found = classify_each(
        model,
        paths,
        labels,
        templates=args.template or None,
        batch_size=args.batch_size,
        max_pixels=args.max_pixels,
        show_progress_bar=True,
    )

    if labels is not None and len(labels) == 1:
        warnings.warn(f"{labels[0]!r} is the only label, so every photo gets it; give two or more", stacklevel=2)

    def lines(path: Path, answers: list["Answer"]) -> Iterator[str]:
        for answer in answers[: args.top]:
            probability = math.exp(answer.score)
            if args.json:
                record = {"path": str(path), "label": answer.text, "probability": probability}
                yield json_line(record)
            else:
                shown = f"{answer.text} {100 * probability:.1f} %" if args.top > 1 else answer.text
                yield labelled(path, len(paths) > 1, shown)

    return print_each(paths, found, lines)


if __name__ == "__main__":
    sys.exit(main())
