"""Captions chosen with the help of the contrastive pair."""

import json
import shutil
from pathlib import Path

import pytest

import vlm
from vlm.errors import ArgumentError
from vlm.files import hub

PHOTOS = sorted((Path(__file__).parents[2] / "datasets" / "sample").glob("*.jpg"))


@pytest.fixture(scope="module")
def model():
    return vlm.load("tiny")


def test_the_order_is_that_of_scores_and_cosines(model):
    encoders = vlm.load_encoders("tiny")
    plain = model.captions(PHOTOS, num_captions=5, rerank=0)
    moved = 0
    for weight in (0.5, 4, 100):
        for photo, before, after in zip(
            PHOTOS, plain, model.captions(PHOTOS, num_captions=5, rerank=weight), strict=True
        ):
            cosines = (encoders.encode_image([photo]) @ encoders.encode_text([c.text for c in before]).T)[0].tolist()
            expected = {c.text: c.score + weight * cosine for c, cosine in zip(before, cosines, strict=True)}
            assert [c.text for c in after] == sorted(expected, key=lambda text: -expected[text])
            assert [c.score for c in after] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-3)
            moved += after[0].text != before[0].text
    assert moved


def test_the_best_of_all_beams_is_given(model):
    best = [row[0] for row in model.captions(PHOTOS, num_captions=5, rerank=10)]
    assert [row[0] for row in model.captions(PHOTOS, num_captions=1, rerank=10)] == best


def test_the_model_says_what_is_usual(model, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(hub.resolve("tiny").folder(), folder)
    config = json.loads((folder / "config.json").read_text())
    for weight in (0, 100):
        (folder / "config.json").write_text(json.dumps({**config, "tasks": {"caption": {"rerank": weight}}}))
        assert vlm.load(str(folder)).captions(PHOTOS[:4]) == model.captions(PHOTOS[:4], rerank=weight)
    for file in hub.PAIR_FILES:
        (folder / file).unlink()
    alone = vlm.load(str(folder))  # asks for a weight, and has nothing to weigh
    assert alone.captions(PHOTOS[:4]) == model.captions(PHOTOS[:4], rerank=0)
    with pytest.raises(ArgumentError, match="has no encoders"):
        alone.captions(PHOTOS[:4], rerank=4)


@pytest.mark.parametrize("weight", [-1, float("nan"), float("inf"), "4", True])
def test_impossible_weights(model, weight):
    with pytest.raises(ArgumentError, match="rerank="):
        model.captions(PHOTOS[:1], rerank=weight)
