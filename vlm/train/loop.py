"""The training loop: phases of steps over photos and their captions, resumable at any moment."""

import json
import math
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from datetime import timedelta
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor
from tqdm import tqdm

from vlm import prompt
from vlm.data.augment import hide_patches, hide_words
from vlm.data.batches import IGNORED, caption_ids, choose_captions, prompt_ids, teacher_forcing
from vlm.data.features import cached_features, view
from vlm.data.shards import Sample, Skipped, epoch_order
from vlm.errors import ArgumentError, DataError, ImageError
from vlm.generation import GenerationConfig, generate
from vlm.hub import save_model
from vlm.models.towers import float32_depthwise, freeze_batch_norm, trunk_parameters
from vlm.models.vision_language import VisionLanguageModel
from vlm.threads import ordered_map
from vlm.tokenizer import Tokenizer
from vlm.train.checkpoint import Average, load_checkpoint, read_counters, save_checkpoint
from vlm.train.config import Phase, TrainConfig
from vlm.train.objectives import label_smoothed_cross_entropy, mean_of_others, self_critical_loss

Reward = Callable[[int, Sequence[str]], Sequence[float]]  # training photo, sentences -> a reward each
Metric = Callable[[Mapping[str, str], Mapping[str, Sequence[str]]], dict[str, float]]  # by key -> named figures


def learning_rate(step: int, total: int, warmup: float, final: float) -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then a cosine down to `final`."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * (step - rise) / max(1, total - rise)))


class Trainer:
    """Trains one model through the phases of a configuration.

    Args:
        config: the run.
        model: to be trained in place.
        tokenizer: its tokenizer.
        train: photos to learn from.
        val: photos to validate on after each epoch, by the averaged weights.
        out: folder for checkpoint, features, logs and finished models.
        reward: scores of sentences about a training photo, for self-critical phases.
        metric: figures of generated captions against references, for validation.
        checkpoint_minutes: time between checkpoints.
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
    ):
        self.config, self.tokenizer, self.out = config, tokenizer, out
        self.train_samples, self.val_samples = train, val
        self.reward, self.metric = reward, metric
        self.checkpoint_seconds = checkpoint_minutes * 60
        self.skipped = Skipped(len(train) + len(val))
        distributed = [
            # captions leave the decoder's tables of image codes without a gradient
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # the others wait while the main process computes features and validates
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ]
        self.accelerator = Accelerator(
            cpu=not torch.accelerator.is_available(),  # unless told, processes without a GPU would train one model each
            mixed_precision=config.precision,
            kwargs_handlers=distributed,
        )
        self.model = model.to(self.accelerator.device)
        if self.accelerator.device.type == "cpu":
            float32_depthwise(model.tower)
        self.prompt = torch.tensor([prompt_ids(tokenizer, prompt.CAPTION)], device=self.accelerator.device)
        self.captions = [caption_ids(tokenizer, sample.captions, config.max_tokens) for sample in train]
        # an epoch shows the photos of some sources more than once
        self.pool = [i for i, s in enumerate(train) for _ in range(config.repeats.get(s.source, 1))]
        self.checkpoint = out / "checkpoint.safetensors"
        self.main = self.accelerator.is_main_process

    def run(self) -> None:
        """Go through all phases, from the checkpoint in `out` where there is one.

        Raises:
            DataError: the checkpoint is of another configuration, or too many photos cannot be decoded.
            ArgumentError: tensorboard is not installed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.config.seed)
        resume = read_counters(self.checkpoint) if self.checkpoint.exists() else None
        if resume and resume["config"] != self._fingerprint(resume["phase"]):
            raise DataError(f"{str(self.checkpoint)!r} is of another configuration or other data; use another --out")
        for index, phase in enumerate(self.config.phases):
            if resume and index < resume["phase"]:
                continue
            self._run_phase(index, phase, resume if resume and resume["phase"] == index else None)
            resume = None

    def _fingerprint(self, phase: int) -> str:
        """What decided the weights up to and with a phase; later phases may still be changed or added."""
        data = [len(self.train_samples), len(self.val_samples), self.accelerator.num_processes]
        done = replace(self.config, phases=self.config.phases[: phase + 1])
        return json.dumps([asdict(done), data], sort_keys=True)

    def _run_phase(self, index: int, phase: Phase, resume: dict | None) -> None:
        model = self.model
        for module in model.backbone.modules():
            if isinstance(module, torch.nn.Dropout):
                module.p = phase.dropout
        frozen = set(trunk_parameters(model.tower, phase.stage if phase.tower_lr else model.tower.stages))
        for parameter in model.parameters():
            parameter.requires_grad_(parameter not in frozen)
        optimizer = self._optimizer(phase)
        average = Average(model, phase.ema)
        step = 0
        if resume:
            load_checkpoint(self.checkpoint, model, optimizer, average)
            step = resume["step"]
        wrapped, prepared = self.accelerator.prepare(model, optimizer)
        share = phase.batch_size * self.accelerator.num_processes
        per_epoch = len(self.pool) // share
        if not per_epoch:
            raise DataError(f"{len(self.pool)} photos with captions are fewer than a batch of {share}")
        total = per_epoch * phase.epochs
        writer = self._writer() if self.main else None
        bar = tqdm(total=total * share, initial=step * share, unit="photo", desc=phase.name, disable=not self.main)
        features = self._features(phase) if phase.views and step < total else None
        saved = time.monotonic()
        while step < total:
            epoch = step // per_epoch
            for batch in self._batches(index, phase, epoch, step % per_epoch, features):
                factor = learning_rate(step, total, phase.warmup, phase.final_lr)
                for group in prepared.param_groups:
                    group["lr"] = group["peak"] * factor
                model.train()
                freeze_batch_norm(model.tower)
                loss, figures = self._loss(wrapped, phase, batch, f"{self.config.seed}/{index}/{step}")
                self.accelerator.backward(loss)
                norm = self.accelerator.clip_grad_norm_(wrapped.parameters(), phase.clip_norm)
                prepared.step()
                prepared.zero_grad()
                step += 1
                average.update(model, step)
                bar.update(share)
                if self.main and step % 10 == 0:
                    figures |= {"loss": loss.item(), "grad_norm": torch.as_tensor(norm).item(), "lr": factor * phase.lr}
                    bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k in ("loss", "reward")})
                    assert writer is not None
                    for name, value in figures.items():
                        writer.add_scalar(f"{phase.name}/{name}", value, step)
                if self.main and time.monotonic() - saved > self.checkpoint_seconds:
                    self._save(index, step, optimizer, average)
                    saved = time.monotonic()
            if self.main:
                self._validate(phase, epoch, step, average, writer)
                self._save(index, step, optimizer, average)
                saved = time.monotonic()
        bar.close()
        if writer is not None:
            writer.close()
        average.copy_to(model)
        if self.main:
            save_model(self.out / phase.name, model, self.tokenizer, self.config.image)
        self.accelerator.free_memory(wrapped, prepared)

    def _save(self, phase: int, step: int, optimizer: torch.optim.Optimizer, average: Average) -> None:
        counters = {"config": self._fingerprint(phase), "phase": phase, "step": step}
        save_checkpoint(self.checkpoint, self.model, optimizer, average, counters)

    def _writer(self):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise ArgumentError('training logs need tensorboard; pip install "vlm-foundation[train]"') from None
        return SummaryWriter(str(self.out / "tensorboard"))

    def _features(self, phase: Phase) -> np.ndarray:
        """Kept features; the main process makes them, the others wait and read."""
        samples = [*self.train_samples, *self.val_samples]
        with self.accelerator.main_process_first():
            return cached_features(
                self.out / f"features-{phase.stage}-{phase.views}",
                samples,
                self.model.tower,
                phase.stage,
                self.config.image,
                self.config.augmentation,
                phase.views,
                self.config.seed,
                device=str(self.accelerator.device),
            )

    def _optimizer(self, phase: Phase) -> torch.optim.AdamW:
        """AdamW; norms, biases and scales are not decayed."""
        groups = []
        for module, lr in ((self.model.backbone, phase.lr), (self.model.tower, phase.tower_lr)):
            trained = [p for p in module.parameters() if p.requires_grad]
            for decay, part in (
                (phase.weight_decay, [p for p in trained if p.ndim > 1]),
                (0.0, [p for p in trained if p.ndim < 2]),
            ):
                groups.append({"params": part, "lr": lr, "peak": lr, "weight_decay": decay})
        return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, 0.98))

    def _batches(
        self, index: int, phase: Phase, epoch: int, skip: int, features: np.ndarray | None
    ) -> Iterator[tuple[Tensor, list[int], list[list[int]]]]:
        """The batches of an epoch from the `skip`-th on: images or features, photo numbers, captions' ids."""
        seed = f"{self.config.seed}/{index}/{epoch}"
        order = [self.pool[i] for i in epoch_order(len(self.pool), seed)]
        # equal shares: process r takes every n-th photo from r on
        count = self.accelerator.num_processes
        order = order[self.accelerator.process_index : len(order) // count * count : count]
        order = order[skip * phase.batch_size : len(order) // phase.batch_size * phase.batch_size]

        def load(i: int) -> tuple[Tensor, int, list[list[int]]]:
            sample = self.train_samples[i]
            rng = random.Random(f"{seed}/{i}")
            captions = choose_captions(self.captions[i], phase.captions, rng)
            try:
                if features is None:
                    image = view(sample, self.config.image, self.config.augmentation, f"{seed}/{rng.random()}")
                else:
                    image = torch.from_numpy(np.array(features[i, rng.randrange(phase.views)]))
                    if image[0, 0, 0].isnan():
                        raise ImageError(f"{sample.key!r} could not be decoded when its features were computed")
            except ImageError as error:
                self.skipped.add(sample, error)
                return load((i + 1) % len(self.train_samples))  # the next photo stands in: batches stay full
            return image, i, captions

        ready = ordered_map(load, order, ahead=3 * phase.batch_size)
        while part := list(islice(ready, phase.batch_size)):
            images, numbers, captions = zip(*part, strict=True)
            yield torch.stack(images).float(), list(numbers), [c for one in captions for c in one]

    def _loss(self, wrapped, phase: Phase, batch, seed: str) -> tuple[Tensor, dict[str, float]]:
        images, numbers, captions = batch
        device = self.accelerator.device
        number = random.Random(f"{seed}/{self.accelerator.process_index}").getrandbits(62)
        generator = torch.Generator().manual_seed(number)
        if phase.hidden_patches:
            images = hide_patches(images, phase.hidden_patches, generator)
        images = images.to(device, memory_format=torch.channels_last)
        stage = phase.stage if phase.views else 0
        prompts = self.prompt.expand(len(numbers), -1)
        figures: dict[str, float] = {}
        advantage = None
        if phase.objective == "self_critical":
            captions, rewards = self._sample(phase, images, stage, numbers, seed)
            figures["reward"] = rewards.mean().item()
            advantage = mean_of_others(rewards).flatten().to(device)
        previous, labels = teacher_forcing(captions)
        if phase.hidden_words:
            previous = hide_words(previous, phase.hidden_words, generator)
        previous, labels = previous.to(device), labels.to(device)
        words = labels != IGNORED
        with self.accelerator.autocast():
            states = wrapped(images, prompts, previous, stage)
            logits = self.model.backbone.logits(states[words])  # padding needs no scores: half the vocabulary's work
        if advantage is None:
            return label_smoothed_cross_entropy(logits, labels[words], phase.label_smoothing), figures
        return self_critical_loss(logits, labels[words], advantage[:, None].expand_as(labels)[words]), figures

    @torch.no_grad()
    def _sample(
        self, phase: Phase, images: Tensor, stage: int, numbers: list[int], seed: str
    ) -> tuple[list[list[int]], Tensor]:
        """Sentences drawn from the model about each photo, and their rewards, `float32[photos, sentences]`."""
        assert self.reward is not None, "a self-critical phase needs a reward"
        self.model.eval()
        options = GenerationConfig(beams=phase.captions, max_tokens=20, sample=True, allowed=self.tokenizer.text_range)
        with self.accelerator.autocast():
            encoded = self.model.backbone.encode(
                self.prompt.expand(len(numbers), -1), self.model.tower.head(images, stage)
            )
            generator = torch.Generator(images.device).manual_seed(random.Random(seed).getrandbits(62))
            found = generate(self.model.backbone, encoded, options, generator=generator)
        rewards = [
            self.reward(i, [self.tokenizer.decode(h.ids).strip() for h in hypotheses])
            for i, hypotheses in zip(numbers, found, strict=True)
        ]
        return [list(h.ids) for hypotheses in found for h in hypotheses], torch.tensor(rewards, dtype=torch.float32)

    @torch.no_grad()
    def _validate(self, phase: Phase, epoch: int, step: int, average: Average, writer) -> None:
        """Caption the validation photos by beam search with the averaged weights and log the figures."""
        if not self.val_samples or self.metric is None:
            return
        model, own = self.model, {k: v.clone() for k, v in self.model.state_dict().items()}
        average.copy_to(model)
        model.eval()
        options = GenerationConfig(beams=3, max_tokens=20, no_repeat_ngram=3, allowed=self.tokenizer.text_range)

        def load(sample: Sample) -> tuple[Sample, Tensor] | None:
            try:
                return sample, view(sample, self.config.image, None, "")
            except ImageError as error:
                self.skipped.add(sample, error)
                return None

        texts: list[str] = []
        samples: list[Sample] = []
        loaded = filter(None, ordered_map(load, self.val_samples, ahead=128))
        while part := list(islice(loaded, 50)):
            samples += (sample for sample, _ in part)
            batch = torch.stack([image for _, image in part])
            batch = batch.to(self.accelerator.device, memory_format=torch.channels_last)
            with self.accelerator.autocast():
                encoded = model.backbone.encode(self.prompt.expand(len(part), -1), model.tower(batch))
                found = generate(model.backbone, encoded, options)
            texts += [self.tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in found]
        model.load_state_dict(own)
        for source in sorted({s.source for s in samples}):
            keep = [(s, text) for s, text in zip(samples, texts, strict=True) if s.source == source]
            figures = self.metric({s.key: text for s, text in keep}, {s.key: s.captions for s, _ in keep})
            shown = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
            tqdm.write(f"{phase.name} epoch {epoch + 1}: {source} n={len(keep)} {shown} | {keep[0][1]}")
            for name, value in figures.items():
                writer.add_scalar(f"val/{source}/{name}", value, step)


def split_samples(samples: Sequence[Sample], val_every: int) -> tuple[list[Sample], list[Sample]]:
    """Captioned photos to learn from and to validate on.

    Photos marked "val" validate. Of sources that mark none, every `val_every`-th photo does (0: none).
    """
    captioned = [s for s in samples if any(map(prompt.clean_caption, s.captions))]
    marked = {s.source for s in captioned if s.split == "val"}
    train: list[Sample] = []
    val: list[Sample] = []
    seen: dict[str, int] = {}
    for sample in captioned:
        seen[sample.source] = seen.get(sample.source, 0) + 1
        held = val_every and sample.source not in marked and seen[sample.source] % val_every == 0
        (val if sample.split == "val" or held else train).append(sample)
    return train, val
