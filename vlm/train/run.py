"""A whole training run: configuration, shards, model and trainer put together."""

import json
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from vlm import tasks as known_tasks
from vlm.data.annotations import join_annotations
from vlm.data.scenes import scene_samples
from vlm.data.shards import Sample, find_shards, read_samples
from vlm.errors import ArgumentError, DataError
from vlm.files.lock import locked
from vlm.train.build import build
from vlm.train.config import TrainConfig, from_json
from vlm.train.loop import Trainer
from vlm.train.memory import keep_freed_memory
from vlm.train.pair import PairTrainer
from vlm.train.plan import split_samples, used_samples
from vlm.train.seq2seq import Reward, Seq2SeqTrainer
from vlm.train.settings import Diffusion, SelfCritical

VAL_SCENES = 100  # scenes that validate where scenes are learned
CONFIGS = Path(__file__).parent / "configs"


@dataclass(frozen=True)
class Measures:
    """What judges a run, given from outside: nothing here knows a metric.

    Attributes:
        metrics: by name, as tasks name them: predictions and what people said, by key, to figures. `retrieval` takes
            image features, text features and the image of each text.
        rewards: by name: all training photos' captions to a function from the number of a photo and sentences to a
            reward each.
    """

    metrics: Mapping[str, Any] = field(default_factory=dict)
    rewards: Mapping[str, Any] = field(default_factory=dict)


def read_config(name: str | Path) -> TrainConfig:
    """A configuration by file or by the name of one that ships.

    Raises:
        ArgumentError: there is none, or it has unknown or impossible fields.
    """
    file = Path(name) if Path(name).is_file() else CONFIGS / f"{name}.json"
    if not file.is_file():
        known = ", ".join(sorted(path.stem for path in CONFIGS.glob("*.json")))
        raise ArgumentError(f"no configuration {str(name)!r}; give a JSON file or one of: {known}")
    try:
        return from_json(json.loads(file.read_text(encoding="utf-8")))
    except (TypeError, ValueError, KeyError, AttributeError, ArithmeticError) as error:
        reason = f"lacks {error}" if isinstance(error, KeyError) else f"is not a training configuration: {error}"
        raise ArgumentError(f"{str(file)!r} {reason}") from None


def train(
    config: TrainConfig,
    data: str | Path | Sequence[str | Path],
    out: str | Path,
    measures: Measures | None = None,
    checkpoint_minutes: float = 5.0,
    annotations: Sequence[str | Path] = (),
) -> None:
    """Build the model and go through the phases; a run that was stopped goes on from its checkpoint.

    Args:
        config: the run.
        data: folder of `.tar` shards, or several.
        out: folder for checkpoints, logs and finished models; the configuration with every field filled in is written
            there as `config.resolved.json`.
        measures: what judges the run.
        checkpoint_minutes: time between checkpoints.
        annotations: files beside the shards, see `vlm.data.annotations`.

    Raises:
        VLMError: the configuration, the shards or the checkpoint cannot be used.
    """
    keep_freed_memory()
    out = Path(out)
    folders = [data] if isinstance(data, (str, Path)) else list(data)
    shards = [shard for folder in folders for shard in find_shards(folder)]
    samples: Sequence[Sample] = used_samples(join_annotations(read_samples(shards), annotations))
    if config.scenes:
        size = config.image.size
        samples = [*samples, *scene_samples("train", config.scenes, size), *scene_samples("val", VAL_SCENES, size)]
    names = sorted({task for phase in config.phases for task in phase.mix}, reverse=True)
    for name in names:
        samples = known_tasks.TASKS[name].annotate(samples)
    train_samples, val_samples = split_samples(samples, config.val_every, names)
    if not train_samples:
        raise DataError(
            f"no photo to train on with anything for {' or '.join(names)} among the {len(samples)} of "
            f"{', '.join(map(str, folders))!r}; see docs/training.md for the fields, such as captions"
        )
    main = os.environ.get("RANK", "0") == "0"  # set by accelerate launch and torchrun
    with locked(out) if main else nullcontext():
        make_trainer(config, samples, train_samples, val_samples, out, measures or Measures(), checkpoint_minutes).run()


def make_trainer(
    config: TrainConfig,
    samples: Sequence[Sample],
    train_samples: Sequence[Sample],
    val_samples: Sequence[Sample],
    out: Path,
    measures: Measures,
    checkpoint_minutes: float,
) -> Trainer:
    """The trainer of a configuration; arguments as in `train`, `samples` are those that a tokenizer learns from."""
    bundle, config = build(config, samples, out)
    if isinstance(config.phases[0].objective, Diffusion):
        from vlm.train.diffusion import DiffusionTrainer  # it needs diffusers, an extra

        return DiffusionTrainer(config, bundle, train_samples, val_samples, out, checkpoint_minutes)
    if config.pair is not None:
        metric = measures.metrics.get("retrieval")
        return PairTrainer(config, bundle, train_samples, val_samples, out, metric, checkpoint_minutes)
    rewards: dict[str, Reward] = {}
    if any(isinstance(phase.objective, SelfCritical) for phase in config.phases):
        captions = {photo: sample.captions for photo, sample in enumerate(train_samples) if sample.captions}
        rewards = {name: rewards_of(make, captions) for name, make in measures.rewards.items()}
    return Seq2SeqTrainer(
        config, bundle, train_samples, val_samples, out, rewards, measures.metrics, checkpoint_minutes
    )


def rewards_of(make: Callable[[Sequence[Sequence[str]]], Reward], captions: Mapping[int, Sequence[str]]) -> Reward:
    """A reward whose photos are numbers of training photos, of which only some have captions."""
    reward, rows = make(list(captions.values())), {photo: row for row, photo in enumerate(captions)}
    return lambda photo, sentences: reward(rows[photo], sentences)
