"""Training of the contrastive pair: photos and their sentences as neighbours in one space."""

import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from tqdm import tqdm

from vlm.data.augment import View
from vlm.data.shards import Sample
from vlm.files.bundle import Bundle, save_bundle
from vlm.models.pair import PAD, ContrastivePair
from vlm.models.vision_language import VisionLanguageModel
from vlm.predictor import pad
from vlm.tasks.base import choose
from vlm.train.config import Phase, TrainConfig
from vlm.train.contrastive import cached_backward, gather
from vlm.train.loop import Trainer
from vlm.train.objectives import sigmoid_loss, softmax_loss
from vlm.train.plan import Figures, Step
from vlm.train.settings import Contrastive, Sigmoid

# image features, text features, each text's image -> named figures
Metric = Callable[[NDArray[np.float32], NDArray[np.float32], NDArray[np.int64]], dict[str, float]]


class _Networks(nn.Module):
    """The pair with the tower it reads."""

    def __init__(self, model: VisionLanguageModel, pair: ContrastivePair):
        super().__init__()
        self.tower, self.pair = model.tower, pair

    def forward(self, images: Tensor, stage: int, texts: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Image features, text features, the factor on their cosines and the bias.

        Args:
            images: `float32[photos, channels, height, width]`, past the tower's first `stage` stages.
            stage: how many stages that is.
            texts: ids, `int64[sentences, words]`, or vectors of the frozen text tower, `float32[sentences, dim]`.
        """
        text = self.pair.project_text(texts if texts.is_floating_point() else self._text(texts))
        image = self.pair.encode_patches(self.tower.head(images, stage))
        return image, text, self.pair.logit_scale.exp(), self.pair.logit_bias

    def _text(self, ids: Tensor, rows: int = 64) -> Tensor:
        """The text tower's vectors; sentences of like length go together, as most of a batch would be padding."""
        lengths = (ids != PAD).sum(1)
        order = lengths.argsort()
        parts = [self.pair.text(ids[part, : int(lengths[part].max())]) for part in order.split(rows)]
        return torch.cat(parts)[order.argsort()]


class PairTrainer(Trainer):
    """Trains the contrastive pair of a model, and its tower where a phase says so.

    Args:
        config: the run.
        bundle: the model whose tower the pair reads; its backbone stays as it is. Its pair is trained in place.
        train: photos to learn from.
        val: photos to validate on.
        out: folder for checkpoint, features, logs and finished models.
        metric: figures of features, for validation; None: there is none.
        checkpoint_minutes: time between checkpoints.
    """

    def __init__(
        self,
        config: TrainConfig,
        bundle: Bundle,
        train: Sequence[Sample],
        val: Sequence[Sample],
        out: Path,
        metric: Metric | None = None,
        checkpoint_minutes: float = 5.0,
    ):
        assert bundle.pair is not None and bundle.pair_tokenizer is not None
        model, pair = bundle.module, bundle.pair
        super().__init__(config, _Networks(model, pair), model.tower, train, val, out, checkpoint_minutes)
        self.bundle, self.pair, self.text_tokenizer, self.metric = bundle, pair, bundle.pair_tokenizer, metric
        self.ids: list[list[int]] = []  # of all training sentences
        self.sentences: list[list[int]] = []  # by photo, their numbers
        for sample in train:
            rows = self._ids(sample.captions)
            self.sentences.append(list(range(len(self.ids), len(self.ids) + len(rows))))
            self.ids += rows
        self.vectors: Tensor | None = None
        self.near: list[list[int]] = []  # by photo, those of the like captions, the likest first

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        longest = self.pair.config.text.max_positions
        return [encoding.ids[:longest] for encoding in self.text_tokenizer.encode_batch(list(texts))]

    def learners(self, phase: Phase) -> list[tuple[nn.Module, float]]:
        pair, objective = self.pair, _objective(phase)
        return [
            (nn.ModuleList([pair.image, pair.text_proj]), phase.lr),
            (nn.ParameterList([pair.logit_scale]), phase.lr),
            (nn.ParameterList([pair.logit_bias]), phase.lr if isinstance(objective, Sigmoid) else 0.0),
            (pair.text, objective.text_lr),
        ]

    def prepare(self, phase: Phase) -> None:
        for module in self.pair.image.modules():
            if isinstance(module, nn.Dropout):
                module.p = phase.dropout
        self.vectors, self.near = None, []

    def order(self, phase: Phase, pool: Sequence[int], seed: str) -> list[int]:
        """Each photo is followed by the remaining photos with similar captions: one batch tells them apart."""
        objective = _objective(phase)
        if not objective.text_lr and self.vectors is None:  # a frozen text tower says the same each time
            self.vectors = self._text_vectors(self.ids)
            unit = nn.functional.normalize(self.vectors, dim=-1)
            means = torch.stack([unit[rows].mean(0) for rows in self.sentences])
            self.near = nearest(means, 8 * objective.neighbours)  # some will be placed already
        order = super().order(phase, pool, seed)
        return with_neighbours(order, self.near, objective.neighbours) if objective.neighbours else order

    @torch.no_grad()
    def _text_vectors(self, ids: Sequence[Sequence[int]], batch_size: int = 128) -> Tensor:
        """The text tower's vectors, `[sentences, dim]`, those of equal length together."""
        order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
        vectors = self.pair.logit_scale.new_zeros(len(ids), self.pair.config.text.dim)
        self.pair.eval()
        bar = tqdm(total=len(ids), unit="text", desc="sentences", disable=not self.main or len(ids) < 10_000)
        with bar:
            for first in range(0, len(order), batch_size):
                rows = order[first : first + batch_size]
                vectors[rows] = self.pair.text(pad([ids[i] for i in rows], PAD).to(self.device))
                bar.update(len(rows))
        return vectors

    def texts(self, photo: int, task: str, phase: Phase, rng: random.Random, view: View) -> list[int]:
        return choose(self.sentences[photo], phase.texts_per_photo, rng)

    def _read(self, step: Step) -> Tensor:
        """What the text side is given for a step's sentences."""
        if self.vectors is not None:
            return self.vectors[torch.tensor(step.texts, device=self.device)]
        return pad([self.ids[i] for i in step.texts], PAD).to(self.device)

    def _compare(self, step: Step, image: Tensor, text: Tensor, scale: Tensor, bias: Tensor) -> Tensor:
        image, text = gather(image), gather(text)
        if isinstance(step.phase.objective, Sigmoid):
            return sigmoid_loss(image, text, scale, bias)
        return softmax_loss(image, text, scale)

    def loss(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        with self.accelerator.autocast():
            features = wrapped(step.images, step.stage, self._read(step))
        return self._compare(step, *features), {"scale": features[2].item()}

    def backward(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        if step.phase.chunks == 1:
            return super().backward(wrapped, step)
        scale = self.pair.logit_scale.exp()

        def encode(images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor]:
            with self.accelerator.autocast():
                return self.module(images, step.stage, texts.flatten(0, 1))[:2]

        texts = self._read(step).unflatten(0, (len(step.photos), -1))  # those of a photo stay with it
        compare = partial(self._compare, step, scale=scale, bias=self.pair.logit_bias)
        backward = self.accelerator.backward
        loss = cached_backward(encode, [step.images, texts], compare, step.phase.chunks, backward)
        if self.accelerator.num_processes > 1:
            for parameter in self.module.parameters():
                if parameter.grad is not None:
                    parameter.grad.copy_(self.accelerator.reduce(parameter.grad, "mean"))  # pyright: ignore
        return loss, {"scale": scale.item()}

    def validate(self, parts: Iterator[tuple[list[Sample], Tensor]]) -> Figures:
        """Retrieval among the photos of each source."""
        if self.metric is None:
            return {}
        samples: list[Sample] = []
        features: list[Tensor] = []
        for part, grid in parts:
            samples += part
            features.append(self.pair.encode_patches(grid))
        image = torch.cat(features)
        found: Figures = {}
        for source in {sample.source for sample in samples}:
            rows = [i for i, sample in enumerate(samples) if sample.source == source]
            ids = [self._ids(samples[i].captions) for i in rows]
            owners = np.repeat(np.arange(len(rows)), [len(one) for one in ids])
            text = self.pair.project_text(self._text_vectors([row for one in ids for row in one]))
            figures = self.metric(image[rows].cpu().numpy(), text.cpu().numpy(), owners)
            found[source, ""] = (figures, f"scale {self.pair.logit_scale.exp():.1f}")
        return found

    def save(self, folder: Path) -> None:
        save_bundle(folder, replace(self.bundle, transform=self.config.image))


def _objective(phase: Phase) -> Contrastive:
    assert isinstance(phase.objective, Contrastive)
    return phase.objective


def nearest(vectors: Tensor, count: int) -> list[list[int]]:
    """The rows with the largest cosines to each row, itself left out, the nearest first.

    Args:
        vectors: `float32[rows, dim]`.
        count: how many; fewer where there are not so many others.
    """
    vectors = nn.functional.normalize(vectors, dim=-1)
    count = min(count, len(vectors) - 1)
    found: list[list[int]] = []
    for first in range(0, len(vectors), 1024):
        cosines = vectors[first : first + 1024] @ vectors.T
        cosines.diagonal(first).fill_(-2)
        found += cosines.topk(count).indices.tolist()
    return found


def with_neighbours(order: Sequence[int], near: Sequence[Sequence[int]], count: int) -> list[int]:
    """The same photos, each as often, each followed by up to `count` of its `near` ones that are not placed yet."""
    left = Counter(order)
    placed: list[int] = []
    for photo in order:
        if left[photo]:
            left[photo] -= 1
            group = [photo, *islice((other for other in near[photo] if left[other]), count)]
            left.subtract(group[1:])
            placed += group
    return placed
