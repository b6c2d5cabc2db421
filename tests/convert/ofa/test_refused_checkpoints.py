"""Files that are not OFA checkpoints, or not whole ones, or that would run code: each is refused in one line."""

import json
import os
import pickle
import sys
from enum import Enum
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from vlm.convert.ofa.checkpoint import load_checkpoint
from vlm.convert.ofa.files import read_checkpoint
from vlm.errors import ModelError, VLMError


def refusal(path: Path, **options) -> str:
    with pytest.raises(ModelError) as caught:
        load_checkpoint(read_checkpoint(path, **options))
    message = str(caught.value)
    assert message.isprintable() and isinstance(caught.value, VLMError)
    return message


NAME = "encoder.layers.1.fc1.weight"


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda t: t.pop(NAME), "lacks the tensor that becomes backbone.encoder.layers.1.ffn.fc1.weight"),
        (lambda t: t.pop("encoder.embed_tokens.weight"), "lacks encoder.embed_tokens.weight"),
        (
            lambda t: [t.pop(name) for name in list(t) if "decoder.layernorm_emb" in name or "code_layernorm" in name],
            "lacks the tensor that becomes backbone.decoder.embed_norm.weight",
        ),
        (
            lambda t: t.update({"encoder.more.weight": torch.ones(2)}),
            "holds encoder.more.weight, which no OFA model has",
        ),
        (lambda t: t.update({"bert.pooler.weight": torch.ones(2)}), "holds bert.pooler.weight, which no OFA model has"),
        (
            lambda t: t.update({"encoder.layers.2.fc1.weight": t[NAME]}),
            "holds encoder.layers.2.fc1.weight, which a model of its settings does not have",
        ),
        (lambda t: t.update({NAME: torch.ones(3, 4)}), f"{NAME} has shape (3, 4), its settings say (24, 16)"),
        (
            lambda t: t.update({"encoder.embed_tokens.weight": torch.ones(40, 8)}),
            "encoder.embed_tokens.weight has shape (40, 8), its settings say (vocabulary, 16)",
        ),
        (
            lambda t: t.update({"decoder.output_projection.weight": torch.ones(40, 16)}),
            "decoder.output_projection.weight differs from encoder.embed_tokens.weight",
        ),
        (lambda t: t.update({NAME: 3}), f"{NAME} is a int, not a tensor"),
    ],
)
def test_other_tensors(small, tmp_path, change, message):
    tensors = small.tensors()
    change(tensors)
    found = refusal(small.file(tmp_path / "a.pt", model=tensors))
    assert "a.pt'" in found and message in found


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"resnet_type": "ViT-B/16"}, "resnet_type='ViT-B/16' is no image tower that is known"),
        ({"activation_fn": "relu"}, "activation_fn='relu' is not supported; every released model has 'gelu'"),
        ({"no_scale_embedding": False}, "no_scale_embedding=False is not supported"),
        ({"decoder_embed_dim": 8}, "decoder_embed_dim=8 is not supported; every released model has 16"),
        ({"encoder_attention_heads": 3, "decoder_attention_heads": 3}, "dim=16 is not a multiple of heads=3"),
        ({"encoder_layers": "two"}, "has settings of no model"),
        ({"patch_image_size": -1}, "size=-1 is not a positive whole number"),
        ({"encoder_layers": 3}, "lacks the tensor that becomes backbone.encoder.relative.2.text.weight"),
        ({"encoder_layers": 1}, "which a model of its settings does not have"),
    ],
)
def test_other_settings(small, tmp_path, changes, message):
    found = refusal(small.file(tmp_path / "a.pt", cfg={"model": small.namespace(**changes)}))
    assert "a.pt'" in found and message in found


def test_settings_of_another_model(small, tmp_path):
    namespace = small.namespace()
    del namespace.resnet_type
    message = refusal(small.file(tmp_path / "a.pt", cfg={"model": namespace}))
    assert "a.pt' is not an OFA checkpoint: its settings lack 'resnet_type'" in message
    assert "its settings lack" in refusal(small.file(tmp_path / "b.pt", cfg=None))
    assert "its weights are a list" in refusal(small.file(tmp_path / "c.pt", model=[1]))


@pytest.mark.parametrize("content", [{"state_dict": {}}, {}, [1, 2], torch.ones(2)])
def test_other_checkpoints(tmp_path, content):
    torch.save(content, tmp_path / "a.pt")
    assert "a.pt' is no fairseq checkpoint: it lacks 'model'" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n0000", b"PK\x03\x04", b"text\n" * 100])
def test_files_that_are_no_checkpoints(tmp_path, content):
    (tmp_path / "a.pt").write_bytes(content)
    assert "a.pt' cannot be read" in refusal(tmp_path / "a.pt")


@pytest.mark.parametrize("part", [0.2, 0.9, 0.9999])
def test_truncated_files(small, tmp_path, part):
    file = small.file(tmp_path / "a.pt")
    os.truncate(file, int(file.stat().st_size * part))
    assert "a.pt' cannot be read" in refusal(file)
    save_file(
        {name: tensor.clone() for name, tensor in small.tensors(hub=True).items()}, tmp_path / "model.safetensors"
    )
    os.truncate(tmp_path / "model.safetensors", int((tmp_path / "model.safetensors").stat().st_size * part))
    (tmp_path / "config.json").write_text(json.dumps(small.hub_settings))
    assert "model.safetensors' cannot be read" in refusal(tmp_path)


class Malicious:
    def __reduce__(self):
        return (open, ("executed", "w"))


@pytest.mark.parametrize("zipped", [True, False])
def test_code_is_never_run(small, tmp_path, monkeypatch, zipped):
    monkeypatch.chdir(tmp_path)
    content = {"model": small.tensors(), "cfg": {"model": Malicious()}}
    torch.save(content, "a.pt", _use_new_zipfile_serialization=zipped)
    assert "a.pt' holds the Python object io.open, which is not loaded: it could run code" in refusal(Path("a.pt"))
    Path("b.pt").write_bytes(pickle.dumps(content | {"model": {}}))
    assert "b.pt'" in refusal(Path("b.pt"))
    assert not Path("executed").exists()


def test_enumerations_of_fairseq_come_as_their_values(small, tmp_path):
    name = "fairseq.dataclass.constants"
    choice = Enum("DDP_BACKEND_CHOICES", {"c10d": "c10d"}, module=name)
    # as Python 3.7 writes a member, and later ones do again; 3.11.0 to 3.11.3 write a call of getattr
    setattr(choice, "__reduce_ex__", lambda member, protocol: (choice, (member.value,)))  # noqa: B010
    with pytest.MonkeyPatch.context() as patch:  # pickle looks the class up when it writes
        for parent in ("fairseq", "fairseq.dataclass", name):
            patch.setitem(sys.modules, parent, ModuleType(parent))
        patch.setattr(sys.modules[name], "DDP_BACKEND_CHOICES", choice, raising=False)
        cfg = {"model": small.namespace(dropout=0.25), "distributed": {"backend": choice("c10d")}}
        file = small.file(tmp_path / "a.pt", cfg=cfg)
    assert read_checkpoint(file).settings.backbone.dropout == 0.25


def test_numbers_of_numpy_among_the_statistics_are_passed_over(small, tmp_path):
    file = small.file(tmp_path / "a.pt", extra_state={"val_loss": np.float64(0.5), "counts": [np.int64(3)]})
    assert read_checkpoint(file).settings.backbone.dim == 16


def test_folders_that_are_no_checkpoints(small, tmp_path):
    assert "is not an OFA checkpoint: needs config.json and" in refusal(tmp_path)
    torch.save(small.tensors(hub=True), tmp_path / "pytorch_model.bin")
    assert "is not an OFA checkpoint: needs config.json and" in refusal(tmp_path)
    for text, message in [("{", "config.json' is not JSON"), ("[]", "its settings lack"), ("{}", "its settings lack")]:
        (tmp_path / "config.json").write_text(text)
        assert message in refusal(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(small.hub_settings | {"d_model": 32}))
    assert "pytorch_model.bin': encoder.embed_tokens.weight has shape (40, 16)" in refusal(tmp_path)
    assert "holds no averaged weights" in refusal(tmp_path, ema=True)
    assert "no OFA checkpoint at" in refusal(tmp_path / "gone.pt")
