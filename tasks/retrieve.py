"""Find photos by what they show: index a folder once, then search it with a sentence or a photo."""

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from tasks._command import exit_code, json_line, named_as_options, no_collections, parse, printable
from tasks._photos import read_megapixels
from vlm.errors import ArgumentError

if TYPE_CHECKING:
    from vlm.search.index import Hit


@dataclass(frozen=True)
class IndexArgs:
    """Index the photos under a folder; run it again to bring the index up to date."""

    photos: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="PHOTOS")]
    """Folder of photos, including its subfolders."""
    out: str
    """Folder of the index, or an address of object storage (s3://bucket/photos.index)."""
    model: str | None = None
    """Image and text encoders: bundled name, local folder or open_clip:ARCHITECTURE/TAG. By default the ones that made
    the index, or tiny for a new index."""
    caption: bool = False
    """Also caption each photo; search prints the captions."""
    caption_model: str = "tiny"
    """With --caption: the model that writes the captions."""
    device: str = "cpu"
    """Where the models run: cpu, cuda, cuda:1, mps."""
    batch_size: int = 32
    """Photos per batch."""
    max_megapixels: float = 64.0
    """Photos with more megapixels are skipped, with an error, without decoding them."""
    exact_rows: int = 50_000
    """With more photos than this, build an approximate index and measure its recall."""


@dataclass(frozen=True)
class SearchArgs:
    """Search an index with a sentence, a photo, or both, and print the most similar photos."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder of the index."""
    text: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="[SENTENCE]")] = ()
    """Sentence that describes the photos to find."""
    image: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Example photo: find photos similar to it. With a sentence, the two are combined."""
    minus: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Sentence that describes what the photos should not show."""
    top: int = 10
    """Number of photos to print."""
    model: str | None = None
    """Image and text encoders. By default the ones that made the index; only needed if they have moved."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    json: bool = False
    """Print one JSON object per line: path, score, caption."""
    html: str | None = None
    """Also write the results to this file as an HTML page with thumbnails."""


@dataclass(frozen=True)
class PruneArgs:
    """Drop photos from an index: those whose files are gone, and those under the folders given."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder of the index."""
    folder: Annotated[tuple[str, ...], tyro.conf.UseAppendAction] = ()
    """Also drop all photos under this folder, whether their files are there or not."""


@dataclass(frozen=True)
class InfoArgs:
    """Say what an index holds: its model, its folders, and how many photos are gone."""

    index: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="INDEX")]
    """Folder of the index."""
    json: bool = False
    """Print one JSON object: model, weights_sha256, photos, captions, gone, folders."""


def main(argv: Sequence[str] | None = None) -> int:
    os.environ.setdefault("LANCEDB_LOG", "error")  # its remarks on tables that are small are not for a user
    stopped = "stopped; finished work is kept. Run the same command to continue"
    return exit_code(lambda: run(argv), stopped)


def run(argv: Sequence[str] | None) -> int:
    """Do what the first argument names."""
    kinds = {"index": IndexArgs, "search": SearchArgs, "info": InfoArgs, "prune": PruneArgs}
    args = parse("vlm retrieve", kinds, __doc__, argv)
    if isinstance(args, IndexArgs):
        return run_index(args)
    if isinstance(args, SearchArgs):
        return run_search(args)
    return run_info(args) if isinstance(args, InfoArgs) else run_prune(args)


def run_index(args: IndexArgs) -> int:
    """Index, print what was done on stdout and each photo that was lost on stderr; 1 where any was."""
    import warnings

    max_pixels = read_megapixels(args.max_megapixels)
    warnings.filterwarnings("ignore", module=r"PIL\.")  # remarks on damaged metadata of photos that open all the same
    with no_collections():
        from vlm.encoders import load_encoders
        from vlm.model import load
        from vlm.search.build import build

        encoders = load_encoders(args.model or made_by(args.out), device=args.device).for_inference()
        captioner = load(args.caption_model, device=args.device) if args.caption else None
    report = build(
        os.path.expanduser(args.photos),
        args.out,
        encoders,
        captioner=captioner,
        batch_size=args.batch_size,
        max_pixels=max_pixels,
        exact_rows=args.exact_rows,
        show_progress_bar=True,
    )
    for error in report.unreadable:
        print(f"error: {named_as_options(str(error))}", file=sys.stderr)
    counts = {name: getattr(report, name) for name in ("new", "changed", "unchanged", "dropped")}
    counts["unreadable"] = len(report.unreadable)
    shown = ", ".join(f"{count:,} {name}" for name, count in counts.items())
    speed = f"; {report.speed:,.1f} photos/s" if report.new + report.changed else ""
    print(f"{args.out}: {report.photos:,} photos ({shown}){speed}")
    if report.recall is not None:
        print(f"recall@10 of the approximate index against exact search: {100 * report.recall:.1f} %")
    return int(bool(report.unreadable))


def run_search(args: SearchArgs) -> int:
    """Print what was found."""
    with no_collections():
        from vlm.encoders import load_encoders
        from vlm.search.index import open_index

        index = open_index(args.index)
        encoders = load_encoders(args.model or index.maker.model, device=args.device)
    text = " ".join(args.text) if args.text else None
    hits = index.search(encoders, text, images=args.image, minus=args.minus, top=args.top)
    for hit in hits:
        if args.json:
            line = json_line({"path": hit.path, "score": hit.score, "caption": hit.caption})
        else:
            line = printable(f"{hit.score:.3f}  {hit.path}" + (f"  {hit.caption}" if hit.caption else ""))
        print(line)
    if args.html is not None:
        write_page(Path(os.path.expanduser(args.html)), args, hits)
    return 0


def run_prune(args: PruneArgs) -> int:
    """Drop photos, and print how many."""
    from vlm.search.build import prune
    from vlm.search.index import open_index

    dropped = prune(args.index, [os.path.expanduser(folder) for folder in args.folder])
    print(f"{args.index}: {len(open_index(args.index)):,} photos ({dropped:,} dropped)")
    return 0


def run_info(args: InfoArgs) -> int:
    """Print what an index holds."""
    from collections import Counter

    from vlm.search.index import open_index

    index = open_index(args.index)
    known = index.known()
    folders = Counter(os.path.dirname(path) for path in known)
    gone = sum(not os.path.exists(path) for path in known)
    captions = sum(has_caption for _, _, has_caption in known.values())
    maker = index.maker
    if args.json:
        record = {"model": maker.model, "weights_sha256": maker.weights_sha256, "photos": len(known)}
        print(json_line({**record, "captions": captions, "gone": gone, "folders": dict(sorted(folders.items()))}))
        return 0
    print(f"model: {maker.model} (weights {maker.weights_sha256[:12]})")
    print(f"photos: {len(known):,}, {captions:,} with a caption")
    if gone:
        print(f"files that are gone: {gone:,}; drop them: vlm retrieve prune {args.index}")
    for folder, count in sorted(folders.items()):
        print(printable(f"  {count:,}  {folder}"))
    return 0


def made_by(where: str) -> str:
    """The model of an index; `tiny` where there is none yet."""
    from vlm.errors import DataError
    from vlm.search.index import open_index

    try:
        return open_index(where).maker.model
    except DataError:
        return "tiny"  # what is wrong with `where`, if anything, `build` says


def write_page(file: Path, args: SearchArgs, hits: "Sequence[Hit]") -> None:
    """Write the photos that were found as one HTML file that needs nothing else.

    Raises:
        ArgumentError: the file cannot be written, or jinja2 is not installed.
    """
    from vlm.files.atomic import write_text
    from vlm.files.pages import template, thumbnail

    cards: list[dict[str, Any]] = [
        {**vars(hit), "thumbnail": thumbnail(hit.path), "link": Path(hit.path).as_uri()} for hit in hits
    ]
    page = template("search.html").render(
        title=" ".join(args.text) or "like a photo",
        examples=[thumbnail(image) for image in args.image],
        minus=args.minus,
        index=args.index,
        cards=cards,
    )
    try:
        write_text(file, page)
    except OSError as error:
        raise ArgumentError(f"--html {args.html!r} cannot be written: {error.strerror}; name another file") from None


if __name__ == "__main__":
    sys.exit(main())
