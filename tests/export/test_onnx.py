"""ONNX files of encoders: what onnxruntime makes of them, what lies beside them, and what cannot be written."""

import json
import re
from functools import cache
from pathlib import Path
from typing import Any

import ftfy
import numpy as np
import onnxruntime
import open_clip
import pytest
import timm
import tokenizers
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import nn

import vlm.export.onnx
from vlm.encoders import Encoders, PairEncoders, load_encoders
from vlm.encoders.timm import TimmEncoders
from vlm.errors import ArgumentError, ModelError
from vlm.export.onnx import describe_transform, export
from vlm.image import ImageTransform
from vlm.models.config import PairConfig, TextConfig, TowerConfig
from vlm.models.pair import ContrastivePair
from vlm.models.towers import build_tower

ROOT = Path(__file__).parents[2]
PHOTOS = [ROOT / "datasets" / "sample" / f"{name}.jpg" for name in ("cat", "coffee", "rocket")]
TEXTS = ["a cat", "a cat and a rocket", "rocket"]


def own_pair() -> Encoders:
    """A small random pair of the project's own kind."""
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "rocket", "and"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    tower = build_tower(TowerConfig("test_efficientnet"))
    text = TextConfig(vocab_size=len(words), dim=16, layers=2, heads=2, ffn_dim=32, max_positions=24)
    pair = ContrastivePair(PairConfig(patch_dim=tower.dim, dim=8, width=16, text=text))
    return PairEncoders("own", tower, pair, tokenizer, ImageTransform(64)).eval()


def check(folder: Path, kind: str, inputs: torch.Tensor, expected: torch.Tensor) -> None:
    """An ONNX file gives the expected vectors."""
    about = json.loads((folder / "encoders.json").read_text())[kind]
    session = onnxruntime.InferenceSession(folder / about["file"])
    found = session.run([about["output"]], {about["input"]: inputs.numpy()})[0]
    torch.testing.assert_close(torch.from_numpy(found), expected, atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def own(tmp_path_factory) -> tuple[Encoders, Path]:
    encoders, folder = own_pair(), tmp_path_factory.mktemp("own") / "onnx"
    differences = {written.file.name: written.difference for written in export(encoders, folder)}
    assert sorted(differences) == ["image.onnx", "text.onnx"] and 0 <= max(differences.values()) < 1e-5
    return encoders, folder


@torch.no_grad()
def test_own_pair_with_any_batch_and_any_number_of_words(own):
    encoders, folder = own
    assert sorted(p.name for p in folder.iterdir()) == ["encoders.json", "image.onnx", "text.onnx", "tokenizer.json"]
    for count in (1, 2, 3):
        pixels = encoders.pixels(PHOTOS[:count])
        check(folder, "image", pixels, encoders.encode_image(pixels))
        ids = encoders.tokenize(TEXTS[:count])
        check(folder, "text", ids, encoders.encode_text(ids))
    ids = encoders.tokenize(["a cat " * 99])
    assert ids.shape == (1, 24)
    check(folder, "text", ids, encoders.encode_text(ids))


def test_what_lies_beside_the_files(own):
    encoders, folder = own
    text = (folder / "encoders.json").read_text()
    about = json.loads(text)
    assert about["model"] == "own" and about["dim"] == 8 and about["weights_sha256"] == encoders.weights_sha256()
    assert about["logit_scale"] == pytest.approx(1 / 0.07)
    assert about["image"]["shape"] == ["batch", 3, 64, 64] and about["text"]["shape"] == ["batch", "words"]
    assert about["text"]["longest"] == 24
    for name in ("image", "text"):
        metadata = onnxruntime.InferenceSession(folder / f"{name}.onnx").get_modelmeta().custom_metadata_map
        assert metadata["encoders"] == text
    made = tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))
    for texts in (TEXTS, ["a cat " * 99, ""]):
        assert [row.ids for row in made.encode_batch(texts)] == encoders.tokenize(texts).tolist()


@torch.no_grad()
def test_an_open_clip_pair(small_clip, tmp_path):
    encoders = load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
    export(encoders, tmp_path / "onnx")
    pixels, ids = encoders.pixels(PHOTOS), encoders.tokenize(TEXTS)
    check(tmp_path / "onnx", "image", pixels, encoders.encode_image(pixels))
    check(tmp_path / "onnx", "text", ids, encoders.encode_text(ids))
    about = json.loads((tmp_path / "onnx" / "encoders.json").read_text())
    assert about["text"]["shape"] == ["batch", 16] and about["text"]["tokenizer"] == "tokenizer.json"
    made = tokenizers.Tokenizer.from_file(str(tmp_path / "onnx" / "tokenizer.json"))
    assert [row.ids for row in made.encode_batch(TEXTS)] == ids.tolist()


@cache
def clip_tokenizers() -> tuple[Any, tokenizers.Tokenizer]:
    """open_clip's own, and what is written of it."""
    theirs = open_clip.SimpleTokenizer(context_length=20)
    return theirs, vlm.export.onnx._clip_tokenizer(theirs)


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="latin-1", exclude_characters="&<", exclude_categories=["C"]), max_size=60))
def test_the_written_clip_tokenizer_is_open_clips(text):
    theirs, made = clip_tokenizers()
    text = ftfy.fix_text(text)  # broken Unicode is repaired by open_clip alone
    assert made.encode(text).ids == theirs([text])[0].tolist()


def test_a_tower_without_text(tmp_path):
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0).eval()
    encoders = TimmEncoders("vit", model, ImageTransform(160))
    assert len(export(encoders, tmp_path / "onnx")) == 1
    assert sorted(p.name for p in (tmp_path / "onnx").iterdir()) == ["encoders.json", "image.onnx"]
    pixels = encoders.pixels(PHOTOS)
    with torch.no_grad():
        expected = nn.functional.normalize(model(pixels))  # pyright: ignore[reportCallIssue]
    check(tmp_path / "onnx", "image", pixels, expected)
    about = json.loads((tmp_path / "onnx" / "encoders.json").read_text())
    assert "text" not in about and "logit_scale" not in about


@pytest.mark.parametrize("name", ["open_clip", "timm", "own"])
def test_the_steps_described_are_the_transform(name, small_clip):
    """The steps carried out by Pillow and numpy, as a reader of encoders.json would."""
    transform = {
        "open_clip": lambda: load_encoders(f"open_clip:small/{small_clip / 'small.pt'}").image_transform,
        "timm": lambda: load_encoders(f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}").image_transform,
        "own": lambda: ImageTransform(48, (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bilinear"),
    }[name]()
    picture = Image.open(PHOTOS[0]).convert("RGB")
    x: Any = picture
    for step in json.loads(json.dumps(describe_transform(transform))):
        if "resize" in step:
            size = step["resize"]
            if isinstance(size, int):  # of the shorter side
                short = min(x.size)
                width, height = (size if side == short else int(size * side / short) for side in x.size)
            else:
                height, width = size
            x = x.resize((width, height), Image.Resampling[step["interpolation"].upper()])
        elif "center_crop" in step:
            height, width = step["center_crop"]
            left, top = round((x.width - width) / 2), round((x.height - height) / 2)
            x = x.crop((left, top, left + width, top + height))
        else:
            x = (np.asarray(x, np.float32) - step.get("subtract", 0)) / step["divide"]
    torch.testing.assert_close(transform(picture), torch.tensor(x).permute(2, 0, 1).float(), atol=1e-5, rtol=1e-5)


def test_a_difference_beyond_the_tolerance_writes_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr(vlm.export.onnx, "TOLERANCE", -1.0)
    encoders = TimmEncoders("vit", timm.create_model("test_vit", num_classes=0).eval(), ImageTransform(160))
    with pytest.raises(ModelError, match=r"'vit': the vectors of image.onnx differ by .*; nothing was written"):
        export(encoders, tmp_path / "onnx")
    assert list((tmp_path / "onnx").iterdir()) == []


def test_a_model_that_cannot_be_traced_is_one_line(tmp_path):
    class Picky(nn.Module):
        num_features = 3

        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, x):
            return self.scale * (x.mean((2, 3)) if x.sum() > 0 else x.amax((2, 3)))  # decided by values

    with pytest.raises(ModelError, match=r"^image.onnx cannot be made of this model: .+$"):
        export(TimmEncoders("picky", Picky(), ImageTransform(8)), tmp_path / "onnx")


def test_folders_that_cannot_be_used(tmp_path):
    (tmp_path / "file").write_text("x")
    for folder in (tmp_path, tmp_path / "file"):
        with pytest.raises(ArgumentError, match="exists and is not an empty folder; name another"):
            export(own_pair(), folder)
    with pytest.raises(ArgumentError, match="cannot be written"):
        export(own_pair(), tmp_path / "file" / "x")


def test_without_onnx(tmp_path, monkeypatch):
    monkeypatch.setattr(vlm.export.onnx, "NEEDS", ("onnx", "no_such_package"))
    with pytest.raises(ArgumentError, match=r"needs no_such_package; pip install 'vlm-foundation\[export\]'"):
        export(own_pair(), tmp_path / "onnx")


def test_the_documentation_runs(tmp_path, monkeypatch, capsys):
    """All Python of docs/encoders.md, in order, with a small random pair in place of the bundled one."""
    monkeypatch.setattr(vlm, "load_encoders", lambda name: {"tiny": own_pair}[name](), raising=False)
    (tmp_path / "datasets").symlink_to(ROOT / "datasets")
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "encoders.md").read_text(), re.DOTALL)
    assert len(blocks) == 7
    names: dict[str, Any] = {}
    printed = []
    for block in blocks:
        if "tiny-onnx" in block:
            export(own_pair(), "tiny-onnx")
        block = re.sub(r"torch\.compile\((.*?)\)", r'torch.compile(\1, backend="eager")', block)
        exec(compile(block, "docs/encoders.md", "exec"), names)
        printed.append(capsys.readouterr().out.splitlines())
    losses = [float(line.split()[1]) for line in printed[5][1:]]
    assert printed[5][0].startswith("trainable params: ") and len(losses) == 10 and losses[-1] < losses[0]
    pair = own_pair()
    with torch.no_grad():
        features = pair.encode_image([PHOTOS[0]]), pair.encode_text(["a cat", "a rocket"])
        expected = pair.logit_scale.exp() * features[0] @ features[1].T  # pyright: ignore[reportOptionalMemberAccess]
        torch.testing.assert_close(names["probabilities"].detach(), expected.softmax(1), atol=1e-5, rtol=0)
        torch.testing.assert_close(names["encode_image"]([PHOTOS[0]]), features[0], atol=1e-5, rtol=0)
        tuned = pair.encode_image(PHOTOS)
        pair.load_state_dict(torch.load("tuned.pt"))
        assert (pair.encode_image(PHOTOS) - tuned).abs().max() > 1e-3  # the adapters are in the weights that were saved
    shown = " ".join(printed[6]).replace("[", "").replace("]", "").split()
    torch.testing.assert_close(torch.tensor([[float(x) for x in shown]]), expected, atol=1e-3, rtol=1e-3)
