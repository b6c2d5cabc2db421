"""Training of captions, word by word and then by the reward of whole sentences, and of answers to questions."""

import random
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from vlm import prompt
from vlm.asking import Asker, pad, search_config
from vlm.candidates import Trie
from vlm.data.augment import hide_words
from vlm.data.batches import (
    IGNORED,
    Lesson,
    Question,
    allowed_words,
    caption_ids,
    choose_answer,
    choose_captions,
    questions,
    teacher_forcing,
)
from vlm.data.shards import Sample
from vlm.errors import ArgumentError
from vlm.generation import GenerationConfig, generate
from vlm.hub import save_model
from vlm.models.layers import Block, drop_path_rates
from vlm.models.vision_language import VisionLanguageModel
from vlm.tokenizer import Tokenizer
from vlm.train.config import Phase, TrainConfig
from vlm.train.loop import Step, Trainer
from vlm.train.objectives import label_smoothed_cross_entropy, mean_of_others, self_critical_loss

Reward = Callable[[int, Sequence[str]], Sequence[float]]  # training photo, sentences -> a reward each
Metric = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, float]]  # by key -> named figures
ANSWERED_AT_ONCE = 32  # questions in validation


class CaptionTrainer(Trainer):
    """Trains the backbone to caption and to answer, and the tower with it where a phase says so.

    Args:
        config: the run.
        model: to be trained in place.
        tokenizer: its tokenizer.
        train: photos to learn from.
        val: photos to validate on.
        out: folder for checkpoint, features, logs and finished models.
        reward: scores of sentences about a training photo, for self-critical phases.
        metric: figures of generated captions against references, for validation; None: there is none.
        checkpoint_minutes: time between checkpoints.
        answer_metric: figures of answers against those that people gave; None: there is none.

    Raises:
        ArgumentError: the settings of a task are no options of a search, or none for training.
    """

    def __init__(
        self,
        config: TrainConfig,
        model: VisionLanguageModel,
        tokenizer: Tokenizer,
        train: Sequence[Sample],
        val: Sequence[Sample],
        out: Path,
        reward: Reward | None = None,
        metric: Metric | None = None,
        checkpoint_minutes: float = 5.0,
        answer_metric: Metric | None = None,
    ):
        super().__init__(config, model, model.tower, train, val, out, checkpoint_minutes)
        self.model, self.tokenizer, self.reward = model, tokenizer, reward
        self.metric, self.answer_metric = metric, answer_metric
        trained = {phase.task for phase in config.phases}
        # what is asked in training is what the finished model will be asked
        self.asker = Asker(model, tokenizer, "the model", {**{task: {} for task in trained}, **config.tasks})
        self.phase = config.phases[0]
        self.trie: Trie | None = None
        if "caption" in trained:
            self.instruction = tokenizer.encode(self.asker.settings("caption")["prompt"])
            clean = (
                partial(prompt.strip_punctuation, max_words=20) if config.strip_punctuation else prompt.clean_caption
            )
            self.captions = [caption_ids(tokenizer, sample.captions, config.max_tokens, clean) for sample in train]
            self.prompt = torch.tensor([prompt.example(self.instruction, ()).source], device=self.device)
        if "answer" in trained:
            self._check_search()
            self.answers: dict[str, list[int]] = {}  # of the training questions, and their ids
            self.questions = self._readable(train)

    def _check_search(self) -> None:
        settings = self.asker.settings("answer")
        search_config(settings, {})
        if (before := settings["prefix"]) not in ("none", "source"):
            raise ArgumentError(f"tasks: answer has prefix={before!r}, behind which nothing is searched; choose source")

    def _readable(self, samples: Sequence[Sample]) -> list[list[tuple[list[int], Question]]]:
        """Of each sample the questions that the model can read and answer, and their instructions in ids."""
        asked = [questions(sample, self.config.answer_sets) for sample in samples]
        texts = list(dict.fromkeys(text for found in asked for question in found for text in question.answers))
        for text, ids in zip(texts, self.asker.answer_ids(texts), strict=True):
            if len(ids) <= self.config.max_tokens:
                self.answers[text] = ids
        readable: list[list[tuple[list[int], Question]]] = []
        for found in asked:
            kept = []
            for question in found:
                answers = tuple(answer for answer in question.answers if answer in self.answers)
                if answers and (ids := self._question_ids(question)):
                    kept.append((ids, replace(question, answers=answers)))
            readable.append(kept)
        if left_out := sum(map(len, asked)) - sum(map(len, readable)):
            warnings.warn(
                f"left out {left_out} questions that are empty or too long, or whose answers are", stacklevel=3
            )
        return readable

    def _question_ids(self, question: Question) -> list[int] | None:
        """The instruction of a question; None where it holds no words, or more than the model reads."""
        settings, sizes = self.asker.settings("answer"), self.model.backbone.config
        try:
            ids = prompt.question_ids(self.tokenizer, question.text, (), settings["prompt"])
        except ArgumentError:
            return None
        prefix = prompt.example(ids, (), settings["prefix"]).prefix
        longest = len(prefix) + max(self.config.max_tokens, settings["max_tokens"])
        fits = len(ids) + 2 <= sizes.max_source_positions and longest <= sizes.max_target_positions
        return ids if fits else None

    def learners(self, phase: Phase) -> list[tuple[nn.Module, float]]:
        return [(self.model.backbone, phase.lr)]

    def prepare(self, phase: Phase) -> None:
        self.phase = phase
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
        self.trie = None
        if phase.closed_answers and self.answers:
            self.trie = Trie(self.answers.values())
            self.trie.prepare(backbone.config.vocab_size, self.device)

    def usable(self, photo: int, phase: Phase) -> bool:
        return bool((self.captions if phase.task == "caption" else self.questions)[photo])

    def texts(self, photo: int, phase: Phase, rng: random.Random) -> list[Lesson]:
        if phase.task == "caption":
            chosen = choose_captions(self.captions[photo], phase.captions, rng)
            return [Lesson(prompt.example(self.instruction, ids)) for ids in chosen]
        prefix = self.asker.settings("answer")["prefix"]
        lessons = []
        for ids, question in choose_captions(self.questions[photo], phase.captions, rng):
            answer, weight = choose_answer(question.answers, phase.weighted_answers, rng)
            lessons.append(Lesson(prompt.example(ids, self.answers[answer], prefix), weight))
        return lessons

    def backward(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        chunks = step.phase.chunks
        if chunks == 1:
            return super().backward(wrapped, step)
        size, total, figures = len(step.photos) // chunks, torch.zeros((), device=self.device), {}
        rows = size * step.phase.captions
        for i in range(chunks):
            part = replace(
                step,
                images=step.images[i * size : (i + 1) * size],
                photos=step.photos[i * size : (i + 1) * size],
                texts=step.texts[i * rows : (i + 1) * rows],
            )
            share = 1 / chunks
            if step.phase.objective == "cross_entropy":  # a mean over all words of the batch
                share = sum(lesson.words for lesson in part.texts) / sum(lesson.words for lesson in step.texts)
            # several processes exchange their gradients once
            with nullcontext() if i == chunks - 1 else self.accelerator.no_sync(wrapped):
                loss, found = self.loss(wrapped, part)
                self.accelerator.backward(loss * share)
            total += loss.detach() * share
            figures = {name: figures.get(name, 0.0) + value * share for name, value in found.items()}
        return total, figures

    def loss(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        phase, lessons, images = step.phase, step.texts, step.images
        figures: dict[str, float] = {}
        # all captions of a photo have one instruction and share its encoding; questions are read one by one
        shared = phase.captions if phase.task == "caption" else 1
        if shared < phase.captions:
            images = images.repeat_interleave(phase.captions, 0)
        prompts = pad([lesson.example.source for lesson in lessons[::shared]]).to(self.device)
        advantage = None
        if phase.objective == "self_critical":
            captions, rewards = self._compete(step)
            lessons = [Lesson(prompt.example(self.instruction, ids)) for ids in captions]
            figures["reward"] = rewards.mean().item()
            advantage = mean_of_others(rewards).flatten().to(self.device)
        previous, labels = teacher_forcing([lesson.example for lesson in lessons])
        if phase.hidden_words:
            previous = hide_words(previous, phase.hidden_words, step.generator)
        previous, labels = previous.to(self.device), labels.to(self.device)
        words = labels != IGNORED
        with self.accelerator.autocast():
            states = wrapped(images, prompts, previous, step.stage)
            logits = self.model.backbone.logits(states[words])  # padding needs no scores: half the vocabulary's work
        if advantage is not None:
            return self_critical_loss(logits, labels[words], advantage[:, None].expand_as(labels)[words]), figures
        weights = None
        if phase.weighted_answers:
            weights = torch.tensor([lesson.weight for lesson in lessons], device=self.device)
            weights = weights[:, None].expand_as(labels)[words]
        loss = label_smoothed_cross_entropy(
            logits,
            labels[words],
            phase.label_smoothing,
            allowed=None if self.trie is None else allowed_words(self.trie, labels, logits.shape[-1]),
            weights=weights,
            drop_worst=phase.drop_worst if step.done >= phase.drop_worst_after else 0.0,
        )
        return loss, figures

    @torch.no_grad()
    def _compete(self, step: Step) -> tuple[list[list[int]], Tensor]:
        """The sentences that a beam search finds for each photo, and their rewards, `float32[photos, sentences]`."""
        assert self.reward is not None, "a self-critical phase needs a reward"
        backbone = self.model.backbone.eval()
        options = GenerationConfig(beams=step.phase.captions, max_tokens=20, allowed=self.tokenizer.text_range)
        with self.accelerator.autocast():
            prompts = self.prompt.expand(len(step.photos), -1)
            found = generate(backbone, backbone.encode(prompts, self.tower.head(step.images, step.stage)), options)
        backbone.train()  # what is learned from them is regularised as any other sentence
        rewards = [
            self.reward(i, [self.tokenizer.decode(h.ids).strip() for h in hypotheses])
            for i, hypotheses in zip(step.photos, found, strict=True)
        ]
        return [list(h.ids) for hypotheses in found for h in hypotheses], torch.tensor(rewards, dtype=torch.float32)

    def validate(self, parts: Iterator[tuple[list[Sample], Tensor]]) -> dict[str, tuple[dict[str, float], str]]:
        """Captions or answers by beam search."""
        metric = self.metric if self.phase.task == "caption" else self.answer_metric
        if metric is None:
            return {}
        found: dict[str, tuple[dict[str, str], dict[str, Sequence[str]]]] = {}  # by source
        for samples, grid in parts:
            with self.accelerator.autocast():
                said = list((self._captions if self.phase.task == "caption" else self._answers)(samples, grid))
            for sample, key, text, references in said:
                texts, right = found.setdefault(sample.source, ({}, {}))
                texts[key], right[key] = text, references
        return {source: (metric(*pair), next(iter(pair[0].values()))) for source, pair in found.items()}

    def _captions(self, samples: list[Sample], grid: Tensor) -> Iterator[tuple[Sample, str, str, Sequence[str]]]:
        """Of each photo its key, a caption and its references."""
        options = GenerationConfig(beams=3, max_tokens=20, no_repeat_ngram=3, allowed=self.tokenizer.text_range)
        encoded = self.model.backbone.encode(self.prompt.expand(len(samples), -1), grid)
        found = generate(self.model.backbone, encoded, options)
        for sample, hypotheses in zip(samples, found, strict=True):
            if sample.captions:
                yield sample, sample.key, self.tokenizer.decode(hypotheses[0].ids).strip(), sample.captions

    def _answers(self, samples: list[Sample], grid: Tensor) -> Iterator[tuple[Sample, str, str, Sequence[str]]]:
        """Of each question its key, an answer and those of people."""
        asked = [
            (sample, question, ids, patches)
            for sample, patches in zip(samples, grid, strict=True)
            for question in questions(sample, self.config.answer_sets)
            if (ids := self._question_ids(question))
        ]
        choices = None if self.trie is None else list(self.answers)
        for first in range(0, len(asked), ANSWERED_AT_ONCE):
            part = asked[first : first + ANSWERED_AT_ONCE]
            _, _, ids, patches = zip(*part, strict=True)
            found = self.asker.write("answer", ids, patches, choices=choices)
            for number, ((sample, question, *_), answers) in enumerate(zip(part, found, strict=True), first):
                yield sample, f"{sample.key}#{number}", answers[0].text, question.answers

    def save(self, folder: Path) -> None:
        done = self.config.phases[: self.config.phases.index(self.phase) + 1]
        tasks = {**{phase.task: {} for phase in done}, **self.config.tasks}
        save_model(folder, self.model, self.tokenizer, self.config.image, tasks)
        if self.trie is not None:
            (folder / "answers.txt").write_text("".join(f"{answer}\n" for answer in self.answers), encoding="utf-8")
