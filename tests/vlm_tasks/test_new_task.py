"""A new task is one file: it is found, trained, asked and evaluated without a change anywhere else."""

import io
import json
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from PIL import Image
from webdataset.writer import TarWriter

import vlm
import vlm.tasks
from eval.benchmark import Benchmark, Item, Scores
from eval.run import Options, evaluate
from eval.validation import MEASURES
from vlm.errors import ArgumentError
from vlm.train import run
from vlm.train.config import from_json

ROOT = Path(__file__).parents[2]

DAY_OR_NIGHT = '''
"""Say whether a photo was taken by day or by night."""

import random
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar

from vlm.data.shards import Sample
from vlm.tasks.base import Task, TrainingExample, choose


class DayOrNight(Task):
    """A photo to "day" or "night"."""

    name = "day_or_night"
    does = "tell day from night"
    defaults: ClassVar = {"prompt": " is it day or night?", "beams": 2, "max_tokens": 3}
    metric = "answers"
    one_source = True

    @classmethod
    def in_sample(cls, sample: Sample) -> bool:
        return "light" in sample.fields

    @classmethod
    def texts(cls, sample: Sample) -> Iterator[str]:
        if cls.in_sample(sample):
            yield " " + sample.fields["light"]

    def examples(self, sample: Sample, rng: random.Random, count: int) -> list[TrainingExample]:
        lights = [sample.fields["light"]] if self.in_sample(sample) else []
        ids = [self.tokenizer.encode(f" {light}") for light in choose(lights, count, rng)]
        return [self.example(self.source(None), answer) for answer in ids]

    def checks(self, sample: Sample) -> Iterator[tuple[tuple[Any, ...], Sequence[str]]]:
        if self.in_sample(sample):
            yield (), (sample.fields["light"],)
'''


@pytest.fixture
def day_or_night(tmp_path, monkeypatch) -> Iterator[None]:
    """The file lies in the folder of tasks, as far as Python can tell."""
    folder = tmp_path / "more_tasks"
    folder.mkdir()
    (folder / "day_or_night.py").write_text(DAY_OR_NIGHT)
    monkeypatch.setattr(vlm.tasks, "__path__", [*vlm.tasks.__path__, str(folder)])
    found = vlm.tasks.find_tasks(vlm.tasks.__path__)
    assert found.keys() - vlm.tasks.TASKS.keys() == {"day_or_night"}
    monkeypatch.setitem(vlm.tasks.TASKS, "day_or_night", found["day_or_night"])
    AcceleratorState._reset_state(True)
    yield
    del sys.modules["vlm.tasks.day_or_night"]
    delattr(vlm.tasks, "day_or_night")


def photo(light: str, seed: int) -> bytes:
    low, high = (150, 256) if light == "day" else (0, 100)
    pixels = np.random.default_rng(seed).integers(low, high, (4, 4, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((64, 64)).save(buffer, "PNG")
    return buffer.getvalue()


def lights(first: int, count: int) -> Iterator[tuple[str, bytes]]:
    for number in range(first, first + count):
        light = ("day", "night")[number % 2]
        yield light, photo(light, number)


def test_a_task_in_one_file_is_trained_asked_and_evaluated(tmp_path, day_or_night, capsys):
    (tmp_path / "shards").mkdir()
    with TarWriter(str(tmp_path / "shards" / "a.tar")) as writer:
        for number, (light, image) in enumerate(lights(0, 40)):
            split = "train" if number < 36 else "val"
            record = {"captions": ["a photo"], "light": light, "source": "set", "split": split}
            writer.write({"__key__": f"photo{number:03}", "png": image, "json": record})
    config = from_json({
        "backbone": {"vocab_size": 0, "dim": 32, "ffn_dim": 32, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
                     "patch_dim": 256, "max_source_positions": 32, "max_target_positions": 32, "token_bucket_size": 8,
                     "image_bucket_size": 4, "code_grid": 4},
        "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random", "text_tokens": 280,
        "precision": "no", "augmentation": {"min_area": 1.0, "jitter": 0.0},
        "phases": [{"name": "a", "mix": {"day_or_night": 3.0, "caption": 1.0}, "epochs": 10, "batch_size": 6,
                    "texts_per_photo": 1, "lr": 3e-3, "tower_lr": 3e-3, "dropout": 0.0, "ema": 0.5}],
    })  # fmt: skip
    run.train(config, str(tmp_path / "shards"), tmp_path / "out", MEASURES)
    shown = capsys.readouterr().out
    assert "set day_or_night" in shown and "set caption" in shown and "accuracy 100.0000" in shown

    unseen = dict(enumerate(lights(100, 10)))
    model = vlm.load(tmp_path / "out" / "a")
    found = model.run("day_or_night", [image for _, image in unseen.values()])
    assert [answers[0].text for answers in found] == [light for light, _ in unseen.values()]

    folder = tmp_path / "photos"
    folder.mkdir()
    for number, (_, image) in unseen.items():
        (folder / f"{number}.png").write_bytes(image)

    def read(data: Path, split: str) -> list[Item]:
        return [Item(number, data / f"{number}.png", (light,)) for number, (light, _) in unseen.items()]

    def score(items, predictions) -> Scores:
        right = [100.0 * (said == item.references[0]) for item, said in zip(items, predictions, strict=True)]
        return Scores({"accuracy": sum(right) / len(right)}, {"accuracy": right}, list(predictions))

    def write(items, predictions) -> list[str]:
        return list(predictions)

    benchmark = Benchmark("lights", "day_or_night", "photos", "sample", ("all",), ("accuracy",), read, score, write)
    results = evaluate(Options(benchmark, folder, str(tmp_path / "out" / "a"), tmp_path / "eval", "all"))
    assert results is not None and results["figures"]["accuracy"]["value"] == 100
    assert results["prompt"] == " is it day or night?"
    written = json.loads((tmp_path / "out" / "a" / "config.json").read_text())
    assert written["tasks"].keys() == {"day_or_night", "caption"}


def test_no_other_file_knows_the_new_task(day_or_night):
    files = [path for folder in ("vlm", "tasks", "eval") for path in (ROOT / folder).rglob("*.py")]
    files += (ROOT / "vlm" / "train" / "configs").glob("*.json")
    assert len(files) > 100
    assert [path for path in files if "day_or_night" in path.read_text(encoding="utf-8").lower()] == []
    assert Path(sys.modules["vlm.tasks.day_or_night"].__file__ or "").read_text() == DAY_OR_NIGHT


def test_a_model_says_what_it_lacks(day_or_night):
    with pytest.raises(ArgumentError, match="'tiny' cannot tell day from night"):
        vlm.load("tiny").run("day_or_night", ["x.jpg"])
