"""A model's folder: what is saved comes back, and whatever is wrong with it is one clear error."""

import json
import pickle
import shutil
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file

from vlm import hub
from vlm.errors import ModelError, VLMError
from vlm.image import ImageTransform
from vlm.models.layers import Seq2SeqConfig
from vlm.models.towers import TowerConfig
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
    hub.save_model(folder, build(), TOKENIZER, TRANSFORM)
    return folder


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copytree(saved, tmp_path / "model"))


def refusal(folder: Path) -> str:
    with pytest.raises(ModelError) as caught:
        hub.load_model(folder)
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
    hub.save_model(tmp_path / "new" / "folder", model, TOKENIZER, TRANSFORM)
    loaded, tokenizer, transform = hub.load_model(tmp_path / "new" / "folder")
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
    assert sorted(path.name for path in saved.iterdir()) == sorted(hub.FILES)
    config = json.loads((saved / "config.json").read_text())
    assert sorted(config) == ["backbone", "format", "image", "tokenizer", "tower"] and config["format"] == 1
    tensors = load_file(saved / "model.safetensors")
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert not any(name.endswith("num_batches_tracked") for name in tensors)
    # other users of the machine may read weights as they may read any file
    assert (saved / "model.safetensors").stat().st_mode == (saved / "config.json").stat().st_mode


def test_what_a_model_does_and_is_asked_travels_with_the_weights(tmp_path):
    tasks = {"caption": {"prompt": "图片描述了什么内容?", "max_tokens": 16, "allowed": None}, "answer": {}}
    hub.save_model(tmp_path / "a", build(), TOKENIZER, TRANSFORM, tasks, torch.float32)
    assert hub.task_settings(tmp_path / "a") == tasks
    assert {tensor.dtype for tensor in load_file(tmp_path / "a" / "model.safetensors").values()} == {torch.float32}
    model = hub.load_model(tmp_path / "a")[0]
    expected = build().state_dict()
    assert all(torch.equal(value, expected[name]) for name, value in model.state_dict().items())


def test_a_model_that_says_nothing_captions(saved):
    assert hub.task_settings(saved) == {"caption": {}}


@pytest.mark.parametrize(
    "tasks, reason",
    [
        ([1], r"tasks=\[1\] is no object with a name"),
        ({}, r"tasks=\{\} is no object with a name"),
        ({"juggle": {}}, "task 'juggle' is unknown; this version knows caption, answer"),
        ({"caption": "what is it?"}, "caption='what is it.' is no object with a prompt and options"),
        ({"answer": {"prompt": 3}}, "answer=.* is no object with a prompt and options"),
    ],
)
def test_damaged_tasks(folder, tasks, reason):
    edit(folder, lambda config: config.update(tasks=tasks))
    with pytest.raises(ModelError, match=rf"config\.json': {reason}"):
        hub.task_settings(folder)


def test_saving_again_replaces_the_files(folder):
    other = build()
    with torch.no_grad():
        other.backbone.embed.weight.fill_(0.25)
    hub.save_model(folder, other, TOKENIZER, TRANSFORM)
    assert (hub.load_model(folder)[0].backbone.embed.weight == 0.25).all()
    assert len(list(folder.iterdir())) == 3


def test_a_loaded_model_can_be_trained(saved):
    model = hub.load_model(saved)[0].train()
    words = torch.tensor([[0, 5, 6]])
    model(torch.randn(1, 3, 64, 64), words, words).sum().backward()
    assert model.backbone.embed.weight.grad is not None


@pytest.mark.parametrize("name", hub.FILES)
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


# Names


def unresolved(name: str) -> str:
    with pytest.raises(ModelError) as caught:
        hub.resolve(name)
    assert str(caught.value).isprintable()
    return str(caught.value)


def test_bundled_names_come_first(tmp_path, monkeypatch):
    for name in ("tiny", "small"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").touch()
    monkeypatch.setattr(hub, "BUNDLED", tmp_path / "weights")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tiny").mkdir()
    assert hub.bundled() == ["small", "tiny"]
    assert hub.resolve("tiny") == tmp_path / "weights" / "tiny"
    assert hub.resolve("./tiny") == Path("tiny")
    assert "bundled: small, tiny; or give a folder or a hub id OWNER/NAME" in unresolved("large")


def test_a_folder_is_itself(saved, monkeypatch):
    assert hub.resolve(str(saved)) == saved
    monkeypatch.setenv("HOME", str(saved.parent))
    assert hub.resolve("~/model") == saved


def test_a_file_is_no_folder(saved):
    message = unresolved(str(saved / "model.safetensors"))
    assert "is a file; give the folder that holds config.json, tokenizer.json, model.safetensors" in message


@pytest.mark.parametrize("name", ["nothing", "a/b/c", "./a/b", "/a/b", "~/no/where", "~no-such-user/model", "../b"])
def test_unknown_names(name):
    assert f"no model {name!r}; bundled:" in unresolved(name)


def test_a_foreign_checkpoint_must_be_converted_first():
    assert "'ofa:a/b' is in a foreign format; write it as ours: python -m tasks.convert" in unresolved("ofa:a/b")


def test_a_hub_id_is_fetched(saved, monkeypatch):
    asked = []

    def fetch(name, allow_patterns, ignore_patterns):
        asked.append((name, allow_patterns))
        return str(saved)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert hub.resolve("owner/name") == saved
    assert asked == [("owner/name", [*hub.FILES, *hub.PAIR_FILES])]  # nothing but what is read


@pytest.mark.parametrize(
    "error, reason",
    [
        (OSError("no route\nto host"), "no route"),
        (RuntimeError("proxy refused"), "proxy refused"),
        (ConnectionError(), "ConnectionError"),
    ],
)
def test_a_failing_network_is_one_line(monkeypatch, error, reason):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    expected = f"'owner/name' is no local folder and could not be fetched from the hub: {reason}"
    assert unresolved("owner/name") == expected


@pytest.mark.filterwarnings("ignore:A test tried to use socket")
@pytest.mark.parametrize("name", ["owner/name", "own er/na me", "owner/.."])
def test_the_real_client_without_a_network_is_one_line(name):
    # sockets are blocked in tests; ids that the hub's client refuses never reach one
    assert f"{name!r} is no local folder and could not be fetched from the hub" in unresolved(name)
