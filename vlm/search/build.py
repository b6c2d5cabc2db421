"""Bring an index of photos up to date: look through a folder, encode what is new or changed, drop what is gone."""

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice, repeat
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from tqdm import tqdm

from vlm.data.stream import ordered_map
from vlm.encoders import Encoders
from vlm.errors import ArgumentError, ImageError, check_list
from vlm.files.lock import locked
from vlm.files.photos import IMAGE_SUFFIX
from vlm.image import MAX_PIXELS, load_image
from vlm.search.index import EXACT_ROWS, Index, check_place, open_index, open_or_create

if TYPE_CHECKING:
    from vlm.model import Model

COMMIT_SECONDS = 10.0  # what a killed run loses at most
LAST_TIME = 2**63 - 1  # nanoseconds after 1970 that an index can hold: the year 2262
MAX_RATIO = 200  # of the sides: public transforms resize the shorter one first, and a line would become gigabytes


@dataclass
class BuildReport:
    """What `build` did."""

    photos: int = 0  # in the index, afterwards
    new: int = 0
    changed: int = 0
    unchanged: int = 0
    dropped: int = 0
    unreadable: list[ImageError] = field(default_factory=list)
    seconds: float = 0.0  # of decoding, encoding and writing
    recall: float | None = None  # at 10, of the approximate index where one was made or extended

    @property
    def speed(self) -> float:
        """Photos a second."""
        return (self.new + self.changed) / max(self.seconds, 1e-9)


def build(
    folder: str | os.PathLike[str],
    where: str | os.PathLike[str],
    encoders: Encoders,
    *,
    captioner: "Model | None" = None,
    batch_size: int = 32,
    max_pixels: int = MAX_PIXELS,
    exact_rows: int = EXACT_ROWS,
    commit_seconds: float = COMMIT_SECONDS,
    show_progress_bar: bool = False,
) -> BuildReport:
    """Make an index of the photos under a folder, or bring one up to date: only new and changed photos are encoded.

    An index may hold several folders; photos that lie elsewhere than under `folder` stay as they are.

    Args:
        folder: searched with all its subfolders, hidden ones aside; links are followed once. Photos are known by their
            real paths, so that a folder that is reached through a link is not indexed twice.
        where: as in `open_index`.
        encoders: the model; a later run must name the same one.
        captioner: writes a caption beside each photo that has none yet.
        batch_size: photos that go through the model together.
        max_pixels: larger photos are refused before they are decoded, and reported.
        exact_rows: above so many photos an approximate index is built, and its recall measured.
        commit_seconds: how often photos that are done are written.
        show_progress_bar: on stderr.

    Raises:
        ImageError: there is no photo under `folder`.
        ModelError: another model made the index.
        ArgumentError: an option has no meaning, `where` holds something else, or another run is writing into it.
        DataError: the index is damaged.
    """
    if batch_size < 1:
        raise ArgumentError(f"batch_size={batch_size} is below 1; give 1 or more")
    if exact_rows < 0:
        raise ArgumentError(f"exact_rows={exact_rows} is below 0; give 0 or more")
    photos, unreadable = find_photos(folder)
    where = check_place(where)
    with nullcontext() if "://" in where else locked(where):
        index = open_or_create(where, encoders)
        index.heal()
        return _update(
            index, folder, photos, unreadable, encoders, captioner, batch_size, max_pixels, exact_rows, commit_seconds,
            show_progress_bar,
        )  # fmt: skip


def _update(
    index: Index,
    folder: str | os.PathLike[str],
    photos: dict[str, tuple[int, int]],
    unreadable: dict[str, ImageError],
    encoders: Encoders,
    captioner: "Model | None",
    batch_size: int,
    max_pixels: int,
    exact_rows: int,
    commit_seconds: float,
    show_progress_bar: bool,
) -> BuildReport:
    """Bring an index up to date with the photos that were found; arguments as in `build`."""
    # real paths, and those by which earlier versions knew photos in a folder that was reached through a link
    roots = tuple(os.path.join(path, "") for path in (os.path.realpath(folder), os.path.abspath(folder)))
    before = {path: row for path, row in index.known().items() if path in photos or path.startswith(roots)}
    closed = tuple(os.path.join(path, "") for path in unreadable)  # what lies in there may well be there
    gone = [path for path in before if path not in photos and not path.startswith(closed)]
    index.drop(gone)
    todo = [
        path
        for path, state in photos.items()
        if before.get(path, ())[:2] != state or (captioner is not None and not before[path][2])
    ]
    report = BuildReport(unchanged=len(photos) - len(todo), dropped=len(gone))
    start = time.perf_counter()
    bar = tqdm(total=len(todo), unit="photo", disable=not show_progress_bar)
    rows: list[dict[str, Any]] = []
    written = start
    try:
        with bar:
            for part in _encoded(todo, encoders, captioner, batch_size, max_pixels):
                for path, found in part.items():
                    if isinstance(found, ImageError):
                        unreadable[path] = found
                    else:
                        size, mtime = photos[path]
                        rows.append({"path": path, "size": size, "mtime": mtime, **found})
                if time.perf_counter() - written >= commit_seconds:
                    index.put(rows)
                    rows, written = [], time.perf_counter()
                bar.update(len(part))
    finally:  # also where the user has stopped it
        index.put(rows)
    report.seconds = time.perf_counter() - start
    stale = [path for path in unreadable if path in before and path in photos]  # of a photo that is no longer this one
    index.drop(stale)
    done = [path for path in todo if path not in unreadable]
    report.changed = sum(path in before for path in done)
    report.new = len(done) - report.changed
    report.dropped += len(stale)
    report.unreadable = list(unreadable.values())
    report.recall = index.tune(exact_rows)
    report.photos = len(index)
    return report


def prune(where: str | os.PathLike[str], folders: Sequence[str | os.PathLike[str]] = ()) -> int:
    """Drop the photos of an index whose files are gone, and all photos under some folders.

    A photo whose folder cannot be read, such as one on a drive that is not there, counts as gone only where the system
    says that no such file exists.

    Returns:
        How many were dropped.

    Raises:
        DataError: there is no index, or it is damaged.
        ArgumentError: another run is writing into the index, or `folders` is one text.
    """
    check_list("folders", folders)
    index = open_index(where)
    roots = tuple(
        os.path.join(path, "") for folder in folders for path in (os.path.realpath(folder), os.path.abspath(folder))
    )
    with nullcontext() if "://" in index.where else locked(index.where):
        index.heal()
        gone = [path for path in index.known() if path.startswith(roots) or not _exists(path)]
        index.drop(gone)
        if gone:
            index.tune()
    return len(gone)


def _exists(path: str) -> bool:
    try:
        os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def find_photos(folder: str | os.PathLike[str]) -> tuple[dict[str, tuple[int, int]], dict[str, ImageError]]:
    """All photos under a folder, by absolute path, and the files and folders that cannot be read.

    Hidden files and folders are left out. Links are followed; a folder that is reached twice, as in a loop of links,
    counts once.

    Returns:
        Size in bytes and time of change in nanoseconds of each photo, and what is wrong with each path that failed.

    Raises:
        ImageError: there is no photo.
    """
    photos: dict[str, tuple[int, int]] = {}
    failed: dict[str, ImageError] = {}
    seen: set[tuple[int, int]] = set()

    def fail(error: OSError) -> None:
        failed[error.filename] = ImageError(f"{error.filename!r} cannot be read: {error.strerror}; check the path")

    for place, folders, names in os.walk(os.path.realpath(folder), onerror=fail, followlinks=True):
        try:
            status = os.stat(place)
        except OSError as error:
            fail(error)
            continue
        if (status.st_dev, status.st_ino) in seen:
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        # Links last: what is both a folder and the target of a link beside it keeps the folder's name.
        folders[:] = [name for name in folders if name[0] != "."]
        folders.sort(key=lambda name: (os.path.islink(os.path.join(place, name)), name))
        real = os.path.realpath(place)
        for name in sorted(names):
            path = os.path.join(real, name)
            if name[0] == "." or not IMAGE_SUFFIX.fullmatch(os.path.splitext(name)[1]):
                continue
            try:
                status = os.stat(path)
                path.encode()
            except OSError as error:
                fail(error)
            except UnicodeEncodeError:
                failed[path] = ImageError(f"{path!r} has a name that is not UTF-8; rename it")
            else:
                photos[path] = (status.st_size, min(max(status.st_mtime_ns, -LAST_TIME), LAST_TIME))
    if not photos:
        nothing = ImageError(f"{os.fspath(folder)!r} and its subfolders contain no photos; give another folder")
        raise next(iter(failed.values()), nothing)
    return photos, failed


def _encoded(
    paths: Sequence[str], encoders: Encoders, captioner: "Model | None", batch_size: int, max_pixels: int
) -> Iterator[dict[str, dict[str, Any] | ImageError]]:
    """Batches of photos: vector and caption of each path, or what is wrong with it; decoded ahead, on threads."""

    def prepare(path: str) -> Tensor | ImageError:
        try:
            image = load_image(path, max_pixels=max_pixels)
        except ImageError as error:
            return error
        if max(image.size) > MAX_RATIO * min(image.size):
            shape = "{}x{}".format(*image.size)
            return ImageError(f"{path!r} has {shape} pixels, one side over {MAX_RATIO} times the other; crop it")
        return encoders.image_transform(image)

    ready = zip(paths, ordered_map(prepare, paths, max(2, os.cpu_count() or 2), ahead=2 * batch_size), strict=True)
    while part := dict(islice(ready, batch_size)):
        found: dict[str, dict[str, Any] | ImageError] = {p: e for p, e in part.items() if isinstance(e, ImageError)}
        good = {path: pixels for path, pixels in part.items() if isinstance(pixels, Tensor)}
        if good:
            with torch.inference_mode():
                vectors = encoders.encode_image(torch.stack(list(good.values()))).float().cpu().numpy()
            captions: Iterable[Any] = repeat(None)
            if captioner is not None:
                captions = captioner.stream("caption", list(good), batch_size=batch_size, max_pixels=max_pixels)
            for path, vector, caption in zip(good, vectors, captions, strict=False):
                if isinstance(caption, ImageError):  # it has changed meanwhile
                    found[path] = caption
                else:
                    found[path] = {"vector": vector, "caption": caption and caption[0][0].text}
        yield found
