"""The training loop: phases of steps over photos and their sentences, resumable at any moment.

What is trained, by which loss, and how it is validated: `vlm.train.seq2seq`, `vlm.train.pair` and
`vlm.train.diffusion`.
"""

import json
import random
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import timedelta
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator, DistributedDataParallelKwargs, InitProcessGroupKwargs
from torch import Tensor, nn
from tqdm import tqdm

from vlm.data.augment import View, hide_patches
from vlm.data.features import KeptFeatures, cached_features, view
from vlm.data.shards import Sample, Skipped, epoch_order
from vlm.data.stream import ordered_map
from vlm.errors import DataError, ImageError
from vlm.files.atomic import write_text
from vlm.models.device import has_fast_bfloat16
from vlm.models.towers import Tower, float32_depthwise, freeze_batch_norm, trunk_parameters
from vlm.train.checkpoint import Average, load_checkpoint, read_counters, save_checkpoint
from vlm.train.config import Phase, TrainConfig, to_json
from vlm.train.log import START, note_figures, tensorboard_writer
from vlm.train.optimizer import Divergence, adamw
from vlm.train.plan import Batch, Figures, Plan, Step, learning_rate, make_plan

RESOLVED = "config.resolved.json"  # the configuration with every field filled in, beside the checkpoint


class Trainer(ABC):
    """Trains one module through the phases of a configuration.

    Args:
        config: the run.
        module: to be trained in place.
        tower: its image tower.
        train: photos to learn from.
        val: photos to validate on after each epoch, by the averaged weights.
        out: folder for checkpoint, features, logs and finished models.
        checkpoint_minutes: time between checkpoints.

    Attributes:
        trained_before: whether the module can do something before the first step, which is then measured.
    """

    trained_before = False

    def __init__(
        self,
        config: TrainConfig,
        module: nn.Module,
        tower: Tower,
        train: Sequence[Sample],
        val: Sequence[Sample],
        out: Path,
        checkpoint_minutes: float,
    ):
        self.config, self.out = config, out
        self.train_samples, self.val_samples = train, val
        self.checkpoint_seconds = checkpoint_minutes * 60
        self.skipped = Skipped(len(train) + len(val))
        distributed = [
            # captions leave the decoder's tables of image codes without a gradient
            DistributedDataParallelKwargs(find_unused_parameters=True),
            # the others wait while the main process computes features and validates
            InitProcessGroupKwargs(timeout=timedelta(hours=6)),
        ]
        cpu = not torch.accelerator.is_available()
        precision = config.precision
        if precision == "auto":
            precision = "bf16" if has_fast_bfloat16("cpu" if cpu else "gpu") else "no"
        self.accelerator = Accelerator(
            cpu=cpu,  # unless told, processes without a GPU would train one model each
            mixed_precision=precision,
            kwargs_handlers=distributed,
        )
        self.device = self.accelerator.device
        self.module, self.tower = module.to(self.device), tower
        if self.device.type == "cpu":
            float32_depthwise(tower)
        # an epoch shows the photos of some sources more than once
        self.photos = [i for i, s in enumerate(train) for _ in range(config.repeats.get(s.source, 1))]
        self.pools: dict[str, list[int]] = {}  # by task, the numbers of the photos that it can learn from
        self.checkpoint = out / "checkpoint.safetensors"
        self.main = self.accelerator.is_main_process
        self.divergence = Divergence(scaled=self.accelerator.scaler is not None)

    # What a kind of training says of itself

    @abstractmethod
    def learners(self, phase: Phase) -> list[tuple[nn.Module, float]]:
        """What a phase trains besides the tower, and the peak learning rates; 0 freezes a module."""

    @abstractmethod
    def texts(self, photo: int, task: str, phase: Phase, rng: random.Random, view: View) -> list[Any]:
        """What a step of a task learns from a view of a training photo: `phase.texts_per_photo` texts; perhaps none."""

    @abstractmethod
    def loss(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        """The loss of a step, and figures for the log; `wrapped` is the module, made ready for several processes."""

    @abstractmethod
    def validate(self, parts: Iterator[tuple[list[Sample], Tensor]]) -> Figures:
        """Figures of the validation photos, and what to show beside them.

        Args:
            parts: photos and their patch grids, `[photos, height, width, dim]`.
        """

    @abstractmethod
    def save(self, folder: Path) -> None:
        """Write the finished model."""

    def usable(self, photo: int, task: str) -> bool:
        """Whether there is something to learn for a task from a training photo."""
        return True

    @abstractmethod
    def prepare(self, phase: Phase) -> None:
        """Set what differs between phases, dropout for one, after the tower and `learners` are frozen or not."""

    def order(self, phase: Phase, pool: Sequence[int], seed: str) -> list[int]:
        """The photos of an epoch, in an order that depends on `seed` alone."""
        return [pool[i] for i in epoch_order(len(pool), seed)]

    def backward(self, wrapped: nn.Module, step: Step) -> tuple[Tensor, dict[str, float]]:
        """Add the gradients of a step; what `loss` gives is returned."""
        loss, figures = self.loss(wrapped, step)
        self.accelerator.backward(loss)
        return loss, figures

    # The loop

    def run(self) -> None:
        """Go through all phases, from the checkpoint in `out` where there is one.

        Raises:
            DataError: the checkpoint is of another configuration, or too many photos cannot be decoded.
            ArgumentError: tensorboard is not installed.
        """
        self.out.mkdir(parents=True, exist_ok=True)
        torch.manual_seed(self.config.seed)
        resume = read_counters(self.checkpoint) if self.checkpoint.exists() else None
        if resume and resume["config"] != (now := self._fingerprint(resume["phase"])):
            (was, data), (is_now, data_now) = json.loads(resume["config"]), json.loads(now)
            if (was, data[:2]) == (is_now, data_now[:2]):
                raise DataError(
                    f"{str(self.checkpoint)!r} was written by {data[2]} processes, and now there are {data_now[2]}; "
                    f"continue with {data[2]}, or use another --out"
                )
            raise DataError(
                f"{str(self.checkpoint)!r} was written with another configuration or other data; use another --out"
            )
        if self.main:
            write_text(self.out / RESOLVED, json.dumps(to_json(self.config), indent=2, ensure_ascii=False) + "\n")
        plans = [self.plan(index, phase) for index, phase in enumerate(self.config.phases)]  # errors before any work
        for index, (phase, plan) in enumerate(zip(self.config.phases, plans, strict=True)):
            if resume and index < resume["phase"]:
                continue
            self._run_phase(index, phase, plan, resume if resume and resume["phase"] == index else None)
            resume = None

    def _fingerprint(self, phase: int) -> str:
        """What decided the weights up to and with a phase; later phases may still be changed or added."""
        data = [len(self.train_samples), len(self.val_samples), self.accelerator.num_processes]
        done = replace(self.config, phases=self.config.phases[: phase + 1])
        return json.dumps([to_json(done), data], sort_keys=True)

    def _run_phase(self, index: int, phase: Phase, plan: Plan, resume: dict | None) -> None:
        model = self.module
        frozen = set(trunk_parameters(self.tower, phase.stage if phase.tower_lr else self.tower.stages))
        learners = [*self.learners(phase), (self.tower, phase.tower_lr)]
        frozen.update(parameter for module, lr in learners if not lr for parameter in module.parameters())
        for parameter in model.parameters():
            parameter.requires_grad_(parameter not in frozen)
        self.prepare(phase)
        optimizer = adamw(phase, learners, self.device)
        average = Average(model, phase.ema)
        step = 0
        if resume:
            load_checkpoint(self.checkpoint, model, optimizer, average)
            step = resume["step"]
        wrapped, prepared = self.accelerator.prepare(model, optimizer)
        share = phase.batch_size * self.accelerator.num_processes
        total = len(plan.tasks)
        per_epoch = total // phase.epochs
        writer = tensorboard_writer(self.out) if self.main else None
        bar = tqdm(total=total * share, initial=step * share, unit="photo", desc=phase.name, disable=not self.main)
        features = self._features(phase) if phase.views and step < total else None
        if self.main and not index and not step and self.trained_before:
            self._validate(phase, -1, step, average, features, writer)  # what it could do before
        saved = time.monotonic()
        while step < total:
            epoch = step // per_epoch
            for batch in self._batches(index, phase, plan, step, (epoch + 1) * per_epoch, features):
                factor = learning_rate(step, total, phase.warmup, phase.final_lr, phase.schedule)
                for group in prepared.param_groups:
                    group["lr"] = group["peak"] * factor
                model.train()
                freeze_batch_norm(self.tower)
                now = self._step(phase, batch, f"{self.config.seed}/{index}/{step}", step / total)
                loss, figures = self.backward(wrapped, now)
                norm = self.accelerator.clip_grad_norm_(wrapped.parameters(), phase.clip_norm)
                norm = torch.as_tensor(norm).item()
                self.divergence.check(step, loss, norm, phase, index)
                prepared.step()
                prepared.zero_grad()
                step += 1
                average.update(model, step)
                bar.update(share)
                if self.main and step % 10 == 0:
                    figures |= {"loss": loss.item(), "grad_norm": norm, "lr": factor * phase.lr}
                    bar.set_postfix({k: f"{v:.3f}" for k, v in figures.items() if k in ("loss", "reward")})
                    assert writer is not None
                    label = f"{phase.name}/{batch.task}" if len(phase.mix) > 1 else phase.name
                    for name, value in figures.items():
                        writer.add_scalar(f"{label}/{name}", value, step)
                if self.main and time.monotonic() - saved > self.checkpoint_seconds:
                    self._save(index, step, optimizer, average)
                    saved = time.monotonic()
            if self.main:
                self._validate(phase, epoch, step, average, features, writer)
                self._save(index, step, optimizer, average)
                saved = time.monotonic()
        bar.close()
        if writer is not None:
            writer.close()
        average.copy_to(model)
        if self.main:
            self.save(self.out / phase.name)
        self.accelerator.free_memory(wrapped, prepared)

    def _save(self, phase: int, step: int, optimizer: torch.optim.Optimizer, average: Average) -> None:
        counters = {"config": self._fingerprint(phase), "phase": phase, "step": step}
        save_checkpoint(self.checkpoint, self.module, optimizer, average, counters)

    def _features(self, phase: Phase) -> KeptFeatures:
        """Kept features; the main process makes them, the others wait and read."""
        samples = [*self.train_samples, *self.val_samples]
        with self.accelerator.main_process_first():
            return cached_features(
                self.out / f"features-{phase.stage}-{phase.views}",
                samples,
                self.tower,
                phase.stage,
                self.config.image,
                self.config.augmentation,
                phase.views,
                self.config.seed,
                device=str(self.device),
            )

    def plan(self, index: int, phase: Phase) -> Plan:
        """Which task each step of the phase learns; see `make_plan`.

        Raises:
            DataError: a task has fewer photos than a step reads, or `sources` names one that no photo has.
        """
        for task in phase.mix.keys() - self.pools.keys():  # one look at the photos serves all phases
            self.pools[task] = [i for i in self.photos if self.usable(i, task)]
        known = {sample.source for sample in self.train_samples}
        for task, wanted in phase.sources.items():
            if unknown := [source for source in wanted if source not in known]:
                raise DataError(
                    f"phase {phase.name!r}: no photos of the source {unknown[0]!r} for {task}; "
                    f"there are: {', '.join(sorted(known))}"
                )
        pools = {
            task: [i for i in self.pools[task] if phase.learns_from(task, self.train_samples[i].source)]
            for task in phase.mix
        }
        share = phase.batch_size * self.accelerator.num_processes
        try:
            return make_plan(phase.mix, pools, share, phase.epochs, f"{self.config.seed}/{index}/mix")
        except DataError as error:
            raise DataError(
                f"phase {phase.name!r}: {error}; lower --phases.{index}.batch-size, or add photos with what the task "
                "learns from (docs/training.md)"
            ) from None

    def _batches(
        self, index: int, phase: Phase, plan: Plan, first: int, last: int, features: KeptFeatures | None
    ) -> Iterator[Batch]:
        """The batches of the steps from `first` to `last - 1`."""
        # by task, the seed of its current epoch and the photos of this process
        orders: dict[str, tuple[str, list[int]]] = {}
        count = self.accelerator.num_processes

        def jobs() -> Iterator[tuple[str, str, int]]:
            for task, number in zip(plan.tasks[first:last], plan.numbers[first:last], strict=True):
                epoch, place = divmod(number, plan.per_epoch[task])
                seed = f"{self.config.seed}/{index}/{epoch}" + (f"/{task}" if len(plan.pools) > 1 else "")
                if orders.get(task, ("",))[0] != seed:
                    order = self.order(phase, plan.pools[task], seed)
                    # equal shares: process r takes every n-th photo from r on
                    orders[task] = seed, order[self.accelerator.process_index : len(order) // count * count : count]
                photos = orders[task][1][place * phase.batch_size : (place + 1) * phase.batch_size]
                yield from ((task, seed, photo) for photo in photos)

        def load(job: tuple[str, str, int]) -> tuple[str, Tensor, int, list[Any]]:
            task, seed, first = job
            pool = plan.pools[task]
            # where a photo is damaged, or its view shows nothing to learn, the next stands in: batches stay full
            for i in [first, *(j for j in pool if j > first), *(j for j in pool if j < first)]:
                rng = random.Random(f"{seed}/{i}")
                try:
                    image, part = self._look(i, seed, rng, phase, features)
                except ImageError as error:
                    self.skipped.add(self.train_samples[i], error)
                    continue
                if texts := self.texts(i, task, phase, rng, part):
                    return task, image, i, texts
            raise DataError(f"none of {len(pool)} photos can be used for the task {task}; leave it out of the mix")

        ready = ordered_map(load, jobs(), ahead=3 * phase.batch_size)
        while part := list(islice(ready, phase.batch_size)):
            tasks, images, photos, texts = zip(*part, strict=True)
            yield Batch(tasks[0], torch.stack(images), list(photos), [text for one in texts for text in one])

    def _look(
        self, photo: int, seed: str, rng: random.Random, phase: Phase, features: KeptFeatures | None
    ) -> tuple[Tensor, View]:
        """A random view of a training photo: what the networks read, and which part of the photo it shows."""
        sample = self.train_samples[photo]
        if features is None:
            return view(sample, self.config.image, self.config.augmentation, f"{seed}/{rng.random()}")
        return features.read(photo, rng.randrange(phase.views), sample)

    def _step(self, phase: Phase, batch: Batch, seed: str, done: float = 0.0) -> Step:
        number = random.Random(f"{seed}/{self.accelerator.process_index}").getrandbits(62)
        generator = torch.Generator().manual_seed(number)
        images = batch.images
        if phase.hidden_patches:
            images = hide_patches(images, phase.hidden_patches, generator)
        images = images.to(self.device, memory_format=torch.channels_last)
        stage = phase.stage if phase.views else 0
        return Step(phase, batch.task, images, stage, batch.photos, batch.texts, generator, done)

    @torch.no_grad()
    def _validate(
        self, phase: Phase, epoch: int, step: int, average: Average, features: KeptFeatures | None, writer
    ) -> None:
        """Measure the averaged weights on the validation photos and log the figures; epoch -1 is before the first."""
        if not self.val_samples:
            return
        own = {k: v.clone() for k, v in self.module.state_dict().items()}
        average.copy_to(self.module)
        self.module.eval()
        found, count = self._measure(phase, epoch, step, features, writer)
        self.module.load_state_dict(own)
        note_figures(self.out, phase.name if epoch >= 0 else START, found)
        for (source, task), (figures, shown) in sorted(found.items()):
            label = " ".join(filter(None, (source, task)))
            text = " ".join(f"{name} {value:.4f}" for name, value in figures.items())
            tqdm.write(f"{phase.name} epoch {epoch + 1}: {label} n={count[source]} {text} | {shown}")
            for name, value in figures.items():
                writer.add_scalar(f"val/{label}/{name}", value, step)

    def _measure(
        self, phase: Phase, epoch: int, step: int, features: KeptFeatures | None, writer
    ) -> tuple[Figures, Counter[str]]:
        """Figures of the validation photos by the weights as they are, and by source the number of photos."""

        def load(i: int) -> tuple[Sample, Tensor] | None:
            sample = self.val_samples[i]
            try:
                if features is None:
                    return sample, view(sample, self.config.image, None, "")[0]
                return sample, features.read(len(self.train_samples) + i, 0, sample)[0]  # view 0: the whole photo
            except ImageError as error:
                self.skipped.add(sample, error)
                return None

        count: Counter[str] = Counter()
        stage = 0 if features is None else phase.stage

        def parts() -> Iterator[tuple[list[Sample], Tensor]]:
            loaded = filter(None, ordered_map(load, range(len(self.val_samples)), ahead=128))
            while part := list(islice(loaded, 50)):
                samples = [sample for sample, _ in part]
                count.update(sample.source for sample in samples)
                images = torch.stack([image for _, image in part])
                images = images.to(self.device, memory_format=torch.channels_last)
                with self.accelerator.autocast():
                    grid = self.tower.head(images, stage)
                yield samples, grid.float()

        return self.validate(parts()), count
