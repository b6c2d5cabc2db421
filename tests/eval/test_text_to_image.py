"""Generated images against prompts and against real photos, through the command line."""

import functools
import io
import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from eval import run
from eval.__main__ import main
from eval.benchmarks import find
from eval.report import read
from vlm.errors import DataError, ModelError

COLOURS = {"red": (1.0, 0, 0), "green": (0, 1.0, 0), "blue": (0, 0, 1.0)}


class Pair:
    """Encoders into colours: a photo's mean one, and the sum of those a sentence names."""

    name, weights = "colours", "0" * 64

    def prepare(self, image: Path) -> np.ndarray:
        from vlm.image import load_image

        return np.asarray(load_image(image)).mean((0, 1)) / 255

    def settings(self, task: str) -> dict:
        return {}

    def encode_image(self, images) -> np.ndarray:
        rows = np.stack(images)
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)

    def encode_text(self, texts) -> np.ndarray:
        rows = np.array([sum(np.array(COLOURS[word]) for word in text.split() if word in COLOURS) for text in texts])
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@pytest.fixture
def data(tmp_path) -> Path:
    """A red image, and one that is red and green alike."""
    from PIL import Image

    (tmp_path / "data/generated").mkdir(parents=True)
    for name, colour in (("red", (255, 0, 0)), ("yellow", (255, 255, 0))):
        Image.new("RGB", (8, 8), colour).save(tmp_path / f"data/generated/{name}.png")
    return tmp_path / "data"


def prompts(data: Path, *records: dict) -> None:
    (data / "prompts.json").write_text(json.dumps(records))


def measure(data: Path, monkeypatch, *flags: str) -> tuple[dict, list[dict]]:
    monkeypatch.setattr(run, "evaluate", functools.partial(run.evaluate, load=lambda *args: Pair()))
    out = data.parent / "out"
    assert main(["text_to_image", "--data", str(data), "--out", str(out), *flags]) == 0
    return read(out)


def test_clip_score_through_the_command(data, monkeypatch, capsys):
    red, yellow = "generated/red.png", "generated/yellow.png"
    prompts(
        data,
        {"file": red, "prompt": "a red wall"},
        {"file": yellow, "prompt": "a green wall"},
        {"file": yellow, "prompt": "a blue wall", "id": "blue"},
    )
    results, items = measure(data, monkeypatch)
    # cosines 1, sqrt(1/2) and 0
    expected = [250, 250 * 0.5**0.5, 0]
    assert [item["scores"]["CLIPScore"] for item in items] == pytest.approx(expected, abs=1e-4)
    assert results["figures"]["CLIPScore"]["value"] == pytest.approx(sum(expected) / 3, abs=1e-4)
    assert list(results["figures"]) == ["CLIPScore"]
    assert capsys.readouterr().out.startswith("text_to_image (data, all), model colours, n = 3\nCLIPScore  142.3 [")
    submitted = json.loads((data.parent / "out/predictions.json").read_text())
    assert submitted[2] == {"image": "blue", "prompt": "a blue wall", "CLIPScore": pytest.approx(0, abs=1e-4)}


def test_captions_give_a_second_figure(data, monkeypatch):
    captions = ["it is blue", "it is red and green"]
    prompts(data, {"file": "generated/red.png", "prompt": "red", "captions": captions})
    results, items = measure(data, monkeypatch)
    closest = 0.5**0.5
    expected = 100 * 2 * 2.5 * closest / (2.5 + closest)
    assert results["figures"]["RefCLIPScore"]["value"] == pytest.approx(expected, abs=1e-4)
    assert items[0]["references"] == ["red", *captions]


@pytest.mark.parametrize("record", [{"prompt": 3}, {"prompt": "red", "captions": [3]}])
def test_prompts_that_are_no_text_are_refused(data, record):
    prompts(data, {"file": "generated/red.png", **record})
    with pytest.raises(DataError, match=r"prompts\.json'.*(the prompt must be text|a list of texts belongs)"):
        find("text_to_image").read(data, "all")


# FID and KID


@pytest.fixture(scope="module")
def weights(tmp_path_factory) -> Path:
    """FID's network with random weights, in the layout of the published file."""
    import torch
    from torch_fidelity import feature_extractor_inceptionv3 as module

    class Blank(module.FeatureExtractorInceptionV3):
        def load_state_dict(self, *args, **options):
            return None

    torch.manual_seed(0)
    empty = io.BytesIO()
    torch.save({}, empty)
    empty.seek(0)
    path = tmp_path_factory.mktemp("inception") / "random.pth"
    torch.save(Blank("blank", ["2048"], feature_extractor_weights_path=empty).state_dict(), path)
    return path


def distance(a: np.ndarray, b: np.ndarray) -> float:
    """FID of sets smaller than their features: `cov_a cov_b` has the squared singular values of `a b^T` in it."""
    x, y = a - a.mean(0), b - b.mean(0)
    shared = np.linalg.svd(x @ y.T / np.sqrt((len(a) - 1) * (len(b) - 1)), compute_uv=False).sum()
    spread = (x**2).sum() / (len(a) - 1) + (y**2).sum() / (len(b) - 1)
    return float(((a.mean(0) - b.mean(0)) ** 2).sum() + spread - 2 * shared)


def test_fid_through_the_command_has_the_features_of_torch_fidelity(tmp_path, put_photo, weights, capsys):
    import torch
    from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3

    from vlm.image import load_image

    names = {"generated": ("cat", "coffee"), "real": ("rocket", "temple", "cat")}
    for folder, photos in names.items():
        for photo in photos:
            path = put_photo(tmp_path / f"data/{folder}/{photo}.jpg", photo)
            load_image(path).resize((90, 70) if photo == "cat" else (60, 80)).save(path)
    out = tmp_path / "out"
    command = ["text_to_image_fid", "--data", str(tmp_path / "data"), "--out", str(out)]
    assert main([*command, "--model", f"inception:{weights}"]) == 0
    assert "model inception:random.pth, n = 2\nFID " in capsys.readouterr().out

    network = FeatureExtractorInceptionV3("reference", ["2048"], feature_extractor_weights_path=str(weights))
    sets = []
    for folder, photos in names.items():
        pixels = [np.array(load_image(tmp_path / f"data/{folder}/{photo}.jpg")) for photo in photos]
        features = [network(torch.from_numpy(image).permute(2, 0, 1)[None])[0] for image in pixels]
        sets.append(torch.cat(features).double().numpy())
    results, items = read(out)
    assert results["figures"]["FID"]["value"] == pytest.approx(distance(*sets), rel=1e-3)
    assert [item["id"] for item in items] == ["generated/cat.jpg", "generated/coffee.jpg"]
    assert {"n": 2, "of": 2}.items() <= results.items()
    assert {"real images": 3, "KID subset size": 2}.items() <= results["settings"].items()


def test_a_limit_takes_as_many_of_either_folder(data, put_photo):
    for photo in ("cat", "rocket", "temple"):
        put_photo(data / f"real/{photo}.jpg", photo)
    items = find("text_to_image_fid").read(data, "all")
    assert [str(item.id).partition("/")[0] for item in items] == ["generated", "real", "generated", "real", "real"]
    shutil.rmtree(data / "real")
    with pytest.raises(DataError, match="real' is not a folder"):
        find("text_to_image_fid").read(data, "all")


class Harmful:
    def __reduce__(self):
        return open, ("harmed", "w")


def test_files_that_are_not_the_network_are_refused(tmp_path, monkeypatch):
    import torch

    from eval.models import load

    monkeypatch.chdir(tmp_path)
    torch.save({"weight": torch.zeros(2)}, "other.pth")
    Path("harmful.pth").write_bytes(pickle.dumps(Harmful(), protocol=2))
    torch.save({"weight": Harmful()}, "harmful.zip.pth")
    for name, message in (
        ("absent.pth", "no file at 'absent.pth'; give pt_inception-2015-12-05"),
        ("other.pth", "'other.pth' is not FID's network"),
        ("harmful.pth", r"'harmful\.pth' is not a file of tensors only"),
        ("harmful.zip.pth", "is not a file of tensors only"),
    ):
        with pytest.raises(ModelError, match=message) as error:
            load(f"inception:{name}", "featurize", "cpu")
        assert "\n" not in str(error.value)
    assert not Path("harmed").exists()
