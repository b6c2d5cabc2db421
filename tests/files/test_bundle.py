"""A model's folder: what is saved comes back, and whatever is wrong with it is one clear error."""

import json
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import vlm
from vlm.errors import ModelError, VLMError
from vlm.files.bundle import Bundle, load_folder, save_bundle
from vlm.files.hub import FILES
from vlm.image import ImageTransform
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([" a dog runs", " a cat"], 280, num_codes=4, num_bins=8)
TRANSFORM = ImageTransform(64, (0.4, 0.5, 0.6), (0.2, 0.3, 0.4), "bilinear")


def build(tower: str = "test_efficientnet", dim: int = 256) -> VisionLanguageModel:
    torch.manual_seed(0)
    config = Seq2SeqConfig(
        TOKENIZER.vocab_size, 32, 64, 2, 1, 1, patch_dim=dim, max_source_positions=16, max_target_positions=16,
        token_bucket_size=4, image_bucket_size=12, code_grid=2,
    )  # fmt: skip
    model = VisionLanguageModel(TowerConfig(tower), config)
    for name, buffer in model.named_buffers():  # as training leaves them
        if name.endswith("running_mean"):
            buffer.normal_()
    return model.eval()


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "model"
    save_bundle(folder, Bundle(build(), TOKENIZER, TRANSFORM))
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        load_folder(folder)
    assert (
        str(caught.value).isprintable() and isinstance(caught.value, VLMError) and isinstance(caught.value, ValueError)
    )
    return str(caught.value)


def outputs(model: VisionLanguageModel, size: int) -> torch.Tensor:
    torch.manual_seed(1)
    images, words = torch.randn(2, 3, size, size), torch.randint(4, 200, (2, 5))
    with torch.inference_mode():
        return model.backbone.logits(model(images, words, words))


@pytest.mark.parametrize(
    "tower, dim, size",
    [("test_efficientnet", 256, 64), ("test_resnet", 96, 64), ("test_vit", 64, 160), ("test_vit_relpos", 96, 160)],
)
def test_save_then_load_gives_equal_outputs(tmp_path, tower, dim, size):
    model = build(tower, dim)
    save_bundle(tmp_path / "new" / "folder", Bundle(model, TOKENIZER, TRANSFORM))
    bundle = load_folder(tmp_path / "new" / "folder")
    loaded, tokenizer, transform = bundle.module, bundle.tokenizer, bundle.transform
    exact = outputs(model, size)
    model.load_state_dict({name: value.half().to(value.dtype) for name, value in model.state_dict().items()})
    rounded = outputs(model, size)
    assert torch.equal(outputs(loaded, size), rounded) and rounded.std() > 0
    torch.testing.assert_close(rounded, exact, atol=5e-3, rtol=0)
    assert not loaded.training and {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert loaded.backbone.config == model.backbone.config and loaded.tower_config == model.tower_config
    assert transform == TRANSFORM
    assert tokenizer.bpe.to_str() == TOKENIZER.bpe.to_str() and tokenizer.vocab_size == TOKENIZER.vocab_size


def test_a_folder_holds_three_files_and_their_description(saved):
    assert sorted(path.name for path in saved.iterdir()) == sorted(FILES)
    config = json.loads((saved / "config.json").read_text())
    assert sorted(config) == ["backbone", "format", "image", "tasks", "tokenizer", "tower"] and config["format"] == 1
    tensors = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not any(name.endswith("num_batches_tracked") for name in tensors)
    # other users of the machine may read weights as they may read any file
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_what_a_model_does_and_is_asked_travels_with_the_weights(tmp_path):
    tasks = {"caption": {"prompt": "图片描述了什么内容?", "max_tokens": 16, "allowed": None}, "answer": {}}
    save_bundle(tmp_path / "a", Bundle(build(), TOKENIZER, TRANSFORM, tasks), torch.float32)
    bundle = load_folder(tmp_path / "a")
    assert bundle.tasks == tasks
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / "model.safetensors").values()} == {torch.float32}
    expected = build().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in bundle.module.state_dict().items())


def test_a_config_without_tasks_is_of_a_model_that_captions(folder):
    edit(folder, lambda config: config.pop("tasks"))
    assert load_folder(folder).tasks == {"caption": {}}


@pytest.mark.parametrize(
    "tasks, reason",
    [
        ([1], r"tasks=\[1\] must hold an object for each task"),
        ({}, r"tasks=\{\} must hold an object for each task"),
        ({"juggle": {}}, "task 'juggle' is unknown; this version knows answer, caption"),
        ({"caption": "what is it?"}, r"tasks=\{'caption': 'what is it.'\} must hold an object for each task"),
        ({"answer": {"prompt": 3}}, "answer=.* must have a text as its prompt"),
    ],
)
def test_damaged_tasks(folder, tasks, reason):
    edit(folder, lambda config: config.update(tasks=tasks))
    with pytest.raises(ModelError, match=rf"config\.json': {reason}"):
        vlm.load(folder)


def test_saving_again_replaces_the_files(folder):
    other = build()
    with torch.no_grad():
        other.backbone.embed.weight.fill_(0.25)
    save_bundle(folder, Bundle(other, TOKENIZER, TRANSFORM))
    assert (load_folder(folder).module.backbone.embed.weight == 0.25).all()
    assert len(list(folder.iterdir())) == 3


def test_a_loaded_model_can_be_trained(saved):
    model = load_folder(saved).module.train()
    words = torch.tensor([[0, 5, 6]])
    model(torch.randn(1, 3, 64, 64), words, words).sum().backward()
    assert model.backbone.embed.weight.grad is not None


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(folder, name):
    (folder / name).unlink()
    assert f"is not a model's folder: {name} missing" in refusal(folder)


def test_a_missing_folder_is_named(tmp_path):
    assert "config.json, tokenizer.json, model.safetensors missing" in refusal(tmp_path / "nothing")


@pytest.mark.parametrize("size", [0, 4, 100, 20_000, -1])
def test_truncated_weights(folder, size):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:size])
    assert "model.safetensors' cannot be read" in refusal(folder)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


def test_a_pickle_is_never_executed(folder, monkeypatch):
    monkeypatch.chdir(folder)
    (folder / "model.safetensors").write_bytes(pickle.dumps({"a": Malicious()}))
    assert "model.safetensors' cannot be read" in refusal(folder)
    torch.save({"a": Malicious()}, folder / "model.safetensors")
    assert "model.safetensors' cannot be read" in refusal(folder)
    assert not (folder / "executed").exists()


NAME = "backbone.encoder.patch_proj.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(NAME), f"lacks the tensor {NAME}"),
        (lambda t: t.update({"more": torch.zeros(1)}), "holds more, which this model does not have"),
        (
            lambda t: t.update({NAME: torch.zeros(32, 255)}),
            f"{NAME} has shape (32, 255), its config says (32, 256)",
        ),
        (lambda t: t.update({NAME: t[NAME][0]}), f"{NAME} has shape (256,), its config says (32, 256)"),
        (lambda t: t.clear(), "lacks the tensor"),
    ],
)
def test_other_tensors(folder, change, message):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")
    assert message in refusal(folder)


def test_another_tokenizer(folder):
    train_tokenizer([" something else entirely"], 280, 4, 8).save(folder / "tokenizer.json")
    assert "tokenizer.json' is not the tokenizer that these weights were trained with" in refusal(folder)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff"])
def test_a_damaged_tokenizer(folder, content):
    (folder / "tokenizer.json").write_bytes(content)
    assert "tokenizer.json' is not a tokenizer.json" in refusal(folder)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "3", '"text"', "{}", '{"format": 2}', '{"format": "1"}'])
def test_a_damaged_config(folder, content):
    (folder / "config.json").write_text(content)
    message = refusal(folder)
    assert "config.json' is not JSON" in message or "config.json' has format" in message


def test_a_newer_format_says_what_to_do(folder):
    edit(folder, lambda config: config.update(format=2))
    assert "has format 2; this version reads 1; update vlm-foundation" in refusal(folder)
    (folder / "config.json").write_text("{}")
    assert "has format None; this version reads 1; take the whole folder again" in refusal(folder)


def edit(folder: Path, change) -> None:
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    "section, field, value",
    [
        ("backbone", "no_such_field", 1),
        ("backbone", "dim", "32"),
        ("backbone", "dim", 33),
        ("backbone", "heads", 0),
        ("backbone", "vocab_size", -5),
        ("backbone", "patch_dim", 7),
        ("backbone", "dropout", 3),
        ("tower", "name", "no_such_tower"),
        ("tower", "name", "hf-hub:owner/name"),
        ("tower", "name", ["a"]),
        ("tower", "no_such_field", 1),
        ("image", "size", 0),
        ("image", "interpolation", "nearest"),
        ("image", "mean", "grey"),
        ("tokenizer", "num_codes", "many"),
        ("tokenizer", "num_bins", None),
    ],
)
def test_impossible_values(folder, section, field, value):
    edit(folder, lambda config: config[section].update({field: value}))
    assert "config.json' does not describe a model" in refusal(folder)


@pytest.mark.parametrize("section", ["backbone", "tower", "image", "tokenizer"])
def test_missing_and_misshapen_sections(folder, section):
    edit(folder, lambda config: config.update({section: [1]}))
    assert "config.json' does not describe a model" in refusal(folder)
    edit(folder, lambda config: config.pop(section))
    assert f"config.json' lacks '{section}'" in refusal(folder)


@pytest.mark.parametrize("field", ["num_codes", "num_bins", "sha256"])
def test_missing_layout_of_the_tokenizer(folder, field):
    edit(folder, lambda config: config["tokenizer"].pop(field))
    assert f"config.json' lacks '{field}'" in refusal(folder)


def test_a_layout_that_does_not_fit_the_weights(folder):
    edit(folder, lambda config: config["tokenizer"].update(num_bins=9))
    assert "is not the tokenizer that these weights were trained with" in refusal(folder)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(all_tasks, tmp_path, value):
    from safetensors.torch import load_file, save_file

    shutil.copytree(all_tasks, tmp_path / "m")
    file = tmp_path / "m" / "model.safetensors"
    tensors = load_file(file)
    name = next(name for name, tensor in tensors.items() if tensor.is_floating_point() and tensor.ndim > 1)
    tensors[name][0, 0] = value
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(ModelError, match="NaN or infinite"):
        load_folder(tmp_path / "m")
