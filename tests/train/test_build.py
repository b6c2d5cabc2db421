"""What a training run starts from."""

from dataclasses import replace

import pytest
import torch

from vlm.data.shards import Sample
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import load_bundle, save_bundle
from vlm.image import ImageTransform
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.tokenizer import Tokenizer
from vlm.train.build import build
from vlm.train.config import Phase, TrainConfig

FIELDS = {
    "zh": ["一只狗"], "de": ["ein Hund"],
    "vqa": [{"question": "What animal is it?", "answers": ["dog", "puppy"]}],
}  # fmt: skip
BACKBONE = Seq2SeqConfig(0, 32, 64, 2, 1, 1, patch_dim=256, image_bucket_size=4, code_grid=4)
SAMPLES = [Sample("a", b"", ("A Dog, running!",), fields=FIELDS)] * 9
CONFIG = TrainConfig(
    (Phase("a", stage=7),),
    BACKBONE,
    tower=TowerConfig("test_efficientnet"),
    init="random",
    text_tokens=290,
    location_tokens=16,
)


def test_a_new_model_is_sized_by_its_tokenizer(tmp_path):
    bundle, config = build(CONFIG, SAMPLES, tmp_path / "out")
    model, tokenizer = bundle.module, bundle.tokenizer
    assert config.backbone is not None
    assert config.backbone.vocab_size == tokenizer.vocab_size == model.backbone.embed.num_embeddings
    assert tokenizer.num_bins == 16 and tokenizer.num_text <= 290
    assert config == replace(CONFIG, backbone=replace(BACKBONE, vocab_size=tokenizer.vocab_size))


def test_the_tokenizer_knows_every_language_and_the_questions(tmp_path):
    tokenizer = build(replace(CONFIG, text_tokens=400), SAMPLES, tmp_path)[0].tokenizer
    for text in (" a dog running", " 一只狗", " ein Hund", " What animal is it?", " puppy"):
        assert len(tokenizer.encode(text)) <= len(text.split()) + text.count("?"), text  # a word is one piece


def test_the_same_seed_gives_the_same_weights(tmp_path):
    first, second, other = (
        build(replace(CONFIG, seed=seed), SAMPLES, tmp_path / name)[0].module.state_dict()
        for seed, name in ((0, "a"), (0, "b"), (1, "c"))
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["backbone.embed.weight"], other["backbone.embed.weight"])


def test_a_second_start_keeps_the_tokenizer_of_the_first(tmp_path):
    first = build(CONFIG, SAMPLES, tmp_path)[0].tokenizer
    again = build(CONFIG, [Sample("b", b"", ("other words",))], tmp_path)[0].tokenizer
    assert again.bpe.to_str() == first.bpe.to_str() == Tokenizer.load(tmp_path / "tokenizer.json").bpe.to_str()


def test_a_model_to_go_on_from_brings_its_sizes(tmp_path):
    bundle, _ = build(CONFIG, SAMPLES, tmp_path)
    save_bundle(tmp_path / "old", replace(bundle, transform=ImageTransform(48)))
    start = TrainConfig((Phase("a"),), init=str(tmp_path / "old"))
    again, config = build(start, [], tmp_path / "new")
    assert again.tokenizer.bpe.to_str() == bundle.tokenizer.bpe.to_str()
    model = bundle.module
    assert (config.backbone, config.tower, config.image) == (
        model.backbone.config, TowerConfig("test_efficientnet"), ImageTransform(48)
    )  # fmt: skip
    torch.testing.assert_close(again.module.backbone.embed.weight, model.backbone.embed.weight, atol=1e-4, rtol=1e-3)


def test_a_model_to_go_on_from_brings_what_it_was_trained_for(tmp_path):
    bundle, config = build(CONFIG, SAMPLES, tmp_path)
    assert config.tasks == {}  # it can do nothing yet
    known = {"answer": {"prompt": " {} answer:", "prefix": "source"}, "caption": {"beams": 2}}
    save_bundle(tmp_path / "old", replace(bundle, transform=ImageTransform(64), tasks=known))
    given = {"answer": {"prefix": "none"}, "summarize": {}}
    start = TrainConfig((Phase("a"),), init=str(tmp_path / "old"), tasks=given, image_size=96)
    again = build(start, [], tmp_path / "new")[1]
    assert again.tasks == {
        "answer": {"prompt": " {} answer:", "prefix": "none"}, "caption": {"beams": 2}, "summarize": {}
    }  # fmt: skip
    assert again.image == ImageTransform(96)


def test_a_model_grows_and_keeps_what_it_knows(tmp_path):
    bundle, _ = build(CONFIG, SAMPLES, tmp_path)
    with torch.no_grad():  # else each value would be its start
        for parameter in bundle.module.parameters():
            parameter += 0.01 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(1))
    old = replace(bundle, transform=ImageTransform(64), tasks={"caption": {}})
    save_bundle(tmp_path / "old", old)
    grow = {"encoder_layers": 3, "decoder_layers": 2, "encoder_entangle": True}
    start = TrainConfig((Phase("a"),), init=str(tmp_path / "old"), grow=grow)
    again, config = build(start, [], tmp_path / "new")
    backbone, before = again.module.backbone, load_bundle(str(tmp_path / "old")).module.backbone
    assert config.backbone == backbone.config == replace(before.config, **grow)
    first, _ = tokens = again.tokenizer.bin_start, again.tokenizer.vocab_size
    weights = before.state_dict()
    for name, value in backbone.state_dict().items():
        if name == "embed.weight":  # locations start anew in a model that never learned any
            assert torch.equal(value[:first], weights[name][:first]) and not torch.equal(value, weights[name])
        elif name in weights and name != "encoder.image_positions.weight":
            assert torch.equal(value, weights[name]), name
    # a new layer adds next to nothing at first
    x = torch.randn(2, 5, 32, generator=torch.Generator().manual_seed(2))
    layer = backbone.encoder.layers[2].eval()
    with torch.inference_mode():
        change = layer(x, torch.zeros(1, 2, 5, 5)) - x
    assert change.square().mean().sqrt() == pytest.approx(0.1, abs=0.02)  # the new norm after its attention
    # nearby locations, and nearby patches, are alike
    for table in (backbone.embed.weight[slice(*tokens)], backbone.encoder.image_positions.weight[1:5]):
        near, far = (torch.cosine_similarity(table[0], table[i], dim=0) for i in (1, len(table) - 1))
        assert near > far and near > 0.5
    assert backbone.encoder.image_positions.weight[1:].std().item() == pytest.approx(1, abs=0.1)

    save_bundle(tmp_path / "pointing", replace(old, tasks={"ground": {}}))
    kept = build(replace(start, init=str(tmp_path / "pointing")), [], tmp_path / "kept")[0].module.backbone
    assert torch.equal(kept.embed.weight, weights["embed.weight"])  # its locations were learned


@pytest.mark.parametrize(
    "grow, message",
    [
        ({"encoder_layers": 0}, "grow: encoder_layers=0; give more layers, or encoder_entangle"),
        ({"dim": 512}, "grow: dim=512; give more layers, or encoder_entangle"),
        ({"decoder_layers": "two"}, "grow: decoder_layers='two'; give more layers, or encoder_entangle"),
    ],
)
def test_a_model_grows_by_layers_alone(tmp_path, grow, message):
    with pytest.raises(ArgumentError) as caught:
        build(TrainConfig((Phase("a"),), init="tiny", grow=grow), [], tmp_path)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"init": "nowhere"}, ModelError, "no model 'nowhere'"),
        ({"tower": TowerConfig("no_such_tower")}, ArgumentError, "timm has no model 'no_such_tower'"),
        ({"tower": TowerConfig("test_vit")}, ArgumentError, "makes patches of 64 channels; patch_dim is 256"),
        ({"init": "imagenet", "tower": TowerConfig("test_vit"), "backbone": replace(BACKBONE, patch_dim=64)},
         ModelError, "has no weights for the tower 'test_vit'; use 'random'"),
        ({"backbone": None}, ArgumentError, "the configuration lacks backbone, which init='random' needs"),
        ({"init": "tiny", "tokenizer": "BPE"}, ArgumentError, "tokenizer='BPE' is for names that begin with ofa:"),
        ({"image_size": 64}, ArgumentError, "image_size is for a model to go on from; init='random' starts anew"),
        ({"grow": {"encoder_layers": 2}}, ArgumentError, "grow is for a model to go on from; init='random' starts"),
        ({"tokenizer": "BPE"}, ArgumentError, "tokenizer is for a model to go on from; init='random' starts anew"),
        ({"init": "ofa:nowhere.pt"}, ModelError, "no OFA checkpoint at 'nowhere.pt'"),
        ({"init": "tiny", "image_size": 1024}, ArgumentError,
         "image_size=1024 makes 32 patches a side; the model reads 16: lower it"),
        ({"phases": (Phase("x", stage=8),)}, ArgumentError, "phase 'x': stage=8; the tower has 7 stages"),
    ],
)  # fmt: skip
def test_impossible_starts_are_one_clear_error(tmp_path, changes, kind, message):
    with pytest.raises(kind) as caught:
        build(replace(CONFIG, **changes), SAMPLES, tmp_path)
    assert message in str(caught.value) and str(caught.value).isprintable()
