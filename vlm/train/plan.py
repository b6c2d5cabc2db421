"""What a phase does when: which photos it learns from, which task each step learns and from what, and how fast."""

import math
import random
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from vlm.data.shards import Sample
from vlm.errors import DataError
from vlm.tasks import TASKS
from vlm.train.config import Phase, Schedule

# by source of the photos, and by task where a phase has several (else ""): named figures, and an example
Figures = dict[tuple[str, str], tuple[dict[str, float], str]]


class Batch(NamedTuple):
    """What is read for one step.

    Attributes:
        task: name of the task that the step learns.
        images: `float32[photos, channels, height, width]`: photos, or features after the tower's first stages.
        photos: their numbers among the training photos.
        texts: the chosen texts, `phase.texts_per_photo` a photo, in the trainer's own form.
    """

    task: str
    images: Tensor
    photos: list[int]
    texts: list[Any]


@dataclass(frozen=True)
class Step:
    """A batch on the device, and what the loss needs beside it.

    Attributes:
        phase: its phase.
        task: name of the task.
        images: as in `Batch`, on the device.
        stage: how many stages of the tower `images` has passed.
        photos: as in `Batch`.
        texts: as in `Batch`.
        generator: random numbers of the step and the process.
        done: share of the phase's steps before this one.
    """

    phase: Phase
    task: str
    images: Tensor
    stage: int
    photos: list[int]
    texts: list[Any]
    generator: torch.Generator
    done: float = 0.0


def learning_rate(step: int, total: int, warmup: float, final: float, schedule: Schedule = "cosine") -> float:
    """Share of the peak learning rate at a 0-based step: linear warm-up, then a cosine or a line down to `final`."""
    rise = max(1, round(total * warmup))
    if step < rise:
        return (step + 1) / rise
    done = (step - rise) / max(1, total - rise)
    if schedule == "linear":
        return final + (1 - final) * (1 - done)
    return final + (1 - final) * 0.5 * (1 + math.cos(math.pi * done))


@dataclass(frozen=True)
class Plan:
    """Which task each step of a phase learns, and which batch of the task's own epochs.

    Attributes:
        tasks: by step.
        numbers: by step, how many steps before it learned the same task.
        pools: by task, the training photos that have something for it.
        per_epoch: by task, the batches of one pass over its photos.
    """

    tasks: list[str]
    numbers: list[int]
    pools: Mapping[str, list[int]]
    per_epoch: Mapping[str, int]


def make_plan(mix: Mapping[str, float], pools: Mapping[str, list[int]], share: int, epochs: int, seed: str) -> Plan:
    """Draw the task of each step by the weights of the mix.

    An epoch has as many steps as it takes to read every photo once that has something for any task. With one task, each
    photo is read once an epoch; with several, each task goes through its own photos, in an order of its own.

    Args:
        mix: weights of the tasks.
        pools: by task, its training photos; a photo that an epoch shows twice stands there twice.
        share: photos that all processes read in a step.
        epochs: of the phase.
        seed: of the draws.

    Raises:
        DataError: a task has fewer photos than a step reads.
    """
    for task, pool in pools.items():
        if len(pool) < share:
            raise DataError(f"{len(pool)} photos for the task {task} are fewer than a batch of {share}")
    union: Counter[int] = Counter()
    for pool in pools.values():
        union |= Counter(pool)
    total = union.total() // share * epochs
    names = list(mix)
    drawn = names * total if len(names) == 1 else random.Random(seed).choices(names, list(mix.values()), k=total)
    count: Counter[str] = Counter()
    numbers = []
    for task in drawn:
        numbers.append(count[task])
        count[task] += 1
    return Plan(drawn, numbers, pools, {task: len(pool) // share for task, pool in pools.items()})


def split_samples(samples: Sequence[Sample], val_every: int, tasks: Iterable[str]) -> tuple[list[Sample], list[Sample]]:
    """Photos to learn from and to validate on, those that have something for one of the tasks.

    Photos marked "val" validate. Of sources that mark none, every `val_every`-th photo does (0: none). Photos of other
    parts than "train" and "val" are left out, see `used_samples`.
    """
    kinds = [TASKS[task] for task in tasks]
    useful = [sample for sample in used_samples(samples) if any(kind.in_sample(sample) for kind in kinds)]
    marked = {s.source for s in useful if s.split == "val"}
    train: list[Sample] = []
    val: list[Sample] = []
    seen: dict[str, int] = {}
    for sample in useful:
        seen[sample.source] = seen.get(sample.source, 0) + 1
        held = val_every and sample.source not in marked and seen[sample.source] % val_every == 0
        (val if sample.split == "val" or held else train).append(sample)
    return train, val


def used_samples(samples: Iterable[Sample]) -> list[Sample]:
    """The samples of the parts "train" and "val"; a warning counts the others."""
    samples = list(samples)
    if left_out := Counter(sample.split for sample in samples if sample.split not in ("train", "val")):
        shown = ", ".join(f"{count} of {split!r}" for split, count in sorted(left_out.items()))
        warnings.warn(f"left out photos whose split is neither train nor val: {shown}", stacklevel=2)
    return [sample for sample in samples if sample.split in ("train", "val")]
