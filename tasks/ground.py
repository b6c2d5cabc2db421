"""Find what a phrase names in photos, or describe a region of them."""

import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from tasks._command import command, json_line
from tasks._photos import PhotoArgs, labelled, print_each
from vlm.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from vlm.predictor import Photo
    from vlm.tasks.boxes import Box


@dataclass(frozen=True, kw_only=True)
class Args(PhotoArgs):
    phrase: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """What to find; each phrase is looked for in each photo. Prints left, top, right and bottom in pixels."""
    region: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Region to describe: left,top,right,bottom in pixels."""
    draw: str | None = None
    """Also save the photo with the boxes drawn to this file (one photo only)."""


def main(argv: Sequence[str] | None = None) -> int:
    return command("ground", Args, run, __doc__, argv)


def run(args: Args) -> int:
    """Print boxes and descriptions; 1 where a photo could not be used, or a phrase was not found."""
    if not args.phrase and not args.region:
        raise ArgumentError("there is nothing to look for; give --phrase, or --region to describe one")
    regions = [read_region(text) for text in args.region]
    paths = args.paths()
    if args.draw is not None and len(paths) > 1:
        raise ArgumentError(f"--draw {args.draw!r} is for one photo; {len(paths)} were given")
    drawn = None if args.draw is None else Path(os.path.expanduser(args.draw))
    if drawn is not None and drawn.exists() and paths[0].exists() and drawn.samefile(paths[0]):
        raise ArgumentError(f"--draw {args.draw!r} would replace the photo itself; name another file")
    model = args.load("ground" if args.phrase else "describe_region")
    if regions:
        model.task("describe_region")

    def ask(photos: list["Photo"], places: list[int]) -> Iterator[tuple[list["Box | None"], list[str | ImageError]]]:
        each = [photo for photo in photos for _ in args.phrase]
        boxes = iter(model.run("ground", each, args.phrase * len(photos)) if each else ())
        for photo in photos:
            yield [next(boxes) for _ in args.phrase], [describe(photo, region) for region in regions]

    def describe(photo: "Photo", region: "Box") -> str | ImageError:
        try:
            return model.describe_region(photo, region)
        except ArgumentError as error:  # photos differ in size: it may lie in the others
            return ImageError(str(error))

    def lines(path: Path, found: tuple[list["Box | None"], list[str | ImageError]]) -> Iterator[str]:
        boxes, descriptions = found
        many = len(paths) > 1
        if drawn is not None:
            named = [(text, box) for text, box in zip(args.phrase, boxes, strict=True) if box]
            draw(path, drawn, named + list(zip(args.region, regions, strict=True)), args.max_pixels)
        for phrase, box in zip(args.phrase, boxes, strict=True):
            if args.json:
                yield json_line({"path": str(path), "phrase": phrase, "box": box})
            elif box:
                numbers = " ".join(f"{value:.1f}" for value in box)
                yield labelled(path, many, phrase if len(args.phrase) > 1 else None, numbers)
        for region, text in zip(regions, descriptions, strict=True):
            if isinstance(text, ImageError):
                raise ImageError(f"{str(path)!r}: {text}")
            if args.json:
                yield json_line({"path": str(path), "region": region, "caption": text})
            else:
                yield labelled(path, many, ",".join(f"{x:g}" for x in region) if len(regions) > 1 else None, text)
        if lost := [phrase for phrase, box in zip(args.phrase, boxes, strict=True) if box is None]:
            raise ImageError(
                f"{str(path)!r}: the model found no box for {', '.join(map(repr, lost))}; try another phrase"
            )

    found = model.predictor.stream(paths, ask, batch_size=args.batch_size, max_pixels=args.max_pixels)
    return print_each(paths, found, lines)


def read_region(text: str) -> "Box":
    """`left,top,right,bottom` to numbers.

    Raises:
        ArgumentError: it is not four numbers.
    """
    try:
        left, top, right, bottom = map(float, text.split(","))
    except ValueError:
        raise ArgumentError(f"--region {text!r} is not four numbers; give left,top,right,bottom in pixels") from None
    return left, top, right, bottom


def draw(photo: Path, out: Path, boxes: Sequence[tuple[str, "Box"]], max_pixels: int) -> None:
    """Write a photo with named boxes drawn.

    Raises:
        ImageError: the photo cannot be used.
        ArgumentError: the file cannot be written.
    """
    from PIL import ImageDraw

    from vlm.image import load_image

    image = load_image(photo, max_pixels=max_pixels)
    pen = ImageDraw.Draw(image)
    width = max(2, max(image.size) // 250)
    for name, (left, top, right, bottom) in boxes:
        left, right = sorted(min(max(x, 0), image.width - 1) for x in (left, right))
        top, bottom = sorted(min(max(y, 0), image.height - 1) for y in (top, bottom))
        pen.rectangle((left, top, right, bottom), outline="red", width=width)
        place = left + 2 * width, top + 2 * width
        size = max(10, 8 * width)
        pen.rectangle(pen.textbbox(place, name, font_size=size), fill="white")
        pen.text(place, name, fill="black", font_size=size)
    try:
        image.save(out)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise ArgumentError(f"--draw {str(out)!r} cannot be written: {reason}; name a .png or .jpg file") from None


if __name__ == "__main__":
    sys.exit(main())
