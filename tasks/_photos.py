"""What the commands about photos share: their arguments, and printing photo by photo."""

import csv
import io
import json
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TypeVar

import tyro

from tasks._command import named_as_options, printable
from vlm.errors import ArgumentError, ImageError

if TYPE_CHECKING:
    from vlm.model import Model

LISTS = (".txt", ".csv", ".tsv", ".list", ".lst", ".json")  # a value that ends like this is a file, not a name
MANY = 8  # photos from which a progress bar is worth its line
Found = TypeVar("Found")


@dataclass(frozen=True, kw_only=True)
class PhotoArgs:
    """Arguments of every command about photos; each command adds its own."""

    image: Annotated[tuple[str, ...], tyro.conf.UseAppendAction]
    """Photos, folders of photos, or patterns such as "trip/*.jpg"."""
    model: str = "tiny"
    """Bundled name, local folder or hub id; ofa:FILE, ofa:FOLDER or ofa:OWNER/NAME for an OFA checkpoint."""
    tokenizer: str | None = None
    """Folder or hub id of an OFA checkpoint's vocabulary, if it is not in the same folder as the checkpoint."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    batch_size: int = 16
    """Photos per batch; affects speed and memory, not the results."""
    max_megapixels: float = 64.0
    """Photos with more megapixels are skipped, with an error, without decoding them."""
    json: bool = False
    """Print one JSON object per line."""

    @property
    def max_pixels(self) -> int:
        return read_megapixels(self.max_megapixels)

    def paths(self) -> list[Path]:
        """The photos.

        Raises:
            ArgumentError: no photo was given, or an option about photos has no meaning.
            ImageError: nothing but folders without photos, and patterns that match none.
        """
        if not self.image:
            raise ArgumentError("no photo was given; name one with --image photo.jpg")
        if self.batch_size < 1:
            raise ArgumentError(f"--batch-size {self.batch_size} is below 1; give 1 or more")
        read_megapixels(self.max_megapixels)
        import warnings

        from vlm.files.photos import expand_paths

        warnings.filterwarnings(
            "ignore", module=r"PIL\."
        )  # remarks on damaged metadata of photos that open all the same
        return expand_paths(self.image)

    def load(self, task: str) -> "Model":
        """The model.

        Raises:
            ModelError: there is no such model, or its files cannot be used.
            ArgumentError: the device cannot be used, or the model was not trained for the task.
        """
        import vlm
        from tasks._command import no_collections

        with no_collections():
            model = vlm.load(self.model, device=self.device, tokenizer=self.tokenizer)
        model.task(task)
        return model


def print_each(
    paths: Sequence[Path], found: Iterable[Found | ImageError], lines: Callable[[Path, Found], Iterable[str]]
) -> int:
    """Print what was found of each photo on stdout, and what went wrong with single photos on stderr.

    Args:
        paths: the photos.
        found: of each, in order, or what is wrong with it.
        lines: what is printed; an ImageError that it raises is that one photo's.

    Returns:
        The exit code: 1 where anything went wrong.
    """
    from tqdm import tqdm

    failed = False
    with tqdm(total=len(paths), unit="photo", file=sys.stderr, disable=len(paths) <= MANY) as bar:
        for path, result in zip(paths, found, strict=True):
            bar.update()
            try:
                if isinstance(result, ImageError):
                    raise result
                for line in lines(path, result):
                    tqdm.write(line, file=sys.stdout)
            except ImageError as error:
                failed = True
                tqdm.write(f"error: {named_as_options(str(error))}", file=sys.stderr)
    return int(failed)


def read_megapixels(value: float) -> int:
    """The pixels of `--max-megapixels`.

    Raises:
        ArgumentError: it allows no photo, or is not a number.
    """
    if not 1e-6 <= value < math.inf:
        raise ArgumentError(f"--max-megapixels {value:g} allows no photo; give a number above 0, such as 64")
    return round(value * 1e6)


def labelled(path: Path, many: bool, *parts: str | None) -> str:
    """A line of output: the path where there are several photos, and the parts that are not None, joined by colons."""
    return printable(": ".join([str(path)] * many + [part for part in parts if part is not None]))


def read_list(option: str, value: str) -> list[str]:
    """Names from a file, or from the option itself, separated by commas.

    A text file has one name a line; in a .csv file, commas separate names as well; a .json file holds a list.

    Raises:
        ArgumentError: the file is missing or cannot be read, or there are no names.
    """
    form = "give a text file with one name per line"
    path = Path(os.path.expanduser(value))
    try:
        is_file = path.is_file()
    except (OSError, ValueError):  # longer than the name of a file may be
        is_file = False
    if is_file or path.suffix.lower() in LISTS or _looks_like_path(value):
        try:
            with path.open(encoding="utf-8-sig", newline="") as file:
                text = file.read()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or "it is not UTF-8 text"
            raise ArgumentError(f"{option} {value!r} cannot be read: {reason}; {form}") from None
        if path.suffix.lower() == ".json":
            names = _json_list(option, value, text)
        elif path.suffix.lower() == ".csv":
            names = [name for row in csv.reader(io.StringIO(text)) for name in row]
        else:
            names = text.splitlines()
    else:
        names = value.split(",")
        if len(names) == 1 and re.search(r"[;|\t]", value):
            raise ArgumentError(f"{option} {value!r} is one name; separate names by commas, or {form}")
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise ArgumentError(f"{option} {value!r} contains no names; separate names by commas, or {form}")
    return names


def _looks_like_path(value: str) -> bool:
    """Whether a value without commas names a file rather than a thing: "salt/pepper" does not."""
    starts = ("~", os.sep, f".{os.sep}", f"..{os.sep}")
    return "," not in value and (value.startswith(starts) or (os.sep in value and Path(value).parent.is_dir()))


def _json_list(option: str, value: str, text: str) -> list[str]:
    try:
        names = json.loads(text)
    except ValueError as error:
        raise ArgumentError(f"{option} {value!r} is not JSON: {error}") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ArgumentError(f"{option} {value!r} must hold a list of texts")
    return names
