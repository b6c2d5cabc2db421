"""Benchmarks that let a model draw, through the command line: one judge sees drawn pictures and real photos."""

import functools
import json
import shutil
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eval import run
from eval.__main__ import main
from eval.benchmark import Item
from eval.benchmarks.drawing import read_products
from eval.models import pack, unpack
from eval.models.drawing import LEVELS, DrawingModel, colours_of
from eval.report import read
from vlm.diffusion.inputs import generators
from vlm.diffusion.load import save_head

COLOURS = {"Red": (255, 0, 0), "Green": (0, 255, 0), "Blue": (0, 0, 255)}
TYPES = {"Shoes": 0, "Bags": 1}


def seen(colour: str, kind: str) -> np.ndarray:
    return np.array([*(colour == name for name in COLOURS), *(2.0 * (kind == name) for name in TYPES)], np.float32)


def looked_at(sight: np.ndarray) -> dict[str, str]:
    return {"features": pack(sight), "vector": pack(sight), "colours": pack(sight[:3])}


class Model:
    """Draws every bag as a shoe, in the right colour; its judge sees types and colours as they are."""

    name, weights = "shoes", "0" * 64

    def __init__(self, data: Path):
        self.data = data

    def prepare(self, image: Path) -> np.ndarray:
        about = json.loads(image.with_suffix(".json").read_bytes())["attributes"]
        return seen(about["colour"], about["subcategory"])

    def settings(self, task: str) -> dict:
        return {}

    def draw_items(self, items, photos) -> list[dict]:
        found = []
        for item, photo in zip(items, photos, strict=True):
            looks = looked_at(photo)
            if item.question:
                colour, kind = item.question.split()
                drawn = looked_at(seen(colour, "Shoes"))
                found.append({"real": looks, "drawn": drawn, "text": pack(seen(colour, kind))})
            else:
                found.append({"real": looks})
        return found


def product(folder: Path, key: str, split: str, kind: str, colour: str) -> None:
    Image.new("RGB", (8, 8), COLOURS[colour]).save(folder / f"{key}.webp")
    about = {"subcategory": kind, "colour": colour}
    record = {"title": f"{colour} {kind}", "attributes": about, "split": split}
    (folder / f"{key}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def products(tmp_path_factory) -> Path:
    """Ten or more training photos of each type and of two colours; three shoes and a bag to draw, and a blue shoe."""
    folder = tmp_path_factory.mktemp("products")
    for number in range(10):
        for kind in TYPES:
            for colour in ("Red", "Green"):
                product(folder, f"{number}-{kind}-{colour}", "train", kind, colour)
    for number, (kind, colour) in enumerate([("Shoes", "Red"), ("Shoes", "Green"), ("Shoes", "Red"), ("Bags", "Red")]):
        product(folder, f"test-{number}", "test", kind, colour)
    product(folder, "test-9", "test", "Shoes", "Blue")
    product(folder, "val-0", "val", "Shoes", "Red")
    return folder


def test_only_kinds_with_enough_training_photos_are_drawn(products):
    items = read_products(products, "test")
    assert [item.id for item in items if item.scored] == ["test-0", "test-1", "test-2", "test-3"]
    assert [item.question for item in items if item.scored] == ["Red Shoes", "Green Shoes", "Red Shoes", "Red Bags"]
    assert sum(not item.scored for item in items) == 40
    assert [item.id for item in read_products(products, "val") if item.scored] == ["val-0"]


def test_products_by_hand(products, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "evaluate", functools.partial(run.evaluate, load=lambda *args: Model(products)))
    out = tmp_path / "out"
    assert main(["draw_products", "--data", str(products), "--out", str(out)]) == 0
    results, items = read(out)
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    assert results["n"] == 4
    assert figures["type accuracy"] == 75 and figures["type accuracy of real photos"] == 100  # the bag is a shoe
    assert figures["colour accuracy"] == 100 and figures["colour accuracy of real photos"] == 100
    assert figures["memorised"] == 0  # drawn pictures lie no nearer to training than the real photos
    # cosine of a shoe with a bag of its colour: 1 / (1 + 4); others are 1
    assert figures["CLIPScore"] == pytest.approx(250 * (1 + 1 + 1 + 0.2) / 4, abs=1e-3)
    # pictures 0 and 2 have the same prompt, so each finds another no less; the last one's own prompt is the bag's
    assert figures["prompt found among 100, R@1"] == 25 and figures["prompt found among 100, R@10"] == 100
    assert figures["CLIPScore of real photos"] == pytest.approx(250, abs=1e-3)
    assert [item["scores"]["type accuracy"] for item in items] == [100, 100, 100, 0]
    assert "type accuracy" in capsys.readouterr().out
    table = tmp_path / "README.md"
    table.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    assert main(["table", str(out), "--into", str(table)]) == 0
    names = [line.split("|")[3].strip() for line in table.read_text().splitlines() if line.startswith("|")][2:]
    assert names == [f"{kind} accuracy{of}" for kind in ("type", "colour") for of in ("", " of real photos")]


def test_colours_by_hand():
    """A quarter is red and a quarter dark blue; the rest is white ground."""
    picture = Image.new("RGB", (4, 4), "white")
    picture.paste((250, 10, 10), (0, 0, 2, 2))
    picture.paste((10, 10, 100), (2, 2, 4, 4))
    expected = np.zeros(LEVELS**3)
    expected[3 * LEVELS**2] = expected[1] = 0.5**0.5
    assert colours_of(picture) == pytest.approx(expected)
    assert colours_of(Image.new("RGB", (4, 4), "white"))[-1] == 1


def test_captions_through_the_command(tmp_path, drawing_base, drawing, monkeypatch):
    """A small head with random weights: the pictures are those of the pipeline, and the figures are finite."""
    model, data, out = tmp_path / "model", tmp_path / "data", tmp_path / "out"
    shutil.copytree(drawing_base, model)
    save_head(model, drawing())
    data.mkdir()
    records = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(data / f"{name}.png")
        records.append({"file": f"{name}.png", "captions": [f"a {name.lower()} shoe .", "a shirt"]})
    (data / "captions.json").write_text(json.dumps(records))
    monkeypatch.setattr("eval.models.drawing.JUDGE", str(model))
    assert main(["draw_captions", "--data", str(data), "--model", str(model), "--out", str(out)]) == 0
    results, items = read(out)
    assert results["n"] == 3 and results["settings"]["size"] == 16
    assert results["settings"]["num_inference_steps"] == 30
    assert all(np.isfinite(figure["value"]) for figure in results["figures"].values())
    assert len(items) == 3

    drawer = DrawingModel(str(model), "cpu")
    item = Item("Red.png", data / "Red.png", ("a red shoe",), "a red shoe")
    (found,) = drawer.draw_items([item], [drawer.prepare(item.image)])
    picture = drawer.pipeline("a red shoe", generator=generators(zlib.crc32(b"Red.png"), 1)).images[0]
    expected = drawer.judge.encode_image([picture])[0].detach().numpy()
    assert unpack([found["drawn"]["vector"]])[0] == pytest.approx(expected, abs=1e-5)
    real = Image.open(data / "Red.png").crop((2, 0, 18, 16))
    assert unpack([found["real"]["vector"]])[0] == pytest.approx(
        drawer.judge.encode_image([real])[0].detach().numpy(), abs=1e-4
    )


@pytest.mark.parametrize(
    "argv, words",
    [
        (["draw_products", "--data", "absent"], ["absent", "unpack the shards"]),
        (["draw_captions", "--data", "datasets/sample"], ["captions.json", "a list of {file, captions}"]),
    ],
)
def test_what_cannot_be_measured_is_told(argv, words, tmp_path, capsys):
    assert main([*argv, "--out", str(tmp_path)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words), err
