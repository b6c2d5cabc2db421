"""Training runs as data."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vlm import hub
from vlm.hub import bundled
from vlm.models.encoders import TextConfig
from vlm.models.layers import Seq2SeqConfig
from vlm.train import config as module
from vlm.train.config import Phase, TrainConfig, from_json

SHIPPED = sorted((Path(module.__file__).parent / "configs").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_are_complete(file):
    config = from_json(json.loads(file.read_text()))
    assert config.phases
    if config.init.startswith("ofa:"):
        assert hub.is_hub_id(config.init.removeprefix("ofa:")) and config.backbone is None and config.pair is None
        assert config.image_size and -(-config.image_size // 16) <= Seq2SeqConfig(0).image_bucket_size
        assert all(phase.stage == 0 and phase.freeze_embeddings for phase in config.phases)  # by the recipes
        return
    assert all(0 <= phase.stage <= 9 for phase in config.phases)  # tf_efficientnet_lite2 has nine stages
    if config.backbone is None:
        assert config.init in bundled() and config.pair is not None
        assert config.pair.text == TextConfig()  # that of the weights it starts from
        return
    assert config.backbone.vocab_size == 0 and config.init == "imagenet"
    largest = -(-config.image.size // 32)
    assert config.backbone.image_bucket_size >= largest and config.backbone.max_target_positions > config.max_tokens


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_configuration_survives_json(file):
    config = from_json(json.loads(file.read_text()))
    assert from_json(json.loads(json.dumps(asdict(config)))) == config


def test_missing_parts_have_their_defaults():
    config = from_json({"backbone": {"vocab_size": 0}, "phases": [{"name": "a"}]})
    assert config == TrainConfig((Phase("a"),), config.backbone)
    assert (config.tower.name, config.image.size, config.precision) == ("tf_efficientnet_lite2", 260, "auto")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"views": 2}, "phase 'x': views=2 keeps features of no stage; set stage"),
        ({"objective": "self_critical", "captions": 1}, "captions must be at least 2"),
        ({"objective": "scst"}, "objective='scst' is unknown; choose cross_entropy, self_critical, contrastive"),
        ({"epochs": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"chunks": 0}, "must be at least 1"),
        ({"objective": "contrastive", "neighbours": 1, "text_lr": 1e-4}, "neighbours are found by a frozen text tower"),
        ({"batch_size": 8, "chunks": 3}, "phase 'x': batch_size=8 is no multiple of chunks=3"),
        ({"objective": "sigmoid", "batch_size": 1}, "sigmoid compares photos; batch_size must be at least 2"),
        ({"captions": -1}, "must be at least 1"),
        ({"task": "ground"}, "phase 'x': task='ground' is unknown; choose caption, answer"),
        ({"schedule": "step"}, "phase 'x': schedule='step' is unknown; choose cosine, linear"),
        (
            {"task": "answer", "objective": "self_critical"},
            "answers are learned by cross_entropy, not by self_critical",
        ),
        ({"closed_answers": True}, "weighted_answers and closed_answers need task='answer'"),
        ({"weighted_answers": True}, "weighted_answers and closed_answers need task='answer'"),
        ({"drop_worst": 1}, "drop_worst=1 is no share; give 0 to below 1"),
        ({"drop_path": -0.1}, "drop_path=-0.1 is no share"),
    ],
)
def test_impossible_phases_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Phase("x", **fields)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"precision": "fp8"}, ValueError, "precision='fp8' is unknown; choose auto, no, bf16, fp16"),
        ({"no_such_field": 1}, TypeError, "no_such_field"),
        ({"backbone": {"vocab_size": 0, "no_such_field": 1}}, TypeError, "no_such_field"),
        ({"phases": [{"epochs": 1}]}, TypeError, "name"),
        ({"phases": []}, ValueError, "phases is empty; give at least one"),
        ({"tasks": {"sing": {}}}, ValueError, "tasks: 'sing' is unknown; choose caption, answer, ground"),
        ({"tasks": {"answer": "source"}}, ValueError, "tasks: answer='source' is no object with a prompt and options"),
        ({"phases": [{"name": "a", "objective": "contrastive"}]}, ValueError, "train a pair; give its sizes as pair"),
        (
            {"phases": [{"name": "a"}, {"name": "b", "objective": "sigmoid"}], "pair": {"patch_dim": 8}},
            ValueError,
            "phases of captions and of a pair are two runs",
        ),
    ],
)
def test_unknown_and_impossible_fields_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        from_json({"backbone": {"vocab_size": 0}, "phases": [{"name": "a"}], **changes})


@pytest.mark.parametrize("name, images, words", [("ofa_caption", (24, 64), 20), ("ofa_vqa", (96,), 30)])
def test_recipes_of_ofa(name, images, words):
    """What the published scripts for the base size set; a row of theirs is a sentence, of ours a photo with five."""
    config = from_json(json.loads((SHIPPED[0].parent / f"{name}.json").read_text()))
    assert config.image_size == 480 and config.max_tokens >= words
    assert tuple(phase.batch_size for phase in config.phases) == images
    for phase in config.phases:
        assert (phase.schedule, phase.beta2, phase.weight_decay, phase.clip_norm) == ("linear", 0.999, 0.01, 1.0)
        assert phase.tower_lr == phase.lr and phase.captions == 5 and phase.final_lr == 0
        smoothed = phase.objective == "cross_entropy"
        assert (phase.dropout, phase.drop_path) == ((0.1, 0.1) if smoothed else (0.0, 0.0))
    first = config.phases[0]
    expected = {"ofa_caption": (1e-5, 5, 0.06, 0.2, 0.0), "ofa_vqa": (5e-5, 15, 0.04, 0.0, 0.9999)}[name]
    assert (first.lr, first.epochs, first.warmup, first.drop_worst, first.ema) == expected
    assert first.closed_answers == first.weighted_answers == (name == "ofa_vqa")
