"""The model and the tokenizer that a training run starts from."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from vlm.convert.imagenet import load_efficientnet_lite2
from vlm.convert.minilm import load_minilm
from vlm.data.shards import Sample
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import Bundle, load_bundle
from vlm.image import ImageTransform
from vlm.models.attention import sinusoids
from vlm.models.layers import Block
from vlm.models.pair import ContrastivePair
from vlm.models.seq2seq import Seq2Seq
from vlm.models.towers import StagedTower
from vlm.models.vision_language import VisionLanguageModel
from vlm.tasks import TASKS
from vlm.tasks.caption import PROMPT
from vlm.tokenizer import Tokenizer, train_tokenizer
from vlm.train.config import TrainConfig
from vlm.train.settings import learner_of


def build(config: TrainConfig, samples: Sequence[Sample], out: Path) -> tuple[Bundle, TrainConfig]:
    """The model to train, with a new pair where the run trains one, and the configuration with everything filled in.

    Raises:
        ModelError: the weights to start from cannot be used.
        ArgumentError: the configuration describes no model.
    """
    with_pair = learner_of(config.phases[0].objective) == "a denoiser"  # which reads the pair's texts
    if with_pair and config.init in ("imagenet", "random"):
        raise ArgumentError(f"a denoiser reads the texts of a model; init={config.init!r} must name one, such as tiny")
    if config.init not in ("imagenet", "random"):
        bundle = load_bundle(config.init, tokenizer=config.tokenizer, with_pair=with_pair)
        if config.image_size is not None:
            bundle = replace(bundle, transform=replace(bundle.transform, size=config.image_size))
            _check_size(bundle.module, bundle.transform)
        known = bundle.tasks
        tasks = {task: {**known.get(task, {}), **config.tasks.get(task, {})} for task in {**known, **config.tasks}}
        model = bundle.module
        if config.grow:
            torch.manual_seed(config.seed)
            model.backbone = grown(model.backbone, config.grow)
            if not any(TASKS[task].output == "locations" for task in known):
                smooth_locations(model.backbone, bundle.tokenizer)
        bundle = replace(bundle, tasks=tasks)
        config = replace(
            config, backbone=model.backbone.config, tower=model.tower_config, image=bundle.transform, tasks=tasks
        )
    elif given := [name for name in ("tokenizer", "image_size", "grow") if getattr(config, name) not in (None, {})]:
        raise ArgumentError(f"{given[0]} is for a model to go on from; init={config.init!r} starts anew: leave it out")
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
        smooth_locations(model.backbone, tokenizer)
        bundle = Bundle(model, tokenizer, config.image, config.tasks or {"caption": {}})
    for phase in config.phases:
        if phase.stage > bundle.module.tower.stages:
            raise ArgumentError(
                f"phase {phase.name!r}: stage={phase.stage}; the tower has {bundle.module.tower.stages} stages"
            )
    return (bundle if config.pair is None else _with_pair(bundle, config)), config


def _with_pair(bundle: Bundle, config: TrainConfig) -> Bundle:
    assert config.pair is not None
    if bundle.module.tower.dim != config.pair.patch_dim:
        raise ArgumentError(
            f"pair: patch_dim={config.pair.patch_dim}; the tower's patches have {bundle.module.tower.dim}"
        )
    torch.manual_seed(config.seed)
    pair = ContrastivePair(config.pair)
    return replace(bundle, pair=pair, pair_tokenizer=load_minilm(pair.text))


def grown(backbone: Seq2Seq, changes: Mapping[str, Any]) -> Seq2Seq:
    """A backbone with other sizes and the weights of a smaller one.

    New layers start as the identity but for a little attention. Positions that are new to the patches start as a smooth
    table, in place of the one that only the attention's biases knew.

    Raises:
        ArgumentError: the changes are not among those that keep the trained weights.
    """
    allowed = ("encoder_layers", "decoder_layers", "encoder_entangle")
    sizes = backbone.config
    for name, value in changes.items():
        more = isinstance(value, int) and value >= getattr(sizes, name, math.inf)
        if name not in allowed or not more:
            raise ArgumentError(f"grow: {name}={value!r}; give more layers, or encoder_entangle")
    found = Seq2Seq(replace(sizes, **changes))
    for layers, count in ((found.encoder.layers, sizes.encoder_layers), (found.decoder.layers, sizes.decoder_layers)):
        for layer in layers[count:]:
            assert isinstance(layer, Block)
            nn.init.zeros_(layer.ffn.fc2.weight)
            for name, weight in layer.named_parameters():
                if name.endswith("attn_out_norm.weight"):
                    nn.init.constant_(weight, 0.1)
    weights = backbone.state_dict()
    if found.config.encoder_entangle and not sizes.encoder_entangle:
        del weights["encoder.image_positions.weight"]
    found.load_state_dict(weights, strict=False)
    return found


def smooth_locations(backbone: Seq2Seq, tokenizer: Tokenizer) -> None:
    """Let the embeddings of nearby locations begin alike, so that one is learned with its neighbours."""
    first, end, dim = tokenizer.bin_start, tokenizer.vocab_size, backbone.config.dim
    table = sinusoids(torch.arange(end - first).float(), dim, 4 * (end - first))
    backbone.embed.weight.data[first:end] = table * (2 / dim) ** 0.5  # of length 1, as new words


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
    """All texts of the shards as the model will read them."""
    yield PROMPT
    for sample in samples:
        for task in TASKS.values():
            yield from task.texts(sample)
