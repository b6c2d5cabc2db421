"""Linear probe over class folders: what a linear classifier makes of a model's frozen features."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from eval.benchmarks import folders
from eval.benchmarks.base import Benchmark, Item, Predictions, Scores
from vlm.errors import ArgumentError, DataError

TRAIN = "train"


def read(folder: Path, split: str) -> list[Item]:
    """The photos of `train/`, which are learnt from, and those of the split, which are scored."""
    if find_spec("sklearn") is None:  # said here, and not after hours of features
        raise ArgumentError("linear_probe needs scikit-learn; install it: pip install 'vlm-foundation[eval]'")
    for part in (TRAIN, split):
        if not (folder / part).is_dir():
            raise DataError(
                f"{str(folder / part)!r} is no folder; linear_probe learns from {TRAIN}/ and is scored on test/, or on "
                "val/ (--split val), each with one folder a class"
            )
    train, test = folders.read(folder, TRAIN), folders.read(folder, split)
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


def score(items: Sequence[Item], predictions: Predictions) -> Scores:
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
    scores = folders.score([item for item in items if item.scored], found)
    return replace(scores, predictions=found, settings=settings)


BENCHMARKS = (
    Benchmark(
        name="linear_probe",
        task="featurize",
        needs="train/ and test/, or train/ and val/ (--split val), with one folder a class; scikit-learn",
        card="class_folders",
        splits=("test", "val"),
        metrics=("accuracy", "mean per class"),
        read=read,
        score=score,
        submission=folders.submission,
    ),
)
