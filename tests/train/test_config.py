"""Training runs as data."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from vlm.train import config as module
from vlm.train.config import Phase, TrainConfig, from_json

SHIPPED = sorted((Path(module.__file__).parent / "configs").glob("*.json"))


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_shipped_configurations_are_complete(file):
    config = from_json(json.loads(file.read_text()))
    assert config.backbone.vocab_size == 0 and config.phases and config.init == "imagenet"
    assert all(0 <= phase.stage <= 9 for phase in config.phases)  # tf_efficientnet_lite2 has nine stages
    largest = -(-config.image.size // 32)
    assert config.backbone.image_bucket_size >= largest and config.backbone.max_target_positions > config.max_tokens


def test_a_configuration_survives_json():
    config = from_json(json.loads(SHIPPED[0].read_text()))
    assert from_json(json.loads(json.dumps(asdict(config)))) == config


def test_missing_parts_have_their_defaults():
    config = from_json({"backbone": {"vocab_size": 0}, "phases": [{"name": "a"}]})
    assert config == TrainConfig(config.backbone, (Phase("a"),))
    assert (config.tower.name, config.image.size, config.precision) == ("tf_efficientnet_lite2", 260, "bf16")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"views": 2}, "phase 'x': views=2 keeps features of no stage; set stage"),
        ({"objective": "self_critical", "captions": 1}, "captions must be at least 2"),
        ({"objective": "scst"}, "objective='scst' is unknown; choose cross_entropy, self_critical"),
        ({"epochs": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"captions": -1}, "must be at least 1"),
    ],
)
def test_impossible_phases_are_refused(fields, message):
    with pytest.raises(ValueError, match=message):
        Phase("x", **fields)


@pytest.mark.parametrize(
    "changes, kind, message",
    [
        ({"precision": "fp8"}, ValueError, "precision='fp8' is unknown; choose no, bf16, fp16"),
        ({"no_such_field": 1}, TypeError, "no_such_field"),
        ({"backbone": {"vocab_size": 0, "no_such_field": 1}}, TypeError, "no_such_field"),
        ({"phases": [{"epochs": 1}]}, TypeError, "name"),
    ],
)
def test_unknown_and_impossible_fields_are_refused(changes, kind, message):
    with pytest.raises(kind, match=message):
        from_json({"backbone": {"vocab_size": 0}, "phases": [{"name": "a"}], **changes})
