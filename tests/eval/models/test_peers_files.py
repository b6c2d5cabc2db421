"""What a folder or a hub id of a model may hold, what is wrong with it, and a whole run from the command line."""

import fnmatch
import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from eval import models
from eval.__main__ import main
from eval.models import peers
from vlm.errors import ArgumentError, ModelError

tf: Any = transformers  # its names appear on first use


def load(folder: Path) -> Any:
    return peers.load(f"hf:{folder}", "cpu")


def test_the_harness_refuses_questions_to_a_captioner(checkpoint):
    with pytest.raises(ArgumentError, match=r"cannot answer questions .*it can do: caption;"):
        models.load(f"hf:{checkpoint('blip-caption')}", "answer", "cpu")


def test_settings_and_weights_say_what_predictions_depend_on(copied):
    before = load(copied)
    assert before.weights == hashlib.sha256((copied / "model.safetensors").read_bytes()).hexdigest()
    settings = before.settings("caption")
    digest = settings.pop("configuration_sha256")
    assert settings == {
        "prompt": "a picture of",
        "num_beams": 3,
        "max_length": 20,
        "min_length": 5,
        "dtype": "float32",
        "image_processor": "BlipImageProcessor",
        "transformers": tf.__version__,
    }
    file = copied / "preprocessor_config.json"
    file.write_text(file.read_text().replace("0.48145466", "0.5"))
    after = load(copied)
    assert after.weights == before.weights
    assert after.settings("caption")["configuration_sha256"] != digest


def test_a_run_from_the_command_line(checkpoint, tmp_path, put_photo, capsys):
    folder, out = checkpoint("blip-caption"), tmp_path / "out"
    names = ("cat", "rocket")
    files = [put_photo(tmp_path / f"data/{name}.jpg", name) for name in names]
    records = [{"file": f"{name}.jpg", "captions": [f"a {name}"]} for name in names]
    (tmp_path / "data/captions.json").write_text(json.dumps(records))
    command = ["captions_json", "--data", f"{tmp_path}/data", "--model", f"hf:{folder}", "--out", str(out)]
    assert main(command) == 0, capsys.readouterr().err
    results = json.loads((out / "results.json").read_text())
    assert (results["model"], results["prompt"], results["n"]) == (f"hf:{folder}", "a picture of", 2)
    assert results["weights_sha256"] == hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
    assert {"num_beams": 3, "dtype": "float32"}.items() <= results["settings"].items()
    model = load(folder)
    found = [record["prediction"] for record in json.loads((out / "items.json").read_text())]
    assert found == model.caption([model.prepare(file) for file in files])
    assert main(command) == 0
    assert json.loads((out / "results.json").read_text())["predicted_in_these_seconds"] == 0


# Files


def test_shards_and_pickles_give_the_same_as_one_file(copied, photos):
    model = load(copied)
    expected = model.caption(photos)
    (copied / "model.safetensors").unlink()
    model.model.save_pretrained(copied, max_shard_size="50KB")
    shards = sorted(copied.glob("model-*.safetensors"))
    assert len(shards) > 2
    sharded = load(copied)
    assert sharded.weights == hashlib.sha256(b"".join(shard.read_bytes() for shard in shards)).hexdigest()
    assert sharded.caption(photos) == expected
    for file in [*shards, copied / "model.safetensors.index.json"]:
        file.unlink()
    torch.save(model.model.state_dict(), copied / "pytorch_model.bin")
    pickled = load(copied)
    assert pickled.weights == hashlib.sha256((copied / "pytorch_model.bin").read_bytes()).hexdigest()
    assert pickled.caption(photos) == expected


def test_half_precision_is_computed_in_float32_on_a_cpu(copied):
    load(copied).model.half().save_pretrained(copied)
    assert load(copied).settings("caption")["dtype"] == "float32"


class Malicious:
    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def test_no_code_of_a_checkpoint_is_run(copied, tmp_path, photos):
    (copied / "evil.py").write_text(f"import os\nos.mkdir({str(tmp_path / 'ran')!r})\nclass Evil: ...\n")
    for name, auto in [
        ("config.json", "AutoModel"),
        ("preprocessor_config.json", "AutoProcessor"),
        ("tokenizer_config.json", "AutoTokenizer"),
    ]:
        config = json.loads((copied / name).read_text())
        (copied / name).write_text(json.dumps(config | {"auto_map": {"AutoConfig": "evil.Evil", auto: "evil.Evil"}}))
    assert load(copied).caption(photos[:1])
    (copied / "model.safetensors").unlink()
    torch.save({"weight": Malicious(tmp_path / "ran")}, copied / "pytorch_model.bin")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load(copied)
    assert not (tmp_path / "ran").exists()


def drop_tensor(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "model.safetensors")
    del tensors["vision_model.post_layernorm.bias"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def edit_config(**changes: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | changes))

    return edit


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda folder: (folder / "config.json").unlink(), "is not a model's folder: config.json missing"),
        (lambda folder: (folder / "config.json").write_text("{"), "does not name the model's architecture"),
        (edit_config(architectures=None), "does not name the model's architecture"),
        (
            edit_config(architectures=["BlipForImageTextRetrieval"]),
            "is not supported; choose one of: BlipForCond.*SmolVLMFor",
        ),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights: neither model"),
        (lambda folder: (folder / "model.safetensors").write_bytes(b"garbage"), "cannot be loaded: "),
        (lambda folder: (folder / "tokenizer.json").write_text("{}"), "cannot be loaded: "),
        (drop_tensor, "lacks 1 of the model's tensors, such as vision_model.post_layernorm.bias"),
    ],
)
def test_a_damaged_folder_is_one_line(damage, message, copied):
    damage(copied)
    with pytest.raises(ModelError, match=message) as error:
        load(copied)
    assert str(copied) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_model_that_was_not_tuned_to_chat_is_refused(checkpoint, tmp_path):
    folder = shutil.copytree(checkpoint("smolvlm"), tmp_path / "base")
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(ModelError, match="has no chat template; give its instruction-tuned version"):
        load(folder)


def test_other_mistakes_are_one_line(copied, monkeypatch):
    with pytest.raises(ArgumentError, match=r"device 'gpu' cannot be used: .*; try cpu, cuda or mps"):
        peers.load(f"hf:{copied}", "gpu")
    monkeypatch.setitem(peers.FAMILIES, "BlipForTomorrow", peers.BlipCaptioner)
    edit_config(architectures=["BlipForTomorrow"])(copied)
    with pytest.raises(ModelError, match=r"transformers [\d.]+ has no BlipForTomorrow; update it"):
        load(copied)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(ArgumentError, match=r"needs transformers; install it: pip install 'vlm-foundation\[hf\]'"):
        load(copied)


# The hub


@pytest.fixture
def hub(copied, tmp_path, monkeypatch) -> Path:
    """A folder that is served as `owner/name`, and fetched into another one by the patterns asked for."""
    import huggingface_hub

    def fetch(name, allow_patterns, ignore_patterns):
        assert name == "owner/name"
        for file in copied.rglob("*.*"):
            path = file.relative_to(copied).as_posix()
            if any(fnmatch.fnmatch(path, p) for p in allow_patterns) and not fnmatch.fnmatch(path, *ignore_patterns):
                (tmp_path / "cache").mkdir(exist_ok=True)
                shutil.copy(file, tmp_path / "cache" / path)
        return str(tmp_path / "cache")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    return copied


def test_a_hub_id_fetches_one_format_of_the_weights(hub, tmp_path):
    (hub / "onnx").mkdir()
    for name in ("pytorch_model.bin", "tf_model.h5", "onnx/config.json", "README.md"):
        (hub / name).write_bytes(b"not needed")
    model = peers.load("hf:owner/name", "cpu")
    assert model.name == "hf:owner/name"
    assert model.weights == hashlib.sha256((hub / "model.safetensors").read_bytes()).hexdigest()
    kept = {"config.json", "generation_config.json", "preprocessor_config.json", "tokenizer.json"}
    found = {file.name for file in (tmp_path / "cache").iterdir()}
    assert found == kept | {"tokenizer_config.json", "model.safetensors"}


def test_a_hub_id_without_safetensors_fetches_pickles(hub, tmp_path):
    torch.save(load(hub).model.state_dict(), hub / "pytorch_model.bin")
    (hub / "model.safetensors").unlink()
    assert (
        peers.load("hf:owner/name", "cpu").weights
        == hashlib.sha256((hub / "pytorch_model.bin").read_bytes()).hexdigest()
    )


def test_a_hub_that_cannot_be_reached_is_one_line(monkeypatch):
    import huggingface_hub

    def fail(*args, **options):
        raise ConnectionError("no route to host\nsecond line")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(
        ModelError, match=r"'owner/name' is not a local folder and could not be fetched .*: no route to host$"
    ):
        peers.load("hf:owner/name", "cpu")


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/model", "/nowhere", "a/b/c"])
def test_a_name_that_is_neither_folder_nor_hub_id_is_one_line(name, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=r"no model at .*; after hf: comes a folder with config.json, or a hub id"):
        peers.load(f"hf:{name}", "cpu")
