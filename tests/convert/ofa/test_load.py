"""From an OFA checkpoint to captions: through `vlm.load`, and through the folder that `tasks.convert` writes."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

import vlm
from eval import models
from tasks import convert
from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.errors import ArgumentError, ModelError
from vlm.files import hub
from vlm.image import ImageTransform
from vlm.model import Model
from vlm.tasks import TASKS
from vlm.tasks.base import OFA_BASE

ROOT = Path(__file__).parents[3]
BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
SIZES: dict[str, Any] = {"vocab": 4 + 256 + 1 + 8192 + 1000, "positions": 48}
POSITIONS = {"max_source_positions": 48, "max_target_positions": 48}


def write_vocabulary(folder: Path) -> Path:
    """GPT-2's layout with no merge: every byte is a piece."""
    folder.mkdir(exist_ok=True)
    (folder / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(BYTES)}))
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(256)))
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    return folder


@pytest.fixture
def checkpoint(small, tmp_path) -> Path:
    tensors = small.tensors(**SIZES)
    ema = {name: tensor * 0.9 if tensor.is_floating_point() else tensor for name, tensor in tensors.items()}
    cfg = {"task": {"patch_image_size": 64}, "model": small.namespace(**POSITIONS)}
    (tmp_path / "original").mkdir()
    return small.file(tmp_path / "original" / "ofa.pt", model=tensors, cfg=cfg, extra_state={"ema": ema})


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    return write_vocabulary(tmp_path / "BPE")


@pytest.fixture
def photo() -> Image.Image:
    return Image.radial_gradient("L").resize((80, 50)).convert("RGB")


def outputs(model: Model, photo: Image.Image) -> tuple[list[str], torch.Tensor]:
    """Captions with their searches' other ends, and logits, which rounding moves."""
    with torch.inference_mode():
        patches = model.predictor.encode_images(model.bundle.transform(photo)[None])
        words = torch.tensor([[0, 5, 6, 7]])
        logits = model.bundle.module.backbone(words, words, patches)
    return [caption.text for caption in model.captions([photo], num_captions=5)[0]], logits


@torch.inference_mode()
def test_captions_are_searched_as_the_original_does(checkpoint, vocabulary, photo):
    model = vlm.load(f"ofa:{checkpoint}", tokenizer=vocabulary)
    ids = torch.tensor([[0, *(4 + BYTES.index("Ġ" if c == " " else c) for c in " what does the image describe?"), 2]])
    patches = model.bundle.module.tower(ImageTransform(64)(photo)[None])
    encoded = model.bundle.module.backbone.encode(ids, patches)
    config = GenerationConfig(beams=5, max_tokens=16, no_repeat_ngram=3)  # over all ids
    expected = generate(model.bundle.module.backbone, encoded, config)[0]
    found = model.captions([photo], num_captions=5)[0]
    assert [caption.score for caption in found] == pytest.approx([h.score for h in expected], abs=1e-5)
    assert [caption.text for caption in found] == [model.bundle.tokenizer.decode(h.ids).strip() for h in expected]
    assert model.name == f"ofa:{checkpoint}" and max(len(h.ids) for h in expected) <= 16


def test_the_vocabulary_may_lie_beside_the_checkpoint(checkpoint, vocabulary, photo):
    expected = outputs(vlm.load(f"ofa:{checkpoint}", tokenizer=str(vocabulary)), photo)
    with pytest.raises(ModelError, match=r"no OFA vocabulary in .*original'; give tokenizer= a folder"):
        vlm.load(f"ofa:{checkpoint}")
    write_vocabulary(checkpoint.parent)
    found = outputs(vlm.load(f"ofa:{checkpoint}"), photo)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])


def test_a_folder_of_transformers_and_the_hub(small, checkpoint, vocabulary, photo, tmp_path, monkeypatch):
    expected = outputs(vlm.load(f"ofa:{checkpoint}", tokenizer=vocabulary), photo)
    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small.hub_settings | {"max_position_embeddings": 48}))
    torch.save(small.tensors(hub=True, **SIZES), folder / "pytorch_model.bin")
    pieces = ["<s>", "<pad>", "</s>", "<unk>", *BYTES, "<mask>"]
    (folder / "vocab.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    model = vlm.load(f"ofa:{folder}")
    assert model.bundle.transform == ImageTransform(480)  # the port says nothing of photos
    found = outputs(Model(replace(model.bundle, transform=ImageTransform(64))), photo)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])

    # the harness knows them too, by the same digest, whatever the format
    write_vocabulary(checkpoint.parent)
    adapters: list[Any] = [models.load(f"ofa:{name}", "answer", "cpu") for name in (checkpoint, folder)]
    assert adapters[0].weights == adapters[1].weights
    (answer,) = adapters[0].answer([adapters[0].prepare(photo)], ["why?"])
    assert answer == vlm.load(f"ofa:{checkpoint}").answer(photo, "why?")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda name, allow_patterns, ignore_patterns: str(folder))
    assert vlm.load("ofa:OFA-Sys/ofa-small").bundle.tokenizer.vocab_size == SIZES["vocab"]


@pytest.mark.parametrize("name", ["tiny", "some/folder"])
def test_only_ofa_takes_a_tokenizer(name, vocabulary):
    with pytest.raises(ArgumentError, match=r"is for names that begin with ofa:"):
        vlm.load(name, tokenizer=vocabulary)


# The command


def test_help_loads_nothing_heavy():
    code = "import sys, tasks.convert as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in ('torch', 'timm', 'numpy', 'tokenizers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--image-size" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def run(capsys, *argv: str | Path) -> tuple[int, str, str]:
    code = convert.main([str(part) for part in argv])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_converted_folder_loads_without_the_original(checkpoint, vocabulary, photo, tmp_path, capsys):
    expected = outputs(vlm.load(f"ofa:{checkpoint}", tokenizer=vocabulary), photo)
    out = tmp_path / "converted"
    assert run(capsys, checkpoint, out, "--tokenizer", vocabulary) == (0, f"{out}\n", "")
    assert sorted(path.name for path in out.iterdir()) == sorted(hub.FILES)
    for file in (checkpoint, *vocabulary.iterdir()):
        file.unlink()
    model = vlm.load(str(out))
    found = outputs(model, photo)
    assert found[0] == expected[0] and torch.equal(found[1], expected[1])
    assert model.task("caption").settings["allowed"] is None and model.task("caption").settings["max_tokens"] == 16
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float32}


@pytest.mark.parametrize(
    "kind, prefix", [(None, "none"), ("none", "none"), ("src", "source_and_end"), ("prev_output", "source")]
)
def test_a_checkpoint_says_what_its_decoder_reads_before_it_answers(
    small, checkpoint, vocabulary, tmp_path, capsys, kind, prefix
):
    task = {"patch_image_size": 64} | ({"prompt_type": kind} if kind else {})
    file = small.file(
        checkpoint, model=small.tensors(**SIZES), cfg={"task": task, "model": small.namespace(**POSITIONS)}
    )
    assert run(capsys, file, tmp_path / "new", "--tokenizer", vocabulary)[0] == 0
    for model in (vlm.load(f"ofa:{file}", tokenizer=vocabulary), vlm.load(str(tmp_path / "new"))):
        assert model.task("answer").settings["prefix"] == model.task("entail").settings["prefix"] == prefix
        assert set(model.tasks) == {name for name, kind in TASKS.items() if kind.example_model == OFA_BASE}
        drawn = (model.bundle.tokenizer.code_start, model.bundle.tokenizer.bin_start)
        allowed = {name: task.settings["allowed"] for name, task in model.tasks.items()}
        assert {name: ids for name, ids in allowed.items() if ids} == {"generate_image": drawn}


def test_an_unknown_kind_of_prompt_is_named(small, checkpoint, vocabulary):
    task = {"patch_image_size": 64, "prompt_type": "new"}
    file = small.file(checkpoint, cfg={"task": task, "model": small.namespace(**POSITIONS)})
    with pytest.raises(ModelError, match=r"ofa\.pt': prompt_type='new' is not supported"):
        vlm.load(f"ofa:{file}", tokenizer=vocabulary)


def test_options_of_the_command(checkpoint, vocabulary, tmp_path, capsys):
    out = tmp_path / "converted"
    options = ["--tokenizer", vocabulary, "--ema", "--half", "--image-size", "48"]
    assert run(capsys, f"ofa:{checkpoint}", out, *options)[0] == 0
    model = vlm.load(str(out))
    assert model.bundle.transform.size == 48
    assert {t.dtype for t in load_file(out / "model.safetensors").values()} == {torch.float16}
    original = vlm.load(f"ofa:{checkpoint}", tokenizer=vocabulary).bundle.module.backbone.embed.weight
    torch.testing.assert_close(model.bundle.module.backbone.embed.weight, original * 0.9, atol=1e-6, rtol=1e-3)


def test_errors_are_one_line(checkpoint, vocabulary, tmp_path, capsys):
    def refused(*argv: str | Path) -> str:
        code, out, err = run(capsys, *argv)
        assert code == 2 and out == "" and err.startswith("error: ") and err.count("\n") == 1
        return err

    new = tmp_path / "new"
    assert "no OFA vocabulary in" in refused(checkpoint, new)
    assert "no OFA checkpoint at 'gone.pt'" in refused("gone.pt", new)
    assert "exists and is not an empty folder" in refused(checkpoint, vocabulary, "--tokenizer", vocabulary)
    assert "exists and is not an empty folder" in refused(checkpoint, checkpoint, "--tokenizer", vocabulary)
    assert "size=0 is not a positive" in refused(checkpoint, new, "--tokenizer", vocabulary, "--image-size", "0")
    below = checkpoint / "new"  # a file is not a folder
    assert "cannot be written" in refused(checkpoint, below, "--tokenizer", vocabulary)
    assert not new.exists()


def test_chinese_models_are_asked_in_chinese(small, tmp_path, capsys):
    folder = tmp_path / "BERT_CN_dict"
    folder.mkdir()
    symbols = ["[PAD]", "[UNK]", *"图片描述了什么内容?一只狗"]
    (folder / "dict.txt").write_text("".join(f"{symbol} 0\n" for symbol in symbols), encoding="utf-8")
    sizes = {**SIZES, "vocab": 4 + len(symbols) + 1 + 8192 + 1000}
    cfg = {"task": {"patch_image_size": 64}, "model": small.namespace(**POSITIONS)}
    file = small.file(tmp_path / "cn.pt", model=small.tensors(**sizes), cfg=cfg)
    assert run(capsys, file, tmp_path / "cn", "--tokenizer", folder)[0] == 0
    for model in (vlm.load(f"ofa:{file}", tokenizer=folder), vlm.load(str(tmp_path / "cn"))):
        assert model.task("caption").prompt == "图片描述了什么内容?"
        assert model.bundle.tokenizer.encode(model.task("caption").prompt) == list(range(6, 16))
        assert model.task("ground").prompt == '这段文字" {} "描述的是哪个区域？'
    assert isinstance(model.caption(Image.new("RGB", (70, 60), "red")), str)
