"""The settings of objectives: what a phase of training minimises, and how."""

import math
from dataclasses import dataclass
from typing import Any


def check_shares(group: str, settings: Any, *names: str) -> None:
    for name in names:
        value = getattr(settings, name)
        if not is_number(value) or not 0 <= value < 1:
            where = f"{group}: " if group else ""
            raise ValueError(f"{where}{name}={value!r} is not a share; give 0 to below 1")


def is_number(value: Any) -> bool:
    return isinstance(value, (int, float))


@dataclass(frozen=True)
class CrossEntropy:
    """The backbone learns the next token of each answer."""

    label_smoothing: float = 0.1
    """Probability that is spread over the other tokens."""
    location_spread: float = 0.02
    """Standard deviation of the targets of boxes, as a share of the photo's side: nearby locations are nearly right. 0
    turns this off."""
    box_attention: float = 0.0
    """Weight of a second loss that draws the decoder's attention into the boxes that it shall write."""
    hidden_tokens: float = 0.0
    """Share of the decoder's input tokens that a step replaces by the unknown token."""
    drop_worst: float = 0.0
    """Share of a batch's tokens to ignore: those with the largest loss."""
    drop_worst_after: float = 0.0
    """Share of the phase's steps after which `drop_worst` starts."""
    weighted_answers: bool = False
    """Learn the most common answer to each question, weighted by the share of people who gave it; otherwise draw one of
    the answers."""
    closed_answers: bool = False
    """Normalise over the answers of the training questions only, token by token; they are saved as `answers.txt`."""

    def __post_init__(self):
        check_shares(
            "cross_entropy",
            self,
            "label_smoothing",
            "location_spread",
            "hidden_tokens",
            "drop_worst",
            "drop_worst_after",
        )
        if not is_number(self.box_attention) or not 0 <= self.box_attention < math.inf:
            raise ValueError(f"cross_entropy: box_attention={self.box_attention!r}; give 0 or more")


@dataclass(frozen=True)
class SelfCritical:
    """The backbone's own sentences compete for a reward; `texts_per_photo` of them are found by beam search.

    Tasks of the mix that have no reward are learned by cross entropy, so that they are not forgotten.
    """

    no_repeat_ngram: int = 0
    """Replaces the task's own setting. 0 allows repetitions, which the reward then teaches the model to avoid."""


@dataclass(frozen=True)
class Contrastive:
    """The pair of encoders learns which sentence belongs to which photo, by CLIP's softmax over the batch."""

    text_lr: float = 0.0
    """Peak learning rate of the pair's text tower; 0 freezes it, so that its features are computed only once."""
    neighbours: int = 0
    """Hard negatives: for each photo, how many photos with similar captions join the same batch. The frozen text tower
    measures the similarity."""

    def __post_init__(self):
        if self.neighbours and self.text_lr:
            raise ValueError("neighbours are found by a frozen text tower; set text_lr to 0")


@dataclass(frozen=True)
class Sigmoid(Contrastive):
    """As contrastive, with SigLIP's loss, which judges each pair of photo and sentence by itself."""


@dataclass(frozen=True)
class Diffusion:
    """The denoiser learns to tell a picture from its noise, given a text; see `vlm.diffusion.flow`.

    A step reads one text of each photo, whatever `texts_per_photo` is.
    """

    size: int = 64
    """Side of the pictures, in pixels; phases may grow it. The base's own transform does not matter here."""
    long_texts: float = 0.5
    """Share of the steps' texts that are all captions of a photo joined; the others are single captions."""
    no_text: float = 0.1
    """Share of the texts that are dropped, for classifier-free guidance."""
    photo_vectors: float = 0.0
    """Share of the texts whose vector is replaced by that of the photo, in the space of the pair; half of these lose
    their token states too. The denoiser then draws variations of photos, and a prior is saved beside it."""
    noise_mean: float = 0.4
    """Mean of the logits of the shares of noise to learn from."""
    noise_std: float = 1.0
    """Standard deviation of these logits."""
    align: float = 0.0
    """Weight of the alignment of an inner layer with the tower's patch features (REPA); 0 turns this off."""
    align_layer: int = 3
    """The layer that is aligned, 1 for the first."""
    align_until: float = 0.67
    """Share of the phase's steps after which the alignment stops."""

    def __post_init__(self):
        check_shares("diffusion", self, "no_text", "photo_vectors")
        if self.no_text + self.photo_vectors >= 1:
            raise ValueError(
                f"diffusion: no_text={self.no_text} and photo_vectors={self.photo_vectors} leave no texts to learn "
                "from; lower one"
            )
        for name in ("long_texts", "align_until"):
            value = getattr(self, name)
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"diffusion: {name}={value!r} is not a share; give 0 to 1")
        if not isinstance(self.size, int) or self.size < 1:
            raise ValueError(f"diffusion: size={self.size!r} is not a number of pixels; give 1 or more")
        if not is_number(self.noise_std) or self.noise_std <= 0:
            raise ValueError(f"diffusion: noise_std={self.noise_std!r} must be above 0")
        if not is_number(self.align) or self.align < 0:
            raise ValueError(f"diffusion: align={self.align!r} must be 0 or more")
        if not isinstance(self.align_layer, int) or self.align_layer < 1:
            raise ValueError(
                f"diffusion: align_layer={self.align_layer!r} is not a layer; give 1 for the first, or more"
            )


Objective = CrossEntropy | SelfCritical | Contrastive | Sigmoid | Diffusion
OBJECTIVES: dict[str, type[Objective]] = {
    "cross_entropy": CrossEntropy,
    "self_critical": SelfCritical,
    "contrastive": Contrastive,
    "sigmoid": Sigmoid,
    "diffusion": Diffusion,
}


def learner_of(objective: Objective) -> str:
    """What an objective trains: the backbone, a pair or a denoiser."""
    if isinstance(objective, Diffusion):
        return "a denoiser"
    return "a pair" if isinstance(objective, Contrastive) else "the backbone"
