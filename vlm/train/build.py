"""The model and the tokenizer that a training run starts from."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from vlm import hub, prompt
from vlm.convert.imagenet import load_efficientnet_lite2
from vlm.convert.ofa import load_ofa
from vlm.data.shards import Sample
from vlm.errors import ArgumentError, ModelError
from vlm.image import ImageTransform
from vlm.models.towers import StagedTower
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer, train_tokenizer
from vlm.train.config import TrainConfig


def build(
    config: TrainConfig, samples: Sequence[Sample], out: Path
) -> tuple[VisionLanguageModel, Tokenizer, TrainConfig]:
    """The model to train, its tokenizer, and the configuration with everything filled in.

    Raises:
        ModelError: the weights to start from cannot be used.
        ArgumentError: the configuration describes no model.
    """
    if config.init not in ("imagenet", "random"):
        model, tokenizer, image, known = _start(config)
        if config.image_size is not None:
            image = replace(image, size=config.image_size)
            _check_size(model, image)
        tasks = {task: {**known.get(task, {}), **config.tasks.get(task, {})} for task in {**known, **config.tasks}}
        config = replace(config, backbone=model.backbone.config, tower=model.tower_config, image=image, tasks=tasks)
    elif given := next((name for name in ("tokenizer", "image_size") if getattr(config, name) is not None), None):
        raise ArgumentError(f"{given} is for a model to go on from; init={config.init!r} starts anew: leave it out")
    elif config.backbone is None:
        raise ArgumentError(f"the configuration lacks backbone, which init={config.init!r} needs; give its sizes")
    else:
        tokenizer = _tokenizer(config, samples, out / "tokenizer.json")
        backbone = replace(config.backbone, vocab_size=tokenizer.vocab_size)
        config = replace(config, backbone=backbone)
        torch.manual_seed(config.seed)
        try:
            model = VisionLanguageModel(config.tower, backbone)
        except ValueError as error:
            raise ArgumentError(f"the configuration describes no model: {error}") from None
        if config.init == "imagenet":
            if not isinstance(model.tower, StagedTower):
                raise ModelError(f"init 'imagenet' has no weights for the tower {config.tower.name!r}; use 'random'")
            load_efficientnet_lite2(model.tower)
    for phase in config.phases:
        if phase.stage > model.tower.stages:
            raise ArgumentError(f"phase {phase.name!r}: stage={phase.stage}; the tower has {model.tower.stages} stages")
    return model, tokenizer, config


def _start(config: TrainConfig) -> tuple[VisionLanguageModel, Tokenizer, ImageTransform, dict[str, dict[str, Any]]]:
    """The model to go on from, its tokenizer, its transform, and what it was trained for."""
    if config.init.startswith("ofa:"):
        return load_ofa(config.init.removeprefix("ofa:"), tokenizer=config.tokenizer)
    if config.tokenizer is not None:
        raise ArgumentError(
            f"tokenizer={config.tokenizer!r} is for an init that begins with ofa:; {config.init!r} has its own"
        )
    folder = hub.resolve(config.init)
    return *hub.load_model(folder), hub.task_settings(folder)


@torch.inference_mode()
def _check_size(model: VisionLanguageModel, image: ImageTransform) -> None:
    side = model.tower(torch.zeros(1, 3, image.size, image.size)).shape[1]
    if side > (limit := model.backbone.config.image_bucket_size):
        raise ArgumentError(f"image_size={image.size} makes {side} patches a side; the model reads {limit}: lower it")


def _tokenizer(config: TrainConfig, samples: Sequence[Sample], file: Path) -> Tokenizer:
    """The tokenizer of an earlier start of this run, or a new one."""
    if not file.exists():
        file.parent.mkdir(parents=True, exist_ok=True)
        train_tokenizer(_texts(samples), config.text_tokens, 0, config.location_tokens).save(file)
    return Tokenizer.load(file, 0, config.location_tokens)


def _texts(samples: Sequence[Sample]) -> Iterator[str]:
    """All texts of the shards as the model will read them: captions cleaned, questions as they are."""
    yield prompt.CAPTION
    for sample in samples:
        for caption in sample.captions:
            yield " " + prompt.clean_caption(caption)
        yield from (" " + text for name in ("zh", "de") for text in sample.fields.get(name, ()))
        for item in sample.fields.get("vqa", ()):
            yield from (" " + str(text) for text in (item["question"], *item["answers"]))
