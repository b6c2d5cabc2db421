"""What a benchmark is: data, and three functions that read, score and write its publisher's formats."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vlm.errors import DataError

if TYPE_CHECKING:
    import numpy as np

Box = tuple[float, float, float, float]
OF_REAL = " of real photos"  # ends the name of a figure that real photos get from the judge of drawn pictures


@dataclass(frozen=True)
class Item:
    """One thing to predict, and what people said about it.

    Attributes:
        id: unique within the benchmark; the publisher's own number where there is one.
        image: the photo's file.
        references: captions, or accepted answers; empty where the publisher keeps them private.
        question: question, phrase to be found, or sentence to be judged.
        premise: for entailment, the caption that belongs to the photo.
        box: for grounding, where the phrase is: x1, y1, x2, y2 in pixels.
        size: for grounding, width and height of the photo that `box` belongs to.
        choices: for classification, the names of all classes; one tuple shared by all items.
        groups: parts of the benchmark whose figure is told apart, such as `{"domain": "out-domain"}`; several names
            where the item belongs to several parts.
        ratings: for human judgements, what people gave to each of the references.
        scored: False where it only serves to score others: a photo that a probe learns from, or a real one that
            generated ones are compared with.
    """

    id: int | str
    image: Path
    references: tuple[str, ...] = ()
    question: str = ""
    premise: str = ""
    box: Box | None = None
    size: tuple[int, int] = (0, 0)
    choices: tuple[str, ...] = field(default=(), repr=False)
    groups: Mapping[str, str | tuple[str, ...]] = field(default_factory=dict)
    ratings: tuple[tuple[float, ...], ...] = ()
    scored: bool = True


@dataclass(frozen=True)
class Scores:
    """What a set of predictions is worth, in points of a hundred.

    Lists have one entry for each item that is scored, in order.

    Attributes:
        figures: of the whole set, the leading one first; empty where the references are private.
        items: one value an item, for each figure that is the mean of such values.
        shown: each prediction as a person reads it.
        sums: what each item adds to the sums from which the other figures follow, see `Benchmark.of_sums`.
        predictions: what was scored, where that is not what the model said but follows from it: classes of a probe.
        settings: what the figures depend on besides the predictions, as JSON: the probe's regularisation.
        intervals: 95 % intervals of figures that follow neither from values nor from sums.
    """

    figures: dict[str, float]
    items: dict[str, list[float]]
    shown: list[str]
    sums: list[list[float]] = field(default_factory=list)
    predictions: "Predictions | None" = None
    settings: dict[str, Any] = field(default_factory=dict)
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)


Predictions = Sequence[Any]  # JSON values: a string, a box, a class number, embeddings


@dataclass(frozen=True)
class Benchmark:
    """A published test set.

    Attributes:
        name: as typed on the command line.
        task: what a model must be able to do: a task of `vlm.tasks`, or an ability of `eval.models`.
        needs: the files, in one line.
        card: folder under `datasets/` that says where they come from.
        splits: the first one is the default.
        metrics: names of the figures, the leading one first; the first two stand in the table of results.
        read: (folder, split) to items; raises DataError.
        score: all items and their predictions to scores of those items that are scored.
        submission: these and their predictions to what the publisher's server takes, as JSON.
        of_sums: figures that are not means over items, from sums over them: `float64[draws, sums]` to `float64[draws]`.
        running: items to a function that scores one prediction in points of a hundred, for the progress bar.
        columns: items to the task's inputs, one list for each kind of input.
        drawn: `read` makes the pictures itself and writes them into the folder; nothing has to be there.
    """

    name: str
    task: str
    needs: str
    card: str
    splits: tuple[str, ...]
    metrics: tuple[str, ...]
    read: Callable[[Path, str], list[Item]]
    score: Callable[[Sequence[Item], Predictions], Scores]
    submission: Callable[[Sequence[Item], Predictions], Any]
    of_sums: Mapping[str, Callable[["np.ndarray"], "np.ndarray"]] = field(default_factory=dict)
    running: Callable[[Sequence[Item]], Callable[[Item, Any], float]] | None = None
    columns: Callable[[Sequence[Item]], tuple[Sequence[Any], ...]] = lambda items: ()
    drawn: bool = False


def questions(items: Sequence[Item]) -> tuple[list[str]]:
    """The one input of tasks that are asked in words: a question, or a phrase."""
    return ([item.question for item in items],)


def shipped(source: str) -> str:
    """What to do about a publisher's file: take it from its archive or page."""
    return f"take it from the publisher's {source}"


def written(form: str) -> str:
    """What to do about a file that the user writes."""
    return f"write it as JSON: {form}"


def find_file(folder: Path, name: str, remedy: str) -> Path:
    """A file in the folder of a benchmark.

    Args:
        folder: given by the user.
        name: path inside it.
        remedy: what to do where the file is missing, see `shipped` and `written`.

    Raises:
        DataError: it is not there.
    """
    path = folder / name
    if not folder.is_dir():
        raise DataError(f"--data {str(folder)!r} is not a folder; give the one that holds {name} ({remedy})")
    if not path.is_file():
        raise DataError(f"{str(path)!r} is missing; {remedy}")
    return path


def read_json(folder: Path, name: str, remedy: str) -> Any:
    """Read a JSON file in the folder of a benchmark; arguments as in `find_file`.

    Raises:
        DataError: it is missing or not JSON.
    """
    path = find_file(folder, name, remedy)
    try:
        return json.loads(path.read_bytes())
    except ValueError as error:  # UnicodeDecodeError is one too
        raise DataError(f"{str(path)!r} is not JSON: {error}; {remedy}") from None


@contextmanager
def layout(path: Path | str) -> Iterator[None]:
    """Say which file lacks the fields that a reader needs."""
    try:
        yield
    except DataError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        what = f"lacks {error}" if isinstance(error, KeyError) else f"does not have the layout expected ({error})"
        raise DataError(f"{str(path)!r} {what}; check that it is the right file") from None


def texts(value: str | Sequence[str]) -> tuple[str, ...]:
    """The texts of a field of an annotation file; one string is a list of one.

    Raises:
        ValueError: it is something else, or there are none.
    """
    if not isinstance(value, str | list | tuple):
        raise ValueError(f"{str(value)[:60]} where a list of texts belongs")
    found = (value,) if isinstance(value, str) else tuple(value)
    if not found or not all(isinstance(text, str) for text in found):
        raise ValueError(f"{str(value)[:60]} where a list of texts belongs")
    return found


def inside(folder: Path, name: str) -> Path:
    """A path that an annotation file names, which must lie inside the folder.

    Raises:
        DataError: it leads out of the folder.
    """
    relative = Path(name)
    if relative.is_absolute() or ".." in relative.parts:
        raise DataError(f"the annotations name the image {name!r}, which lies outside {str(folder)!r}")
    return folder / relative


def find_photo(folder: Path, name: str) -> Path:
    """A photo that an annotation file names, in the folder or in its `images/`.

    Raises:
        DataError: it leads out of the folder.
    """
    path, other = inside(folder, name), inside(folder / "images", name)
    return other if other.is_file() and not path.is_file() else path


def unicode_only(item: Item) -> Item:
    """An item whose texts any tokenizer can read: half of a surrogate pair becomes a question mark."""

    def clean(text: str) -> str:
        return text.encode("utf-8", "replace").decode()

    references = tuple(clean(text) if isinstance(text, str) else text for text in item.references)
    return replace(item, references=references, question=clean(item.question), premise=clean(item.premise))


def check_items(items: Sequence[Item], source: str, captioned: bool = False) -> None:
    """Refuse an empty set, ids that stand twice, and items that lack the references that others have.

    Raises:
        DataError: see above.
    """
    if not items:
        raise DataError(f"{source} holds no items; check the split and the files")
    seen: set[int | str] = set()
    for item in items:
        if item.id in seen:
            raise DataError(f"{source} holds the id {item.id!r} twice; its figures would count it twice")
        seen.add(item.id)
    scored = [item for item in items if item.scored]
    lacking = [item for item in scored if not item.references]
    if lacking and (captioned or len(lacking) < len(scored)):
        what = "captions" if captioned else "answers"
        raise DataError(
            f"{source}: {len(lacking)} of {len(scored)} items have no {what}, {lacking[0].id!r} "
            f"({lacking[0].image.name}) for one; add {what} or remove these items"
        )
