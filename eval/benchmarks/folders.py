"""Zero-shot classification of any photos that are kept in one folder a class."""

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from eval.benchmarks.base import Benchmark, Item, Predictions, Scores
from vlm.errors import DataError

WORDS = "LOC_synset_mapping.txt"  # ImageNet's folders are named by codes, this file has the words


def read(folder: Path, split: str) -> list[Item]:
    """Each photo with its class; classes are numbered by the sorted folder names."""
    from vlm.image import expand_paths

    root = folder if split == "all" else folder / split
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is no folder; for classes that lie in {str(folder)!r} itself give --split all")
    classes = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not classes:
        raise DataError(f"{str(root)!r} holds no folders; put the photos into one folder a class")
    words = _words(folder / WORDS)
    names = tuple(words.get(path.name, path.name) for path in classes)
    if len(set(names)) < len(names):
        double = next(name for name in names if names.count(name) > 1)
        raise DataError(f"{str(root)!r} has two classes called {double!r}; a model cannot tell them apart by name")
    return [
        Item(f"{path.name}/{image.name}", image, (name,), choices=names, groups={"class": name})
        for path, name in zip(classes, names, strict=True)
        for image in expand_paths([str(path)])
    ]


def _words(path: Path) -> dict[str, str]:
    """The first name of each WordNet id, where the file is there."""
    if not path.is_file():
        return {}
    lines = [line.partition(" ") for line in path.read_text("utf-8").splitlines()]
    # two classes are called crane, two maillot: they keep all their names
    times = Counter(names.split(",")[0] for _, _, names in lines)
    return {id: names.split(",")[0] if times[names.split(",")[0]] == 1 else names for id, _, names in lines}


def correct(item: Item, label: int) -> float:
    """Whether the number is that of the photo's class, in points."""
    return 100.0 * (item.choices[label] == item.references[0])


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Share of right classes over all photos, and the mean of that share over classes."""
    values = [correct(item, label) for item, label in zip(items, predictions, strict=True)]
    classes: dict[str, list[float]] = {}
    for item, value in zip(items, values, strict=True):
        classes.setdefault(item.references[0], []).append(value)
    means = [sum(found) / len(found) for found in classes.values()]
    figures = {"accuracy": sum(values) / len(values), "mean per class": sum(means) / len(means)}
    shown = [item.choices[label] for item, label in zip(items, predictions, strict=True)]
    return Scores(figures, {"accuracy": values}, shown)


def submission(items: Sequence[Item], predictions: Predictions) -> list[dict[str, Any]]:
    """There is no server for folders: the class of each photo, by name and by number."""
    return [
        {"image": item.id, "class": item.choices[label], "label": label}
        for item, label in zip(items, predictions, strict=True)
    ]


BENCHMARKS = (
    Benchmark(
        name="class_folders",
        task="classify",
        needs="one folder a class, in val/ or test/, or in DIR itself (--split all)",
        card="class_folders",
        splits=("val", "test", "train", "all"),
        metrics=("accuracy", "mean per class"),
        read=read,
        score=score,
        submission=submission,
        running=lambda items: correct,
    ),
)
