"""OFA's checkpoints: every tensor of every released size, and the original's numbers."""

import argparse
import json
from collections.abc import Callable
from pathlib import Path

import huggingface_hub
import pytest
import torch
from safetensors.torch import save_file

from vlm.convert.ofa import checkpoint as ofa
from vlm.convert.ofa import config as ofa_config
from vlm.convert.ofa.checkpoint import load_checkpoint, rename
from vlm.convert.ofa.config import BLOCKS, from_fairseq, from_transformers
from vlm.convert.ofa.files import Checkpoint, read_checkpoint
from vlm.errors import ModelError
from vlm.models.vision_language import VisionLanguageModel

# width, feed-forward width, encoder and decoder layers, heads; tower; unique parameters, as the specification counts
SIZES = {
    "tiny": ((256, 1024, 4, 4, 4), "resnet50", 33_488_336),
    "medium": ((512, 2048, 4, 4, 8), "resnet101", 92_892_000),
    "base": ((768, 3072, 6, 6, 12), "resnet101", 182_238_536),
    "large": ((1024, 4096, 12, 12, 16), "resnet152", 472_977_152),
    "huge": ((1280, 5120, 24, 12, 16), "resnet152", 929_486_848),
}
KINDS = ["fairseq", "hf"]


def settings(size: str, kind: str) -> ofa_config.Settings:
    """What the released checkpoint of a size says of itself."""
    (dim, ffn, encoder, decoder, heads), tower, _ = SIZES[size]
    layers = {"encoder_layers": encoder, "decoder_layers": decoder, "resnet_type": tower}
    if kind == "hf":
        heads = {"encoder_attention_heads": heads, "decoder_attention_heads": heads}
        return from_transformers({"d_model": dim, "encoder_ffn_dim": ffn, "decoder_ffn_dim": ffn, **heads, **layers})
    flags = dict.fromkeys(("scale_attn", "scale_fc", "scale_heads", "disable_entangle"), True)
    stacks = {
        f"{stack}_{name}": value
        for stack in ("encoder", "decoder")
        for name, value in (("embed_dim", dim), ("ffn_embed_dim", ffn), ("attention_heads", heads))
    }
    return from_fairseq({**flags, **stacks, **layers})


# Names and shapes


def lists_of_names(golden: Path) -> dict[str, Path]:
    return {file.stem: file for file in sorted((golden / "params").glob("*.txt"))}


@pytest.mark.cases(find=lists_of_names)
def test_the_names_written_down_here_are_those_of_the_original(golden, case, ofa_names):
    """Our golden has one layer and one block of each kind."""
    size, kind = case.stem.split("_")
    sizes, tower, _ = SIZES[size]
    lines = case.read_text().splitlines()
    theirs = {name: shape for name, shape, _ in (line.split("\t") for line in lines)}
    (dim, ffn, *layers, heads), blocks = sizes, BLOCKS[tower]
    if not any(".layers.1." in name for name in theirs):
        layers, blocks = [1, 1], (1, 1, 1)
    ours = ofa_names(dim, ffn, *layers, heads, blocks, hub=kind == "hf")
    assert {name: "x".join(map(str, shape)) or "scalar" for name, shape in ours.items()} == theirs


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", SIZES)
def test_every_tensor_of_every_size_has_one_place(size, kind, ofa_names):
    sizes, tower, count = SIZES[size]
    with torch.device("meta"):  # no memory
        tensors = {
            name: torch.empty(shape, dtype=torch.float32 if len(shape) else torch.long)
            for name, shape in ofa_names(*sizes, BLOCKS[tower], hub=kind == "hf").items()
        }
    model = load_checkpoint(Checkpoint(Path("file"), tensors, settings(size, kind)))
    assert sum(p.numel() for p in model.parameters()) == count
    assert model.backbone.config.vocab_size == 59457
    kept = [new for name in tensors if (new := rename(name)) is not None]
    assert sorted(kept) == sorted(model.state_dict())  # each once, none left over
    left = {name for name in tensors if rename(name) is None}
    computed = {"version", "token_rp_bucket", "image_rp_bucket", "image_position_idx"}
    assert {name.split(".")[1] for name in left} <= computed | {"embed_tokens", "output_projection"}


# The original's numbers, through files


@pytest.fixture
def nano_content(golden, nano_state, ofa_names, monkeypatch) -> dict:
    """A checkpoint of the nano model. Where the golden has no tower, it is a random one, which no case needs."""
    monkeypatch.setitem(BLOCKS, "nano", (2, 1, 1))
    values = json.loads((golden / "nano" / "config.json").read_text()) | {"resnet_type": "nano"}
    state = dict(nano_state)
    for name, shape in ofa_names(32, 64, 2, 2, 4, (2, 1, 1)).items():
        if name.startswith("encoder.embed_images."):
            state.setdefault(name, torch.rand(shape))
    return {"args": None, "cfg": {"model": values, "task": {"patch_image_size": 64}}, "model": state}


@pytest.fixture
def check_nano(arrays) -> Callable[[VisionLanguageModel, str], None]:
    @torch.inference_mode()
    def check(model: VisionLanguageModel, case: str) -> None:
        data = {name.removeprefix(f"{case}."): value for name, value in arrays("nano/cases").items()}
        source, previous, codes = data["in.src_tokens"], data["in.prev_output_tokens"], data.get("in.code_masks")
        patches = model.tower(data["in.patch_images"]) if "in.patch_images" in data else None
        logits, expected = model.backbone(source, previous, patches, code_rows=codes), data["out.logits"]
        every = logits.shape[-1] // expected.shape[-1]  # our golden has one logit of nine
        torch.testing.assert_close(logits[..., ::every], expected, atol=1e-4, rtol=0)

    return check


def nano_cases(golden: Path) -> dict[str, str]:
    names = ["nonsquare", "text_only", "code"] if (golden / "nano" / "state.npz").is_file() else ["text_only", "code"]
    return {name: name for name in names}


@pytest.mark.cases(find=nano_cases)
def test_a_fairseq_file_gives_the_numbers_of_the_original(nano_content, check_nano, case, tmp_path):
    torch.save(nano_content, tmp_path / "nano.pt")
    checkpoint = read_checkpoint(tmp_path / "nano.pt")
    check_nano(load_checkpoint(checkpoint), case)
    assert checkpoint.settings.image.size == 64


@pytest.mark.cases(find=nano_cases)
def test_a_folder_of_transformers_gives_the_numbers_of_the_original(nano_content, check_nano, small, case, tmp_path):
    old = nano_content["cfg"]["model"]
    new = {name: old[name] for name in small.hub_settings if name in old}
    new |= {"d_model": 32, "encoder_ffn_dim": 64, "decoder_ffn_dim": 64, "max_position_embeddings": 80}
    renames = {  # the table of the specification
        "encoder_attn": "cross_attn", "cross_attn_ln": "cross_attn_mid_layer_norm", "ffn_layernorm": "ffn_layer_norm",
        "self_attn_ln": "self_attn_mid_layer_norm", ".attn_ln": ".self_attn_mid_layer_norm",
    }  # fmt: skip
    state = {}
    for name, tensor in nano_content["model"].items():
        for old_part, new_part in renames.items():
            name = name.replace(old_part, new_part)
        state[name] = tensor
    # the port has one length for both stacks, the nano model has two
    table = state["decoder.embed_positions.weight"]
    state["decoder.embed_positions.weight"] = torch.cat([table, table.new_zeros(32, 32)])
    (tmp_path / "config.json").write_text(json.dumps(new | {"resnet_type": "nano"}))
    torch.save(state, tmp_path / "pytorch_model.bin")
    check_nano(load_checkpoint(read_checkpoint(tmp_path)), case)


# Kinds of files


def same(first: VisionLanguageModel, second: VisionLanguageModel) -> bool:
    one, two = first.state_dict(), second.state_dict()
    return one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_new_and_old_settings_and_both_layouts_give_one_model(small, tmp_path):
    reference = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt")))
    assert reference.backbone.embed.weight.dtype == torch.float32 and not reference.training
    assert reference.backbone.config.code_grid == 4 and not reference.backbone.config.decoder_entangle

    plain = {"task": argparse.Namespace(patch_image_size=32), "model": small.settings}
    plain = read_checkpoint(small.file(tmp_path / "b.pt", cfg=plain))
    assert plain.settings.image.size == 32 and same(load_checkpoint(plain), reference)

    # arguments win over the configuration, as in the original
    old = {"args": small.namespace(patch_image_size=48, dropout=0.3), "cfg": {"model": {"encoder_layers": 99}}}
    old = read_checkpoint(small.file(tmp_path / "c.pt", **old))
    assert (old.settings.image.size, old.settings.backbone.dropout) == (48, 0.3)
    assert same(load_checkpoint(old), reference)

    folder = tmp_path / "hub"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(small.hub_settings))
    tensors = small.tensors(hub=True)
    torch.save(tensors, folder / "pytorch_model.bin")
    assert same(load_checkpoint(read_checkpoint(folder)), reference)
    (folder / "pytorch_model.bin").unlink()
    save_file({name: tensor.clone() for name, tensor in tensors.items()}, folder / "model.safetensors")
    assert same(load_checkpoint(read_checkpoint(folder)), reference)

    torch.save(
        torch.load(tmp_path / "a.pt", weights_only=False), tmp_path / "old", _use_new_zipfile_serialization=False
    )
    assert same(load_checkpoint(read_checkpoint(tmp_path / "old")), reference)


def test_half_precision_becomes_float32(small, tmp_path):
    halves = {name: t.half() if t.is_floating_point() else t for name, t in small.tensors().items()}
    model = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt", model=halves)))
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert torch.equal(model.backbone.embed.weight, halves["encoder.embed_tokens.weight"].float())


def test_averaged_weights_on_request(small, tmp_path):
    averaged = {
        name: t * 0.5 if t.is_floating_point() else t for name, t in small.tensors().items() if "version" not in name
    }
    file = small.file(tmp_path / "a.pt", extra_state={"epoch": 1, "ema": averaged})
    plain, mean = (load_checkpoint(read_checkpoint(file, ema)) for ema in (False, True))
    assert torch.equal(plain.backbone.embed.weight * 0.5, mean.backbone.embed.weight)
    with pytest.raises(ModelError, match=r"holds no averaged weights \(extra_state\.ema\)"):
        read_checkpoint(small.file(tmp_path / "b.pt"), ema=True)


def test_buffers_may_be_missing_or_others(small, tmp_path):
    reference = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt")))
    computed = ("version", "_bucket", "image_position_idx", "num_batches_tracked")
    fewer = {name: tensor for name, tensor in small.tensors().items() if not name.endswith(computed)}
    assert len(fewer) == len(small.tensors()) - 20
    assert same(load_checkpoint(read_checkpoint(small.file(tmp_path / "b.pt", model=fewer))), reference)
    more = small.tensors() | {
        "decoder.image_position_idx": torch.zeros(7),
        "classification_heads.x.dense.weight": torch.ones(2),
    }
    assert same(load_checkpoint(read_checkpoint(small.file(tmp_path / "c.pt", model=more))), reference)


def test_frozen_batch_norms_without_statistics_do_nothing(small, tmp_path):
    frozen = {n: t for n, t in small.tensors().items() if not n.endswith(("running_mean", "running_var", "tracked"))}
    model = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt", model=frozen)))
    norm = model.tower.get_submodule("chain.0.1")
    assert isinstance(norm, torch.nn.BatchNorm2d)
    x = torch.randn(2, 64, 3, 3)
    expected = x * norm.weight[:, None, None] + norm.bias[:, None, None]
    torch.testing.assert_close(norm(x), expected, atol=1e-6, rtol=1e-5)


def test_synchronised_batch_norms_have_a_larger_epsilon(small, tmp_path):
    cfg = {"model": small.namespace(sync_bn=True)}
    model = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt", cfg=cfg)))
    x, norm = torch.randn(2, 64, 3, 3), "encoder.embed_images.bn1."
    mean, variance, weight, bias = (
        small.tensors()[norm + name] for name in ("running_mean", "running_var", "weight", "bias")
    )
    expected = torch.nn.functional.batch_norm(x, mean, variance, weight, bias, eps=1e-3)
    torch.testing.assert_close(model.tower.get_submodule("chain.0.1")(x), expected, atol=1e-6, rtol=1e-5)


def test_codes_without_a_norm_share_that_of_the_words(small, tmp_path):
    old = {name: tensor for name, tensor in small.tensors().items() if "code_layernorm" not in name}
    decoder = load_checkpoint(read_checkpoint(small.file(tmp_path / "a.pt", model=old))).backbone.decoder
    assert torch.equal(decoder.code_embed_norm.weight, decoder.embed_norm.weight)


@pytest.mark.parametrize(
    "changes, field, value",
    [
        ({"disable_entangle": False}, "decoder_entangle", True),
        ({"interpolate_position": True, "orig_patch_image_size": 224}, "interpolate_from", 14),
        ({"code_image_size": 24}, "code_grid", 3),
        ({"entangle_position_embedding": True}, "encoder_entangle", True),
        ({"encoder_drop_path_rate": 0.2}, "encoder_drop_path", 0.2),
    ],
)
def test_switches_come_from_the_settings(small, changes, field, value):
    assert getattr(from_fairseq({**small.settings, **changes}).backbone, field) == value


def test_imagenet_models_have_imagenet_colours(small):
    image = from_fairseq({**small.settings, "imagenet_default_mean_and_std": True, "patch_image_size": 224}).image
    assert (image.size, image.mean, image.std) == (224, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


# Vocabularies (the tokenizer itself has tests of its own)


def test_missing_rows_of_the_vocabulary_are_appended(small, tmp_path, monkeypatch):
    from vlm.tokenizer import train_tokenizer

    words = train_tokenizer([" a dog"], 260, num_codes=4, num_bins=8)
    tensors = small.tensors(vocab=words.vocab_size - 8)  # a model without locations
    checkpoint = read_checkpoint(small.file(tmp_path / "a.pt", model=tensors))
    table = load_checkpoint(checkpoint, words).backbone.embed.weight
    assert torch.equal(table[:-8], tensors["encoder.embed_tokens.weight"])
    assert table.shape == (words.vocab_size, 16) and table[-8:].std().item() == pytest.approx(16**-0.5, rel=0.3)
    assert torch.equal(load_checkpoint(checkpoint, words).backbone.embed.weight, table)  # the same every time

    larger = read_checkpoint(small.file(tmp_path / "b.pt", model=small.tensors(vocab=words.vocab_size + 1)))
    other = read_checkpoint(small.file(tmp_path / "c.pt"))
    for wrong in (larger, other):
        with pytest.raises(ModelError, match="give tokenizer= the vocabulary of this checkpoint"):
            load_checkpoint(wrong, words)


def test_names_lead_nowhere_or_to_the_hub(monkeypatch):
    for name in ("/no/such/file.pt", "nothing", "a/b/c"):
        with pytest.raises(ModelError, match="no OFA checkpoint at"):
            ofa.load_ofa(name)

    def fail(name, allow_patterns, ignore_patterns):
        assert {"config.json", "pytorch_model.bin", "vocab.json", "merges.txt"} <= set(allow_patterns)
        raise OSError("no route\nto host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fail)
    with pytest.raises(ModelError, match=r"'owner/name' is not a local folder and .* from the hub: no route$"):
        ofa.load_ofa("owner/name")
