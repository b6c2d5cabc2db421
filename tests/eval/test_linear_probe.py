"""The linear probe as an estimator, held against scikit-learn's own, and as a benchmark."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.base import clone
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline

from eval import models
from eval.__main__ import main
from eval.benchmarks import class_folders, find
from eval.linear_probe import ImageFeatures, LinearProbe
from eval.report import read
from vlm.errors import ArgumentError, DataError, ImageError


@pytest.fixture
def data(tmp_path, put_photo) -> Path:
    """Two classes; the tests' photos are among those that are learnt from."""
    for name, photos in {"cat": ("cat", "raccoon"), "building": ("temple", "stairs")}.items():
        for photo in photos:
            put_photo(tmp_path / f"data/train/{name}/{photo}.jpg", photo)
        put_photo(tmp_path / f"data/test/{name}/again.jpg", photos[0])
    return tmp_path / "data"


def blobs(per_class: int = 12, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three classes that overlap, in four dimensions."""
    rng, labels = np.random.default_rng(seed), np.repeat(["a", "b", "c"], per_class)
    return rng.normal(size=(len(labels), 4)) + 1.5 * np.eye(3, 4)[np.repeat(range(3), per_class)], labels


class Mean:
    """A model whose features are a photo's mean colour."""

    name, weights = "mean", "0" * 64

    def prepare(self, image) -> np.ndarray:
        from vlm.image import load_image

        return np.asarray(load_image(image)).mean((0, 1))

    def features(self, images) -> np.ndarray:
        return np.stack(images)


# The estimator


def test_the_sweep_takes_the_best_of_what_it_tried_and_fits_all_samples():
    X, y = blobs()
    probe = LinearProbe().fit(X, y)
    aside = probe._kept_aside(y)
    assert [int(aside[y == label].sum()) for label in "abc"] == [2, 2, 2]  # a fifth of twelve
    for strength, accuracy in probe.validation_accuracy_.items():
        ours = LogisticRegression(C=strength, max_iter=1000).fit(X[~aside], y[~aside])
        assert ours.score(X[aside], y[aside]) == pytest.approx(accuracy)
    tried = probe.validation_accuracy_
    assert {10.0**power for power in (-6, -4, -2, 0, 2, 4, 6)} <= {round(value, 12) for value in tried}
    assert len(tried) <= 15
    assert min(value for value in tried if tried[value] == max(tried.values())) == probe.C_
    reference = LogisticRegression(C=probe.C_, max_iter=1000).fit(X, y)
    np.testing.assert_allclose(probe.predict_proba(X), reference.predict_proba(X), rtol=1e-6)
    assert probe.predict(X).tolist() == reference.predict(X).tolist()
    assert probe.score(X, y) == reference.score(X, y)


def test_the_sweep_ends_at_neighbours_of_the_best(monkeypatch):
    """With an accuracy that peaks at one of the 97 values, that one is found."""
    peak = -13  # in eighths of a decade

    class Peaked:
        def __init__(self, C: float):
            self.place = round(8 * np.log10(C))

        def fit(self, X, y):
            return self

        def score(self, X, y):
            return 1 - abs(self.place - peak) / 100

    probe = LinearProbe()
    monkeypatch.setattr(probe, "_regression", Peaked)
    assert probe._sweep(*[np.zeros((1, 1))] * 4) == pytest.approx(10 ** (peak / 8))
    assert len(probe.validation_accuracy_) == 15


def test_a_class_of_one_sample_is_learnt_from():
    X, y = blobs()
    rare = np.append(y, "rare")
    probe = LinearProbe().fit(np.vstack([X, [[9, 9, 9, 9]]]), rare)
    assert not probe._kept_aside(rare)[-1]
    assert probe.classes_.tolist() == ["a", "b", "c", "rare"]


@pytest.mark.parametrize(
    "labels, options, error, message",
    [
        (["a", "a"], {}, DataError, "all 2 samples are of the class 'a'"),
        (["a", "b"], {}, DataError, "every class has a single sample"),
        (["a", "b"], {"validation": 1.0}, ArgumentError, r"validation=1\.0 is not a share"),
    ],
)
def test_unusable_labels(labels, options, error, message):
    with pytest.raises(error, match=message):
        LinearProbe(**options).fit(np.eye(2), labels)


# With photos


def test_a_pipeline_from_photos_to_labels(data):
    photos = sorted(data.glob("train/*/*.jpg"))
    labels = [photo.parent.name for photo in photos]
    pipeline: Any = clone(make_pipeline(ImageFeatures(Mean(), batch_size=3), LinearProbe()))
    assert pipeline.fit(photos, labels).predict(photos).tolist() == labels
    features = ImageFeatures(Mean()).fit_transform(photos)
    one_by_one = [ImageFeatures(Mean()).fit_transform([photo])[0] for photo in photos]
    np.testing.assert_array_equal(features, one_by_one)
    assert features.shape == (4, 3) and features.dtype == np.float32


def test_photos_and_models_that_cannot_be_used(data):
    features = ImageFeatures(Mean()).fit([])
    with pytest.raises(DataError, match="no photos"):
        features.transform([])
    with pytest.raises(ImageError, match=r"absent\.jpg"):
        features.transform([data / "absent.jpg"])
    with pytest.raises(ArgumentError, match="batch_size=0 is below 1"):
        ImageFeatures(Mean(), batch_size=0).fit([])
    with pytest.raises(ArgumentError, match=r"'mean' cannot caption photos.*it can do: featurize"):
        models.check(Mean(), "caption")  # pyright: ignore[reportArgumentType]


# The benchmark


def test_the_command_measures_the_pooled_tower(data, random_model, capsys):
    import torch

    import vlm

    out = data.parent / "out"
    assert main(["linear_probe", "--data", str(data), "--model", str(random_model), "--out", str(out)]) == 0
    assert capsys.readouterr().out.startswith(f"linear_probe (data, test), model {random_model}, n = 2\naccuracy ")
    model = vlm.load(str(random_model))
    photos = [*sorted(data.glob("train/*/*.jpg")), *sorted(data.glob("test/*/*.jpg"))]
    grid = torch.stack([photo.patches for photo in model.encode(photos)])
    features = grid.mean((1, 2)).numpy()  # [photos, dim]

    results, items = read(out)
    train = [0, 0, 1, 1]  # building, cat
    probe = LinearProbe().fit(features[:4], train)
    expected = probe.predict(features[4:]).tolist()
    assert [item["id"] for item in items] == ["test/building/again.jpg", "test/cat/again.jpg"]
    assert [item["prediction"] for item in items] == [("building", "cat")[number] for number in expected]
    assert results["figures"]["accuracy"]["value"] == 50 * sum(np.equal(expected, [0, 1]))
    assert results["settings"]["C"] == pytest.approx(probe.C_)
    assert results["settings"]["training photos"] == 4 and results["of"] == 2
    submitted = json.loads((out / "predictions.json").read_text())
    assert [record["label"] for record in submitted] == expected


def test_the_first_items_are_of_both_parts_and_all_classes(data):
    items = find("linear_probe").read(data, "test")
    assert [item.id for item in items[:4]] == [
        "train/building/stairs.jpg",
        "train/cat/cat.jpg",
        "test/building/again.jpg",
        "test/cat/again.jpg",
    ]
    assert [item.scored for item in items[:4]] == [False, False, True, True]
    with pytest.raises(DataError, match="none of the 2 photos is there to score"):
        find("linear_probe").score(items[:2], ["AAAAAA=="] * 2)


def test_folders_that_cannot_be_used(data, put_photo, monkeypatch):
    put_photo(data / "test/dog/1.jpg")
    with pytest.raises(DataError, match=r"test' has the class 'dog', and .*train' has not"):
        find("linear_probe").read(data, "test")
    with pytest.raises(DataError, match=r"val' is not a folder; .*--split val"):
        find("linear_probe").read(data, "val")
    monkeypatch.setattr(class_folders, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match=r"pip install 'vlm-foundation\[eval\]'"):
        find("linear_probe").read(data, "test")
