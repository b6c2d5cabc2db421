"""Training of the backbone on a mix of tasks: token by token, or by the reward of whole sentences."""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm import tasks as known_tasks
from vlm.data.annotations import in_view
from vlm.data.augment import View, hide_tokens
from vlm.data.shards import Sample
from vlm.decoding.answer import Answer
from vlm.decoding.search import generate
from vlm.decoding.trie import Trie
from vlm.errors import ArgumentError
from vlm.files.atomic import write_text
from vlm.files.bundle import Bundle, save_bundle
from vlm.models.layers import Block, drop_path_rates
from vlm.predictor import Photo, Predictor, encoder_ids, pad
from vlm.tasks import Task, TrainingExample, TrainingRules
from vlm.train.batches import IGNORED, allowed_tokens, teacher_forcing
from vlm.train.box_attention import AttentionSeen, as_fractions, box_attention_loss, watched
from vlm.train.config import Phase, TrainConfig
from vlm.train.loop import Trainer
from vlm.train.objectives import (
    label_smoothed_cross_entropy,
    location_cross_entropy,
    mean_of_others,
    self_critical_loss,
)
from vlm.train.plan import Figures, Step
from vlm.train.settings import CrossEntropy, Objective, SelfCritical

Reward = Callable[[int, Sequence[str]], Sequence[float]]  # training photo, sentences -> a reward each
Metric = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, float]]  # by key -> named figures
ASKED_AT_ONCE = 32  # questions in validation


class Seq2SeqTrainer(Trainer):
    """Trains the backbone on the tasks of each phase's mix, and the tower with it where a phase says so.

    Args:
        config: the run.
        bundle: the model, to be trained in place.
        train: photos to learn from.
        val: photos to validate on.
        out: folder for checkpoint, features, logs and finished models.
        rewards: by name, scores of sentences about a training photo, for self-critical phases.
        metrics: by name, figures of predictions against what people said, for validation; a task whose metric is not
            among them is not validated.
        checkpoint_minutes: time between checkpoints.

    Raises:
        ArgumentError: the settings of a task are not options of a search, or cannot be trained.
    """

    def __init__(
        self,
        config: TrainConfig,
        bundle: Bundle,
        train: Sequence[Sample],
        val: Sequence[Sample],
        out: Path,
        rewards: Mapping[str, Reward] | None = None,
        metrics: Mapping[str, Metric] | None = None,
        checkpoint_minutes: float = 5.0,
    ):
        super().__init__(config, bundle.module, bundle.module.tower, train, val, out, checkpoint_minutes)
        self.bundle, self.model, self.tokenizer = bundle, bundle.module, bundle.tokenizer
        self.rewards, self.metrics = rewards or {}, metrics or {}
        self.predictor = Predictor(replace(bundle, name="the model"))
        self.trained_before = config.init not in ("imagenet", "random")
        trained = list(dict.fromkeys(task for phase in config.phases for task in phase.mix))
        self.phase = config.phases[0]
        self.measured: dict[str, Task] = {}  # what it was trained for by now, and can be validated
        self.tasks = self._bind(self.phase, trained)
        # by task, the answers of the training photos, where only these compete
        self.closed: dict[str, list[str]] = {}
        self.tries: dict[str, Trie] = {}
        competing = {name for phase in config.phases if isinstance(phase.objective, SelfCritical) for name in phase.mix}
        for task in self.tasks.values():
            task.search()
            if task.reward and task.name in competing and task.prefix != "none":
                raise ArgumentError(
                    f"tasks: {task.name} has prefix={task.prefix!r}; sentences that compete are written without one: "
                    "choose none, or leave the task out of the self-critical phase"
                )
            if task.prefix == "source_and_end":
                raise ArgumentError(
                    f"tasks: {task.name} has prefix={task.prefix!r}, after which nothing is searched; choose source"
                )
            if left_out := sum(map(task.unreadable, train)):
                warnings.warn(
                    f"left out {left_out} questions that are empty or too long, or whose answers are", stacklevel=2
                )

    def _bind(self, phase: Phase, names: Sequence[str]) -> dict[str, Task]:
        """Tasks as the finished model will be asked, and what a phase learns them from."""
        config, sizes = self.config, self.model.backbone.config
        rules = TrainingRules(
            max_tokens=config.max_tokens,
            max_source=sizes.max_source_positions,
            max_target=sizes.max_target_positions,
            ofa_captions=config.ofa_captions,
            answer_sets=config.answer_sets,
            made_questions=config.made_questions,
            weighted_answers=isinstance(phase.objective, CrossEntropy) and phase.objective.weighted_answers,
        )
        return known_tasks.bind(self.bundle, {name: config.tasks.get(name, {}) for name in names}, rules)

    def learners(self, phase: Phase) -> list[tuple[nn.Module, float]]:
        return [(self.model.backbone, phase.lr)]

    def prepare(self, phase: Phase) -> None:
        self.phase, self.tasks = phase, self._bind(phase, list(phase.mix))
        phases = self.config.phases
        before = [name for one in phases[: phases.index(phase) if phase in phases else 0] for name in one.mix]
        able = dict.fromkeys([*phase.mix, *before, *(self.bundle.tasks if self.trained_before else ())])
        self.measured = self._bind(phase, [name for name in able if known_tasks.TASKS[name].metric in self.metrics])
        backbone = self.model.backbone
        for module in backbone.modules():
            if isinstance(module, nn.Dropout):
                module.p = phase.dropout
        for layers in (backbone.encoder.layers, backbone.decoder.layers):
            for layer, rate in zip(layers, drop_path_rates(phase.drop_path, len(layers)), strict=True):
                assert isinstance(layer, Block)
                layer.drop_path.rate = rate
        if phase.freeze_embeddings:
            backbone.embed.weight.requires_grad_(False)
        self.closed, self.tries = {}, {}
        if isinstance(phase.objective, CrossEntropy) and phase.objective.closed_answers:
            for name, task in self.tasks.items():
                answers = dict.fromkeys(text for sample in self.train_samples for text in task.answers(sample))
                if answers:
                    self.closed[name] = list(answers)
                    self.tries[name] = Trie(self.predictor.answer_ids(self.closed[name]))
                    self.tries[name].prepare(backbone.config.vocab_size, self.device)

    def usable(self, photo: int, task: str) -> bool:
        return bool(self.tasks[task].examples(self.train_samples[photo], random.Random(0), 1))

    def texts(
        self, photo: int, task: str, phase: Phase, rng: random.Random, view: View | None = None
    ) -> list[TrainingExample]:
        sample = self.train_samples[photo]
        return self.tasks[task].examples(in_view(sample, view) if view else sample, rng, phase.texts_per_photo)

    def backward(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        chunks = step.phase.chunks
        if chunks == 1:
            return super().backward(wrapped, step)
        size, total, figures = len(step.photos) // chunks, torch.zeros((), device=self.device), {}
        rows = size * step.phase.texts_per_photo
        for i in range(chunks):
            part = replace(
                step,
                images=step.images[i * size : (i + 1) * size],
                photos=step.photos[i * size : (i + 1) * size],
                texts=step.texts[i * rows : (i + 1) * rows],
            )
            share = 1 / chunks
            if isinstance(objective_of(step.phase, self.tasks[step.task]), CrossEntropy):  # a mean over all tokens
                share = sum(e.num_tokens for e in part.texts) / sum(e.num_tokens for e in step.texts)
            # several processes exchange their gradients once
            with nullcontext() if i == chunks - 1 else self.accelerator.no_sync(wrapped):
                loss, found = self.loss(wrapped, part)
                self.accelerator.backward(loss * share)
            total += loss.detach() * share
            figures = {name: figures.get(name, 0.0) + value * share for name, value in found.items()}
        return total, figures

    def loss(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        phase, task = step.phase, self.tasks[step.task]
        objective = objective_of(phase, task)
        examples: list[TrainingExample] = step.texts
        figures: dict[str, float] = {}
        # the examples of a photo share its encoding where the encoder reads the same for all of them
        shared = phase.texts_per_photo if task.one_encoding else 1
        sources = pad([example.source for example in examples[::shared]]).to(self.device)
        advantage = None
        if isinstance(objective, SelfCritical):
            examples, rewards = self._compete(step, task, objective)
            figures["reward"] = rewards.mean().item()
            advantage = mean_of_others(rewards).flatten().to(self.device)
        previous, labels = teacher_forcing(examples)
        real = labels != IGNORED
        if isinstance(objective, CrossEntropy) and objective.hidden_tokens:
            answers = nn.functional.pad(real[:, :-1], (1, 0))  # a question without one of its words is another question
            previous = torch.where(answers, hide_tokens(previous, objective.hidden_tokens, step.generator), previous)
        previous, labels, real = previous.to(self.device), labels.to(self.device), real.to(self.device)
        draws = isinstance(objective, CrossEntropy) and objective.box_attention and task.output == "locations"
        with self.accelerator.autocast(), watched(self.model.backbone) if draws else nullcontext() as seen:
            states = wrapped(step.images, sources, previous, step.stage)
            logits = self.model.backbone.logits(states[real])  # padding needs no scores: half the vocabulary's work
        if advantage is not None:
            return self_critical_loss(logits, labels[real], advantage[:, None].expand_as(labels)[real]), figures
        assert isinstance(objective, CrossEntropy)
        loss = self._cross_entropy(objective, task, examples, labels, logits, step.done)
        if seen is not None:
            attention = self._box_attention(task, examples, labels, sources.shape[1], seen)
            figures["box_attention"] = attention.item()
            loss = loss + objective.box_attention * attention
        return loss, figures

    def _cross_entropy(
        self,
        objective: CrossEntropy,
        task: Task,
        examples: Sequence[TrainingExample],
        labels: Tensor,
        logits: Tensor,
        done: float,
    ) -> Tensor:
        """The loss of labels, `int64[rows, tokens]`, from the scores of those that are real, `[labelled, vocab]`."""
        real = labels != IGNORED
        if task.output == "locations" and objective.location_spread:
            first, end = self.tokenizer.bin_start, self.tokenizer.vocab_size
            spread = objective.location_spread * (end - first - 1)
            return location_cross_entropy(logits, labels[real], first, end, spread)
        weights = None
        if objective.weighted_answers:
            weights = torch.tensor([example.weight for example in examples], device=self.device)
            weights = weights[:, None].expand_as(labels)[real]
        trie = self.tries.get(task.name)
        return label_smoothed_cross_entropy(
            logits,
            labels[real],
            objective.label_smoothing,
            allowed=None if trie is None else allowed_tokens(trie, labels, logits.shape[-1]),
            weights=weights,
            drop_worst=objective.drop_worst if done >= objective.drop_worst_after else 0.0,
        )

    def _box_attention(
        self, task: Task, examples: Sequence[TrainingExample], labels: Tensor, words: int, seen: AttentionSeen
    ) -> Tensor:
        """The loss of `vlm.train.box_attention`, a mean over layers.

        Args:
            task: one whose answers are boxes of four locations.
            examples: one a row of `labels`.
            labels: `int64[rows, tokens]`.
            words: how many of the encoder's tokens follow the patches.
            seen: what the decoder's attention was given.
        """
        answers = [example.target[len(example.prefix) - 1 : -1] for example in examples]
        unit = Photo(torch.empty(0), (1, 1))  # boxes are fractions
        boxes = as_fractions([task.read([Answer("", 0.0, tuple(ids))], unit) for ids in answers], self.device)
        tokens = (labels != IGNORED).nonzero()[:, 1].view(len(examples), -1)[:, :-1]  # all but what writes the end
        with self.accelerator.autocast():
            losses = [
                box_attention_loss(weights, tokens, boxes, weights.shape[-1] - words) for weights in seen.weights()
            ]
        return torch.stack(losses).mean()

    @torch.no_grad()
    def _compete(self, step: Step, task: Task, objective: SelfCritical) -> tuple[list[TrainingExample], Tensor]:
        """The sentences that a beam search finds for each photo, and their rewards, `float32[photos, sentences]`."""
        reward = self.rewards[task.reward or ""]
        backbone = self.model.backbone.eval()
        search = task.search({"beams": step.phase.texts_per_photo, "no_repeat_ngram": objective.no_repeat_ngram})
        source = task.source(None)
        with self.accelerator.autocast():
            prompts = torch.tensor([encoder_ids(source)], device=self.device).expand(len(step.photos), -1)
            found = generate(backbone, backbone.encode(prompts, self.tower.head(step.images, step.stage)), search)
        backbone.train()  # what is learned from them is regularised as any other sentence
        rewards = [
            reward(i, [self.tokenizer.decode(h.ids).strip() for h in hypotheses])
            for i, hypotheses in zip(step.photos, found, strict=True)
        ]
        examples = [task.example(source, h.ids) for hypotheses in found for h in hypotheses]
        return examples, torch.tensor(rewards, dtype=torch.float32)

    def validate(self, parts: Iterator[tuple[list[Sample], Tensor]]) -> Figures:
        """By source and task, figures of what the model generates, and an example."""
        if not self.measured:
            return {}
        found: dict[tuple[str, str], tuple[dict[str, str], dict[str, Sequence[str]]]] = {}  # by source and task
        for samples, grid in parts:
            for task in self.measured.values():
                with self.accelerator.autocast():
                    for sample, key, text, references in self._predict(task, samples, grid):
                        texts, right = found.setdefault((sample.source, task.name), ({}, {}))
                        texts[key], right[key] = text, references
        results: Figures = {}
        for (source, name), (texts, right) in found.items():
            metric = self.metrics[self.measured[name].metric or ""]
            results[source, name if len(self.measured) > 1 else ""] = metric(texts, right), next(iter(texts.values()))
        return results

    def _predict(
        self, task: Task, samples: list[Sample], grid: Tensor
    ) -> Iterator[tuple[Sample, str, str, Sequence[str]]]:
        """Of each thing that is asked about a sample its key, what the model says, and what people said."""
        asked = [
            (sample, Photo(patches, (1, 1)), inputs, references)
            for sample, patches in zip(samples, grid, strict=True)
            for inputs, references in task.checks(sample)
        ]
        at_once = len(samples) if task.one_source else ASKED_AT_ONCE
        for first in range(0, len(asked), at_once):
            part = asked[first : first + at_once]
            photos = [photo for _, photo, _, _ in part]
            columns = map(list, zip(*(inputs for _, _, inputs, _ in part), strict=True))
            found = task.run(self.predictor, photos, *columns, choices=self.closed.get(task.name))
            for number, ((sample, _, inputs, references), result) in enumerate(zip(part, found, strict=True), first):
                yield sample, f"{sample.key}#{number}", str(task.prediction(result, *inputs)), references

    def save(self, folder: Path) -> None:
        done = self.config.phases[: self.config.phases.index(self.phase) + 1]
        trained = {task: {} for phase in done for task in phase.mix}
        settings = {**trained, **self.config.tasks}
        save_bundle(folder, replace(self.bundle, transform=self.config.image, tasks=settings, pair=None))
        for answers in self.closed.values():
            write_text(folder / "answers.txt", "".join(f"{answer}\n" for answer in answers))


def objective_of(phase: Phase, task: Task) -> Objective:
    """How a phase learns a task: by its own objective, or by cross entropy where the task has no reward."""
    if isinstance(phase.objective, SelfCritical) and task.reward is None:
        return CrossEntropy()
    return phase.objective
