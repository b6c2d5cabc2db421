"""Benchmarks that let a model draw, through the command line: one judge sees drawn pictures and real photos."""

import functools
import json
import shutil
import zlib
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from eval import run
from eval.__main__ import main
from eval.benchmark import Item
from eval.benchmarks.drawing import _nearest, read_products, read_scenes
from eval.metrics.shapes import find_shapes
from eval.models import VLMModel, pack, unpack
from eval.models.drawing import LEVELS, DrawingModel, colours_of
from eval.report import read
from vlm.data.scenes import make_scene
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
    # the training photos hold one of each kind and colour, which fits its prompt entirely
    assert figures["CLIPScore of the nearest training photo"] == pytest.approx(250, abs=1e-3)
    assert [item["scores"]["type accuracy"] for item in items] == [100, 100, 100, 0]
    assert "type accuracy" in capsys.readouterr().out
    table = tmp_path / "README.md"
    table.write_text("<!-- results:begin -->\n<!-- results:end -->\n")
    assert main(["table", str(out), "--into", str(table)]) == 0
    names = [line.split("|")[3].strip() for line in table.read_text().splitlines() if line.startswith("|")][2:]
    assert names == [f"{kind} accuracy{of}" for kind in ("type", "colour") for of in ("", " of real photos")]


def test_shapes_are_found_where_scenes_have_them():
    right = total = 0
    for number in range(300):
        scene = make_scene(f"judge/{number}", 64)
        found = {thing.colour: thing for thing in find_shapes(scene.image)}
        for thing in scene.things:
            if sum(thing.colour == other.colour for other in scene.things) > 1:
                continue  # only the largest of a colour is looked for
            total += 1
            seen = found.get(thing.colour)
            x, y = thing.center
            right += bool(seen and seen.shape == thing.name and abs(seen.x - x) < 0.05 and abs(seen.y - y) < 0.05)
    assert total > 300 and right / total > 0.95


@pytest.mark.parametrize("side", [64, 200])
def test_what_is_no_thing_is_not_found(side):
    assert find_shapes(Image.new("RGB", (side, side), "red")) == []  # the ground
    speck = Image.new("RGB", (side, side), "white")
    speck.paste((28, 72, 214), (side // 2, side // 2, side // 2 + side // 32, side // 2 + side // 32))
    assert find_shapes(speck) == []
    noise = np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8)
    assert len(find_shapes(Image.fromarray(noise))) <= 3


class SceneModel(Model):
    """Draws the real scene, mirrored where the first thing is left of the other."""

    def prepare(self, image: Path) -> Image.Image:
        return Image.open(image)

    def draw_items(self, items, photos) -> list[dict]:
        found = []
        for item, photo in zip(items, photos, strict=True):
            drawn = photo.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if item.references[2] == "left" else photo
            found.append({"shapes": [asdict(thing) for thing in find_shapes(drawn)]})
        return found


def test_scenes_through_the_command(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "evaluate", functools.partial(run.evaluate, load=lambda *args: SceneModel(tmp_path)))
    monkeypatch.setattr("eval.benchmarks.drawing.SCENES", 60)
    assert main(["draw_scenes", "--data", str(tmp_path / "drawn"), "--out", str(tmp_path / "out")]) == 0
    results, _ = read(tmp_path / "out")
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    asked = read_scenes(tmp_path / "drawn", "test")
    assert len(asked) == 60 and len({item.question for item in asked}) > 50
    for item in asked:
        words = item.question.lower().split()
        one, other, direction = item.references
        assert words[1:3] == one.split() and words[-2:] == other.split() and direction in words
    left = 100 * sum(item.references[2] == "left" for item in asked) / 60
    assert 10 < left < 60
    assert figures["colours"] == figures["colours of real photos"] > 95
    assert figures["all right of real photos"] > 90
    # "left" is wrong in the mirror, the rest is right as often as in the real scenes
    assert figures["relation"] == pytest.approx(figures["relation of real photos"] - left, abs=5)
    assert figures["all right"] <= 100 - left


def test_colours_by_hand():
    """A quarter is red and a quarter dark blue; the rest is white ground."""
    picture = Image.new("RGB", (4, 4), "white")
    picture.paste((250, 10, 10), (0, 0, 2, 2))
    picture.paste((10, 10, 100), (2, 2, 4, 4))
    expected = np.zeros(LEVELS**3)
    expected[3 * LEVELS**2] = expected[1] = 0.5**0.5
    assert colours_of(picture) == pytest.approx(expected)
    assert colours_of(Image.new("RGB", (4, 4), "white"))[-1] == 1


@pytest.fixture
def head(tmp_path, drawing_base, drawing, monkeypatch) -> Path:
    """The folder of a small base with a head, both with random weights, which is also the judge."""
    model = tmp_path / "model"
    shutil.copytree(drawing_base, model)
    save_head(model, drawing())
    monkeypatch.setattr("eval.models.drawing.JUDGE", str(model))
    return model


@pytest.fixture
def captions(tmp_path) -> Path:
    """A folder with a photo of each colour, and two captions of each."""
    data = tmp_path / "data"
    data.mkdir()
    records = []
    for name, colour in COLOURS.items():
        Image.new("RGB", (20, 16), colour).save(data / f"{name}.png")
        records.append({"file": f"{name}.png", "captions": [f"a {name.lower()} shoe .", "a shirt"]})
    (data / "captions.json").write_text(json.dumps(records))
    return data


def test_captions_through_the_command(tmp_path, head, captions):
    """A small head with random weights: the pictures are those of the pipeline, and the figures are finite."""
    model, data, out = head, captions, tmp_path / "out"
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


def test_the_nearest_other_photo_is_not_the_prompts_own():
    """Prompts along the axes; the photos of the first two lie between these."""
    texts, photos = np.eye(3, dtype=np.float32), np.array([[1, 1, 0], [3, 4, 0], [0, 0, 2]], np.float32)
    assert _nearest(texts, photos) == pytest.approx([250 * 0.5**0.5, 200, 250])
    assert _nearest(texts, photos, own=True) == pytest.approx([150, 250 * 0.5**0.5, 0])


def test_a_round_trip_is_a_drawing_and_a_caption_each_way(tmp_path, head, captions, monkeypatch):
    model, data, out = head, captions, tmp_path / "out"
    # the small base writes the same whatever it sees; this one says which colour there is most of
    monkeypatch.setattr(VLMModel, "run", lambda self, task, images, *columns: [colour_name(image) for image in images])
    assert main(["roundtrip", "--data", str(data), "--model", str(model), "--out", str(out)]) == 0
    results, items = read(out)
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    assert results["n"] == 3 and figures["CIDEr of real photos"] > figures["CIDEr of shuffled drawings"]
    loaded, encoders = vlm.load_pipeline(model), vlm.load_encoders(model)
    seed, base = zlib.crc32(b"Red.png"), vlm.load(model)
    drawn = loaded("a red shoe", generator=generators(seed, 1)).images[0]
    assert items[0]["prediction"] == f"{colour_name(base.bundle.transform(drawn))} (photo: a red shoe)"
    redrawn = loaded("a red shoe", generator=generators(seed, 1)).images[0]  # what the photo's caption says, too
    with torch.no_grad():
        expected = encoders.encode_image([redrawn])[0] @ encoders.encode_image([data / "Red.png"])[0]
    assert items[0]["scores"]["cosine with the photo x 100"] == pytest.approx(100 * expected.item(), abs=0.01)


def colour_name(image: torch.Tensor) -> str:
    return f"a {list(COLOURS)[int(image.mean((1, 2)).argmax())].lower()} shoe"


def test_a_model_that_only_draws_makes_no_round_trip(tmp_path, head, captions, capsys):
    config = json.loads((head / "config.json").read_text())
    (head / "config.json").write_text(json.dumps({**config, "tasks": {"answer": {}}}))
    assert main(["roundtrip", "--data", str(captions), "--model", str(head), "--out", str(tmp_path / "out")]) == 2
    err = capsys.readouterr().err
    assert "cannot caption photos (it was trained for: answer)" in err


def test_the_best_of_eight_is_the_nearest_to_its_prompt(tmp_path, head):
    drawer = DrawingModel(str(head), "cpu")
    Image.new("RGB", (16, 16)).save(tmp_path / "a.png")
    items = [Item(prompt, tmp_path / "a.png", (prompt,), prompt) for prompt in ("a red shoe", "a shirt")]
    found = drawer.draw_best_items(items, [drawer.prepare(item.image) for item in items])
    for item, one in zip(items, found, strict=True):
        seed = zlib.crc32(item.question.encode())
        pictures = drawer.pipeline([item.question] * 8, generator=generators(seed, 8)).images
        with torch.no_grad():
            vectors, text = drawer.judge.encode_image(pictures), drawer.judge.encode_text([item.question])[0]
        best = vectors[(vectors @ text).argmax()]
        assert unpack([one["drawn"]["vector"]])[0] == pytest.approx(best.numpy(), abs=1e-5)


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
