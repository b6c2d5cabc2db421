"""What a tower tells apart by itself: the head of labels, its files, and labels recovered for a tuned tower."""

import json
import math
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vlm
from tasks import classify, labels
from vlm.convert.imagenet import load_efficientnet_lite2, recover_labels
from vlm.encoders.pair import PairEncoders
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import load_bundle, load_labels, save_labels
from vlm.image import ImageTransform, load_image
from vlm.model import classify_each, load_classifier
from vlm.models.config import TowerConfig
from vlm.models.labels import LabelHead
from vlm.models.towers import StagedTower, build_tower

SAMPLE = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = sorted(SAMPLE.glob("*.jpg"))


class Turn(nn.Module):
    """Other channels that hold the same: a tuned tower whose last layer has been turned around."""

    def __init__(self, dim: int):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.matrix = nn.Parameter(torch.linalg.qr(torch.randn(dim, dim, generator=generator))[0])

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("nchw,dc->ndhw", x, self.matrix)


@pytest.fixture(scope="module")
def head() -> LabelHead:
    generator = torch.Generator().manual_seed(0)
    return LabelHead(("cat", "dog, hound", "犬"), torch.randn(3, 8, generator=generator), torch.randn(3))


def test_a_head_is_a_softmax_over_its_classes(head):
    features = torch.randn(2, 8)
    found = head.log_probabilities(features)
    for row in range(2):
        logits = [float(features[row] @ head.weight[k] + head.bias[k]) for k in range(3)]
        whole = math.log(sum(map(math.exp, logits)))
        assert found[row].tolist() == pytest.approx([logit - whole for logit in logits], abs=1e-5)


def test_a_head_is_saved_and_loaded(head, tmp_path):
    save_labels(tmp_path, head)
    again = load_labels(tmp_path, 8)
    assert again.names == head.names
    torch.testing.assert_close(again.weight, head.weight, atol=head.weight.abs().max().item() / 250, rtol=0)
    assert torch.equal(again.bias, head.bias)


@pytest.mark.parametrize(
    "damage, reason",
    [
        (lambda folder: (folder / "labels.json").unlink(), "incomplete head of labels: labels.json missing"),
        (lambda folder: (folder / "labels.safetensors").unlink(), "labels.safetensors missing"),
        (lambda folder: (folder / "labels.json").write_text("{"), "is not JSON"),
        (lambda folder: (folder / "labels.json").write_text('{"format": 1, "labels": [1]}'), "does not name labels"),
        (lambda folder: (folder / "labels.json").write_text('{"format": 1, "labels": ["a"]}'), r"has shape \(3, 8\)"),
        (lambda folder: (folder / "labels.safetensors").write_bytes(b"no"), "cannot be read"),
    ],
)
def test_damaged_files_are_one_line(head, tmp_path, damage, reason):
    save_labels(tmp_path, head)
    damage(tmp_path)
    with pytest.raises(ModelError, match=reason) as caught:
        load_labels(tmp_path, 8)
    assert "\n" not in str(caught.value)


def test_a_tower_that_was_turned_around_gets_its_labels_again():
    untuned = build_tower(TowerConfig("tf_efficientnet_lite2")).eval()
    assert isinstance(untuned, StagedTower)
    load_efficientnet_lite2(untuned)
    tuned = StagedTower([*untuned.chain, Turn(untuned.dim)], untuned.dim).eval()
    transform = ImageTransform(260)
    photos = [view for photo in PHOTOS for view in (load_image(photo), np.array(load_image(photo))[:, ::-1].copy())]
    with pytest.warns(UserWarning, match="left out a photo: .*is not an image"):
        found = recover_labels(tuned, transform, [*photos, b"no photo"])
    assert len(found.names) == 1000 == len(set(found.names))
    with torch.inference_mode():
        pixels = torch.stack([transform(load_image(photo)) for photo in PHOTOS])
        best = found.log_probabilities(tuned.pool(tuned(pixels))).exp().max(1)
    said = {photo.stem: found.names[int(k)] for photo, k in zip(PHOTOS, best.indices, strict=True)}
    # what the package's own classifier says
    assert said["coffee"] == "espresso" and said["photographer"] == "tripod" and "cat" in said["cat"]
    with pytest.raises(ArgumentError, match="fewer patches than the tower has channels"):
        recover_labels(tuned, transform, photos[:3])


def test_tiny_knows_things_that_no_caption_named(capsys):
    assert classify.main(["--image", str(SAMPLE / "coffee.jpg"), str(SAMPLE / "photographer.jpg"), "--top", "2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "espresso" in lines[0] and "tripod" in lines[2] and len(lines) == 4
    model = load_classifier("tiny")
    assert isinstance(model, PairEncoders)
    (answers,) = classify_each(model, [SAMPLE / "cat.jpg"])
    assert not isinstance(answers, Exception) and "cat" in answers[0].text and len(answers) == 1000
    assert sum(math.exp(answer.score) for answer in answers) == pytest.approx(1, abs=1e-4)


def test_models_without_labels_say_so(all_tasks, drawing_base, capsys):
    for folder in (all_tasks, drawing_base):
        assert classify.main(["--image", str(SAMPLE / "cat.jpg"), "--model", str(folder)]) == 2
        assert "knows no labels of its own; give labels to choose from" in capsys.readouterr().err
    assert classify.main(["--image", str(SAMPLE / "cat.jpg"), "--template", "a {}"]) == 2
    assert "--template is for --labels" in capsys.readouterr().err
    with pytest.raises(ArgumentError, match="templates are for given labels"):
        classify_each(load_classifier("tiny"), [SAMPLE / "cat.jpg"], templates=["a {}"])


def test_an_index_does_not_depend_on_the_labels(tmp_path):
    """The digest of the encoders is that of their weights for photos and texts alone."""
    without = tmp_path / "without"
    shutil.copytree(load_bundle("tiny").folder or "", without)
    for name in ("labels.json", "labels.safetensors"):
        (without / name).unlink()
    assert vlm.load_encoders(without).weights_sha256() == vlm.load_encoders("tiny").weights_sha256()


def test_the_command_that_recovers_labels(tmp_path, monkeypatch, capsys, all_tasks, head):
    folder = tmp_path / "model"
    shutil.copytree(all_tasks, folder)
    argv = ["--model", str(folder), "--data", str(tmp_path)]
    assert labels.main(argv) == 2  # its tower is timm's
    assert "has no tower of the kind that tiny has" in capsys.readouterr().err
    shutil.copytree(load_bundle("tiny").folder or "", tmp_path / "tiny")
    argv = ["--model", str(tmp_path / "tiny"), "--data", str(tmp_path)]
    assert labels.main(argv) == 2 and "no .tar shards" in capsys.readouterr().err
    assert labels.main([*argv, "--photos", "0"]) == 2
    seen = []
    wide = LabelHead(head.names, torch.ones(3, 1280), head.bias)
    monkeypatch.setattr("vlm.convert.imagenet.recover_labels", lambda *given, **named: (seen.append(given), wide)[1])
    from webdataset.writer import TarWriter

    with TarWriter(str(tmp_path / "a.tar")) as writer:
        for number in range(4):
            record = {"split": "test" if number == 3 else "train", "captions": ["a"]}
            writer.write({"__key__": f"k{number}", "jpg": b"%d" % number, "json": json.dumps(record).encode()})
    assert labels.main([*argv, "--photos", "2"]) == 0
    assert set(seen[0][2]) <= {b"0", b"1", b"2"} and len(seen[0][2]) == 2
    assert load_labels(tmp_path / "tiny", 1280).names == head.names
