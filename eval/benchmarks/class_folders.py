"""Photos kept in one folder a class: zero-shot classification, and a linear probe on a model's frozen features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from eval.benchmark import Benchmark, Item, Predictions, Scores
from vlm.errors import ArgumentError, DataError, ImageError

TRAIN = "train"  # the part that a probe learns from
WORDS = "LOC_synset_mapping.txt"  # ImageNet's folders are named by codes, this file has the words


def read(folder: Path, split: str) -> list[Item]:
    """Each photo with its class; classes are numbered by the sorted folder names."""
    root = folder if split == "all" else folder / split
    if not root.is_dir():
        raise DataError(f"{str(root)!r} is not a folder; for classes in {str(folder)!r} itself give --split all")
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
        for image in _photos(path)
    ]


def _photos(folder: Path) -> list[Path]:
    """The photos of a class; none where its folder has none, which can still be what a photo is taken for."""
    from vlm.files.photos import expand_paths

    try:
        return expand_paths([str(folder)])
    except ImageError:
        return []


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


def read_probe(folder: Path, split: str) -> list[Item]:
    """The photos of `train/`, which are learnt from, and those of the split, which are scored."""
    if find_spec("sklearn") is None:  # said here, and not after hours of features
        raise ArgumentError("linear_probe needs scikit-learn; install it: pip install 'vlm-foundation[eval]'")
    for part in (TRAIN, split):
        if not (folder / part).is_dir():
            raise DataError(
                f"{str(folder / part)!r} is not a folder; linear_probe learns from {TRAIN}/ and is scored on test/, or "
                "on val/ (--split val), each with one folder a class"
            )
    train, test = read(folder, TRAIN), read(folder, split)
    names = train[0].choices
    unknown = sorted({item.references[0] for item in test} - set(names))
    if unknown:
        raise DataError(
            f"{str(folder / split)!r} has the class {unknown[0]!r}, and {str(folder / TRAIN)!r} has not; "
            "a probe knows the classes that it has learnt"
        )
    return spread(
        [replace(item, id=f"{TRAIN}/{item.id}", scored=False) for item in train]
        + [replace(item, id=f"{split}/{item.id}", choices=names) for item in test]
    )


def spread(items: Sequence[Item]) -> list[Item]:
    """The items in an order whose first ones are of both parts and of all classes, for `--limit`."""
    seen: Counter[tuple[bool, str]] = Counter()
    places = []
    for item in items:
        kind = (item.scored, item.references[0])
        places.append(seen[kind])
        seen[kind] += 1
    return [items[number] for number in sorted(range(len(items)), key=places.__getitem__)]


def score_probe(items: Sequence[Item], predictions: Predictions) -> Scores:
    """Fit a probe to the features of the training photos, and count what it gets right of the others."""
    import numpy as np

    from eval.linear_probe import LinearProbe
    from eval.models import unpack

    numbers = {name: number for number, name in enumerate(items[0].choices)}
    scored = np.array([item.scored for item in items])
    if scored.all() or not scored.any():
        lacking = "learn from" if scored.all() else "score"
        raise DataError(f"none of the {len(items)} photos is there to {lacking}; take more with --limit, or all")
    features = unpack(predictions)
    labels = np.array([numbers[item.references[0]] for item in items])
    probe = LinearProbe().fit(features[~scored], labels[~scored])
    found = probe.predict(features[scored]).tolist()
    settings = {
        "C": probe.C_,
        "validation accuracy": 100 * probe.validation_accuracy_[probe.C_],
        "training photos": int((~scored).sum()),
    }
    scores = score([item for item in items if item.scored], found)
    return replace(scores, predictions=found, settings=settings)


BENCHMARKS = (
    Benchmark(
        name="class_folders",
        task="classify",
        columns=lambda items: ([item.choices for item in items],),
        needs="one folder a class, in val/ or test/, or in DIR itself (--split all)",
        card="class_folders",
        splits=("val", "test", "train", "all"),
        metrics=("accuracy", "mean per class"),
        read=read,
        score=score,
        submission=submission,
        running=lambda items: correct,
    ),
    Benchmark(
        name="linear_probe",
        task="featurize",
        needs="train/ and test/, or train/ and val/ (--split val), with one folder a class; scikit-learn",
        card="class_folders",
        splits=("test", "val"),
        metrics=("accuracy", "mean per class"),
        read=read_probe,
        score=score_probe,
        submission=submission,
    ),
)
