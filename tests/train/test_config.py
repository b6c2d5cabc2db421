"""Training runs as data."""

import dataclasses
import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from vlm.files import hub
from vlm.files.hub import bundled
from vlm.models.config import Seq2SeqConfig, TextConfig
from vlm.train import config as module
from vlm.train.config import Phase, TrainConfig, from_json, to_json
from vlm.train.settings import OBJECTIVES, Contrastive, CrossEntropy, SelfCritical, Sigmoid

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
        assert config.init in bundled()
        pairs = {isinstance(phase.objective, Contrastive) for phase in config.phases}
        assert pairs == {config.pair is not None}  # a pair on its tower, or more tasks for its backbone
        assert config.pair is None or config.pair.text == TextConfig()  # that of the weights it starts from
        return
    assert config.backbone.vocab_size == 0 and config.init == "imagenet"
    largest = -(-config.image.size // 32)
    assert config.backbone.image_bucket_size >= largest and config.backbone.max_target_positions > config.max_tokens


def test_the_configurations_of_the_documentation_can_be_read():
    text = (Path(__file__).parents[2] / "docs" / "training.md").read_text()
    found = [json.loads(block) for block in re.findall(r"```json\n(.*?)```", text, re.DOTALL)]
    read = [from_json(block) for block in found if "phases" in block]
    assert read and all(config.phases for config in read)


@pytest.mark.parametrize("file", SHIPPED, ids=lambda file: file.stem)
def test_a_configuration_survives_json(file):
    config = from_json(json.loads(file.read_text()))
    assert from_json(json.loads(json.dumps(to_json(config)))) == config


SETTINGS: dict[str, dict[str, Any]] = {
    "cross_entropy": {"label_smoothing": 0.2, "location_spread": 0.1, "box_attention": 2.0, "hidden_tokens": 0.1,
                      "drop_worst": 0.3, "drop_worst_after": 0.4, "weighted_answers": True, "closed_answers": True},
    "self_critical": {"no_repeat_ngram": 3},
    "contrastive": {"text_lr": 0.0, "neighbours": 2},
    "sigmoid": {"text_lr": 1e-4, "neighbours": 0},
    "diffusion": {"size": 32, "long_texts": 0.3, "no_text": 0.2, "photo_vectors": 0.1, "noise_mean": 0.0,
                  "noise_std": 0.8, "align": 0.5, "align_layer": 2, "align_until": 1.0},
}  # fmt: skip


@pytest.mark.parametrize("settings", ["defaults", "all"])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_every_objective_survives_json(name, settings):
    kind, given = OBJECTIVES[name], SETTINGS[name] if settings == "all" else {}
    pair = {"pair": {"patch_dim": 8}} if issubclass(kind, Contrastive) else {}
    task = "answer" if name == "cross_entropy" else "caption"
    config = from_json({"phases": [{"name": "a", "mix": {task: 0.5}, name: given}], **pair})
    assert SETTINGS[name].keys() == {field.name for field in dataclasses.fields(kind)}
    assert config.phases[0].objective == kind(**given) and type(config.phases[0].objective) is kind
    written = to_json(config)
    assert written["phases"][0][name] == {**vars(kind()), **given}
    assert [other for other in OBJECTIVES if other in written["phases"][0]] == [name]
    assert from_json(json.loads(json.dumps(written))) == config


@pytest.mark.parametrize("one, other", list(combinations(OBJECTIVES, 2)))
def test_two_objectives_in_one_phase_are_refused(one, other):
    with pytest.raises(ValueError, match=f"^phase 'a': {one} and {other} exclude each other; give one$"):
        from_json({"phases": [{"name": "a", one: {}, other: {}}]})


@pytest.mark.parametrize(
    "phase, kind, message",
    [
        ({"cross_entropy": {}, "self_critical": {}, "sigmoid": {}}, ValueError,
         "phase 'a': cross_entropy and self_critical and sigmoid exclude each other; give one"),
        ({"cross_entropy": {"beams": 3}}, TypeError, "phase 'a': cross_entropy has no field 'beams'; it has: box_atte"),
        ({"self_critical": {"label_smoothing": 0.1}}, TypeError,
         "phase 'a': self_critical has no field 'label_smoothing'; it has: no_repeat_ngram"),
        ({"sigmoid": {"lr": 0.1}}, TypeError, "phase 'a': sigmoid has no field 'lr'; it has: neighbours, text_lr"),
        ({"cross_entropi": {}}, TypeError, "phase 'a' has no field 'cross_entropi'; it has: .*cross_entropy, "),
        ({"objective": "self_critical"}, TypeError, "phase 'a' has no field 'objective'; it has: .*self_critical, "),
        ({"objective": {"label_smoothing": 0.2}}, TypeError, "phase 'a' has no field 'objective'; it has: "),
        ({"label_smoothing": 0.2}, TypeError, "phase 'a' has no field 'label_smoothing'; it has: "),
        ({"cross_entropy": None}, TypeError, "phase 'a': cross_entropy=None must be an object of settings"),
        ({"contrastive": {"neighbours": 1, "text_lr": 1e-4}}, ValueError,
         "phase 'a': neighbours are found by a frozen text tower; set text_lr to 0"),
        ({"cross_entropy": {"drop_worst": 1}}, ValueError,
         "phase 'a': cross_entropy: drop_worst=1 is not a share; give 0 to below 1"),
        ({"cross_entropy": {"box_attention": -1}}, ValueError,
         "phase 'a': cross_entropy: box_attention=-1; give 0 or more"),
        ({"cross_entropy": {"hidden_tokens": -1}}, ValueError, "phase 'a': cross_entropy: hidden_tokens=-1 is not a "),
        ({"cross_entropy": {"label_smoothing": "high"}}, ValueError,
         "phase 'a': cross_entropy: label_smoothing='high' is not a share"),
    ],
)  # fmt: skip
def test_impossible_objectives_are_refused(phase, kind, message):
    with pytest.raises(kind, match=f"^{message}") as caught:
        from_json({"phases": [{"name": "a", **phase}]})
    assert str(caught.value).isprintable()


def test_closed_answers_are_for_the_tasks_of_a_mix_that_have_answers():
    objective = CrossEntropy(closed_answers=True, weighted_answers=True)
    assert Phase("x", {"caption": 1.0, "answer": 0.5}, objective=objective).objective == objective


def test_missing_parts_have_their_defaults():
    config = from_json({"backbone": {"vocab_size": 0}, "phases": [{"name": "a"}]})
    assert config == TrainConfig((Phase("a"),), config.backbone)
    assert (config.tower.name, config.image.size, config.precision) == ("tf_efficientnet_lite2", 260, "auto")


@pytest.mark.parametrize(
    "fields, message",
    [
        ({"views": 2}, "phase 'x': views=2 keeps features of no stage; set stage"),
        ({"objective": SelfCritical(), "texts_per_photo": 1}, "texts_per_photo must be at least 2"),
        ({"epochs": 0}, "must be at least 1"),
        ({"batch_size": 0}, "must be at least 1"),
        ({"chunks": 0}, "must be at least 1"),
        ({"batch_size": 8, "chunks": 3}, "phase 'x': batch_size=8 is not a multiple of chunks=3"),
        ({"objective": Contrastive(), "batch_size": 1}, "contrastive objective compares photos; batch_size must be at"),
        (
            {"objective": Sigmoid(), "batch_size": 1},
            "contrastive objective compares photos; batch_size must be at least",
        ),
        (
            {"objective": Contrastive(), "mix": {"answer": 1.0}},
            "phase 'x': a contrastive objective learns from captions alone; mix=",
        ),
        (
            {"objective": Sigmoid(), "mix": {"caption": 1.0, "answer": 1.0}},
            "learns from captions alone; mix=.*answer",
        ),
        ({"texts_per_photo": -1}, "must be at least 1"),
        ({"mix": {"sing": 1.0}}, "phase 'x': task 'sing' is unknown; this version knows answer, caption"),
        ({"mix": {}}, "phase 'x': mix={} must hold tasks with weights above 0"),
        ({"mix": {"caption": 0.0}}, "must hold tasks with weights above 0"),
        ({"mix": {"caption": 1.0, "answer": -0.5}}, "must hold tasks with weights above 0"),
        ({"mix": {"caption": float("nan")}}, "must hold tasks with weights above 0"),
        ({"mix": {"caption": float("inf")}}, "must hold tasks with weights above 0"),
        ({"mix": {"caption": "1"}}, "must hold tasks with weights above 0"),
        ({"mix": ["caption"]}, "phase 'x': mix=.'caption'. must hold tasks with weights above 0"),
        ({"schedule": "step"}, "phase 'x': schedule='step' is unknown; choose cosine, linear"),
        (
            {"mix": {"answer": 1.0, "ground": 1.0}, "objective": SelfCritical()},
            "phase 'x': self_critical needs a task with a reward in mix, such as caption",
        ),
        (
            {"objective": CrossEntropy(closed_answers=True)},
            "closed_answers need a task with answers in mix, such as answ",
        ),
        (
            {"objective": CrossEntropy(weighted_answers=True)},
            "phase 'x': weighted_answers and closed_answers need a task",
        ),
        ({"drop_path": -0.1}, "drop_path=-0.1 is not a share"),
        ({"epochs": "5"}, "phase 'x': "),
        ({"epochs": True}, "epochs=True is not a whole number"),
        ({"ema": 2.0}, "ema=2.0 is not a share"),
        ({"ema": float("nan")}, "ema=nan is not a share"),
        ({"warmup": 5.0}, "warmup=5.0 is not a share"),
        ({"lr": float("nan")}, "lr=nan is not a number from 0 on"),
        ({"lr": -1.0}, "lr=-1.0 is not a number from 0 on"),
        ({"tower_lr": float("inf")}, "tower_lr=inf is not a number from 0 on"),
        ({"weight_decay": -1.0}, "weight_decay=-1.0 is not a number from 0 on"),
        ({"clip_norm": "1"}, "clip_norm='1' is not a number from 0 on"),
        ({"stage": -1}, "must be 0 or more"),
        ({"stage": 2, "views": -1}, "must be 0 or more"),
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
        ({"tasks": {"sing": {}}}, ValueError, "tasks: task 'sing' is unknown; this version knows answer, caption"),
        ({"tasks": {"answer": "source"}}, ValueError, "tasks: answer='source' must be an object of settings"),
        ({"phases": [{"name": "a", "contrastive": {}}]}, ValueError, "train a pair; give its sizes as pair"),
        (
            {"phases": [{"name": "a"}, {"name": "b", "sigmoid": {}}], "pair": {"patch_dim": 8}},
            ValueError,
            "phases of the backbone and of a pair are two runs",
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
        assert phase.tower_lr == phase.lr and phase.texts_per_photo == 5 and phase.final_lr == 0
        smoothed = isinstance(phase.objective, CrossEntropy)
        assert (phase.dropout, phase.drop_path) == ((0.1, 0.1) if smoothed else (0.0, 0.0))
    first = config.phases[0]
    assert isinstance(first.objective, CrossEntropy)
    expected = {"ofa_caption": (1e-5, 5, 0.06, 0.2, 0.0), "ofa_vqa": (5e-5, 15, 0.04, 0.0, 0.9999)}[name]
    assert (first.lr, first.epochs, first.warmup, first.objective.drop_worst, first.ema) == expected
    assert first.objective.closed_answers == first.objective.weighted_answers == (name == "ofa_vqa")


@pytest.mark.parametrize("settings", [{"min_area": float("nan")}, {"flip": 7}, {"jitter": -3}, {"flip": "often"}])
def test_impossible_augmentations_are_refused(settings):
    with pytest.raises(ValueError, match=f"augmentation: {next(iter(settings))}=.* is not a share"):
        from_json({"phases": [{"name": "a"}], "augmentation": settings})
