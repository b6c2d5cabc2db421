"""The benchmarks that draw their own pictures, with models that know the truth, or nothing."""

import json
from pathlib import Path

import pytest

from eval import models, run
from eval.__main__ import main
from eval.benchmarks import find, scenes
from eval.run import Options, evaluate
from vlm.data.scenes import make_scene
from vlm.data.scenes_text import KINDS
from vlm.image import load_image


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(scenes, "SCENES", 12)


class Knowing:
    """Answers and points as told: by what is asked about a picture."""

    name, weights = "knowing", "0" * 64

    def __init__(self, told: dict, default):
        self.told, self.default = told, default

    def prepare(self, image: Path) -> str:
        assert load_image(image).size == (260, 260)
        return image.stem

    def settings(self, task: str) -> dict:
        return {}

    def answer(self, images, texts):
        return [self.told.get((image, text), self.default) for image, text in zip(images, texts, strict=True)]

    ground = answer


def measure(name: str, folder: Path, model, **changes) -> dict:
    options = Options(find(name), folder / "drawn", "knowing", folder / "out", changes.pop("split", "test"), **changes)
    results = evaluate(options, load=lambda *_: model)
    assert results is not None
    return results


def truth(split: str = "test") -> dict:
    """Every answer, by picture and question."""
    made = {f"{split}-{number:03d}": make_scene(f"{split}/{number}") for number in range(12)}
    return {(name, asked.text): asked.answer for name, scene in made.items() for asked in scene.questions}


@pytest.mark.parametrize("split", ["test", "val"])
def test_a_model_that_knows_the_scenes_is_always_right(tmp_path, split):
    results = measure("scenes", tmp_path, Knowing(truth(split), "no idea"), split=split)
    assert list(results["figures"]) == ["accuracy", *(f"{kind} accuracy" for kind in KINDS)]
    assert {figure["value"] for figure in results["figures"].values()} == {100}
    assert {figure["low"] for figure in results["figures"].values()} == {100}
    assert len(list((tmp_path / "drawn").iterdir())) == 12


def test_a_model_that_always_says_red_gets_the_red_ones(tmp_path):
    results = measure("scenes", tmp_path, Knowing({}, "red"))
    asked = []  # the first question of each kind, as the benchmark's card says
    for number in range(12):
        scene = make_scene(f"test/{number}")
        asked += [q for kind in KINDS for q in [q for q in scene.questions if q.kind == kind][:1]]
    assert results["n"] == len(asked)
    red = [question for question in asked if question.answer == "red"]
    colours = [question for question in asked if question.kind == "colour"]
    assert results["figures"]["accuracy"]["value"] == pytest.approx(100 * len(red) / len(asked))
    right = [question for question in red if question.kind == "colour"]
    assert results["figures"]["colour accuracy"]["value"] == pytest.approx(100 * len(right) / len(colours))
    assert results["figures"]["count accuracy"]["value"] == 0
    assert set(results["groups"]["kind"]) == set(KINDS)


def test_a_few_items_have_figures_of_their_kinds_only(tmp_path):
    results = measure("scenes", tmp_path, Knowing(truth(), ""), limit=1)
    assert list(results["figures"]) == ["accuracy", "count accuracy"]


def test_boxes(tmp_path):
    told, boxes = {}, 0
    for number in range(12):
        scene = make_scene(f"test/{number}")
        told |= {(f"test-{number:03d}", phrase.text): phrase.box for phrase in scene.phrases}
        boxes += len({phrase.box for phrase in scene.phrases})
    results = measure("scenes_grounding", tmp_path, Knowing(told, None))
    assert (results["n"], results["figures"]["accuracy@0.5"]["value"]) == (boxes, 100)
    everything = measure("scenes_grounding", tmp_path / "all", Knowing({}, (0.0, 0.0, 1.0, 1.0)))
    assert everything["figures"]["accuracy@0.5"]["value"] == 0  # nothing fills half of a picture


def test_a_picture_that_an_older_version_drew_is_replaced(tmp_path):
    (path, *_) = (item.image for item in scenes.read_questions(tmp_path, "test"))
    right = path.read_bytes()
    path.write_bytes(b"older")
    scenes.read_questions(tmp_path, "test")
    assert path.read_bytes() == right


def test_training_and_both_splits_have_different_seeds():
    kinds = {split: [make_scene(f"{split}/{n}").things for n in range(12)] for split in ("train", "val", "test")}
    assert all(a not in kinds[other] for own in kinds for a in kinds[own] for other in kinds if other != own)


def test_the_command_needs_no_data(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(models, "load", lambda *_: Knowing(truth(), ""))
    monkeypatch.setattr(run.evaluate, "__defaults__", (models.load,))
    assert main(["scenes", "--model", "knowing"]) == 0
    assert "count accuracy     100.0" in capsys.readouterr().out
    assert (tmp_path / "runs/drawn/test-000.png").is_file()
    results = json.loads((tmp_path / "runs/eval/scenes-drawn-test-knowing/results.json").read_text())
    assert results["data"] == "drawn"


def test_other_benchmarks_say_what_data_they_need(capsys):
    assert main(["gqa"]) == 2
    assert "gqa needs --data, the folder with SPLIT_balanced_questions.json" in capsys.readouterr().err


def test_the_list_says_that_no_files_are_needed(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    assert "scenes: accuracy, count accuracy" in text
    assert "needs   no files" in text
