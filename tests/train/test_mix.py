"""Phases of several tasks: which task each step learns, from which photos, and that nothing else depends on it."""

import io
import random
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from vlm.data.features import KeptFeatures
from vlm.data.shards import Sample, epoch_order
from vlm.errors import DataError
from vlm.train.build import build
from vlm.train.config import Phase, TrainConfig, from_json
from vlm.train.loop import Batch
from vlm.train.plan import Plan, make_plan
from vlm.train.seq2seq import Seq2SeqTrainer

BACKBONE = {
    "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 1, "patch_dim": 256,
    "max_source_positions": 32, "max_target_positions": 64, "token_bucket_size": 8, "image_bucket_size": 4,
    "code_grid": 4,
}  # fmt: skip
PHOTOS = 12


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def samples(count: int) -> list[Sample]:
    """Photos with captions and questions."""
    asked = {"vqa": [{"question": "red?", "answers": ["yes"]}, {"question": "what is it?", "answers": ["a dog"]}]}
    return [Sample(f"p{i}", photo(i), ("a red dog", f"number {i}"), "set", fields=asked) for i in range(count)]


def config(phase: dict[str, Any], **changes) -> TrainConfig:
    return from_json(
        {
            "backbone": BACKBONE, "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random",
            "text_tokens": 300, "location_tokens": 16, "precision": "no", "phases": [phase], **changes,
        }
    )  # fmt: skip


def trainer(out: Path, run: TrainConfig, train: list[Sample]) -> Seq2SeqTrainer:
    bundle, run = build(run, train, out)
    return Seq2SeqTrainer(run, bundle, train, [], out, checkpoint_minutes=0)


@pytest.fixture(scope="module", autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)  # a process has one precision, its tests have two


@pytest.fixture(scope="module")
def learner(tmp_path_factory) -> Seq2SeqTrainer:
    phase = {"name": "a", "mix": {"caption": 1.0, "answer": 1.0}}
    return trainer(tmp_path_factory.mktemp("mix"), config(phase), samples(PHOTOS))


# Plans

WEIGHTS = st.floats(0.01, 100)
# a photo stands in a pool as often as an epoch shows it
POOL = st.lists(st.integers(0, PHOTOS - 1), min_size=1, max_size=20).map(sorted)
POOLS = st.dictionaries(st.sampled_from(["caption", "answer", "ground"]), POOL, min_size=1)


def steps_of(plan: Plan, task: str) -> list[int]:
    return [number for name, number in zip(plan.tasks, plan.numbers, strict=True) if name == task]


@given(st.integers(1, 30), st.integers(1, 5), st.integers(1, 4), WEIGHTS, st.text(max_size=5))
def test_the_plan_of_one_task_is_a_sequence_of_epochs(photos, share, epochs, weight, seed):
    pools = {"caption": list(range(photos))}
    if photos < share:
        with pytest.raises(DataError, match=f"{photos} photos for the task caption are fewer than a batch of {share}"):
            make_plan({"caption": weight}, pools, share, epochs, seed)
        return
    plan = make_plan({"caption": weight}, pools, share, epochs, seed)
    assert plan.tasks == ["caption"] * (photos // share * epochs) and plan.numbers == list(range(len(plan.tasks)))
    assert plan.per_epoch == {"caption": photos // share} and plan.pools == pools


@given(POOLS, st.integers(1, 4), st.integers(1, 4), st.data())
def test_a_plan_counts_the_steps_of_each_task(pools, share, epochs, data):
    mix = {task: data.draw(WEIGHTS) for task in pools}
    short = [task for task, pool in pools.items() if len(pool) < share]
    if short:
        with pytest.raises(DataError, match=f"{len(pools[short[0]])} photos for the task {short[0]} are fewer than"):
            make_plan(mix, pools, share, epochs, "seed")
        return
    plan = make_plan(mix, pools, share, epochs, "seed")
    # an epoch shows a photo as often as the task that shows it most
    photos = sum(max(pool.count(i) for pool in pools.values()) for i in range(PHOTOS))
    assert len(plan.tasks) == photos // share * epochs and set(plan.tasks) <= set(mix)
    for task, pool in pools.items():
        assert steps_of(plan, task) == list(range(plan.tasks.count(task)))
        assert plan.per_epoch[task] == len(pool) // share


@given(POOLS, st.text(max_size=5), st.integers(), st.data())
def test_a_plan_depends_on_its_seed_alone(pools, seed, other, data):
    mix = {task: data.draw(WEIGHTS) for task in pools}
    plan = make_plan(mix, pools, 1, 3, seed)
    random.seed(other)
    assert make_plan(mix, pools, 1, 3, seed) == plan
    assert make_plan({task: 4 * weight for task, weight in mix.items()}, pools, 1, 3, seed) == plan  # shares count


def test_another_seed_draws_another_plan():
    pools = {"caption": list(range(50)), "answer": list(range(50))}
    first, second = (make_plan({"caption": 1.0, "answer": 1.0}, pools, 1, 1, seed) for seed in ("0/0/mix", "0/1/mix"))
    assert first.tasks != second.tasks


@pytest.mark.parametrize("caption, answer", [(1.0, 0.5), (1.0, 1.0), (0.1, 0.9)])
def test_tasks_are_drawn_by_their_weights(caption, answer):
    pools = {"caption": list(range(3000)), "answer": list(range(2000, 5000))}
    plan = make_plan({"caption": caption, "answer": answer}, pools, 2, 4, "seed")
    assert len(plan.tasks) == 10_000  # 5,000 photos, two a step, four times
    share, expected = plan.tasks.count("caption") / len(plan.tasks), caption / (caption + answer)
    assert abs(share - expected) < 4 * (expected * (1 - expected) / len(plan.tasks)) ** 0.5  # four standard deviations
    for quarter in range(4):  # from start to end, not one task after the other
        part = plan.tasks[2500 * quarter : 2500 * (quarter + 1)]
        assert abs(part.count("caption") / 2500 - expected) < 4 * (expected * (1 - expected) / 2500) ** 0.5


# Batches


def batches(run: Seq2SeqTrainer, phase: Phase, plan: Plan, first: int = 0, index: int = 0) -> list[Batch]:
    """Those of a plan, with kept features in place of photos."""
    views = np.tile(np.array([0, 0, 1, 1, 0], np.float32), (PHOTOS, phase.views, 1))
    features = KeptFeatures(np.zeros((PHOTOS, phase.views, 1, 1, 1), dtype=np.float16), views)
    return list(run._batches(index, phase, plan, first, len(plan.tasks), features))


def phase_of(mix: Mapping[str, float], size: int, epochs: int) -> Phase:
    return Phase("a", dict(mix), epochs=epochs, batch_size=size, texts_per_photo=2, stage=1, views=2)


@settings(deadline=None, max_examples=40)
@given(POOL, st.integers(1, 4), st.integers(1, 3), st.integers(0, 3))
def test_one_task_reads_epoch_by_epoch(learner, pool, size, epochs, index):
    if len(pool) < size:
        return
    phase = phase_of({"caption": 0.3}, size, epochs)
    learner.prepare(phase)
    plan = make_plan(phase.mix, {"caption": pool}, size, epochs, "seed")
    expected = []
    for epoch in range(epochs):
        order = [pool[i] for i in epoch_order(len(pool), f"0/{index}/{epoch}")]
        expected += [order[i * size : (i + 1) * size] for i in range(len(pool) // size)]
    assert [batch.photos for batch in batches(learner, phase, plan, index=index)] == expected


@settings(deadline=None, max_examples=40)
@given(POOL, POOL, st.integers(1, 3), st.integers(1, 4), WEIGHTS, st.text(max_size=5), st.data())
def test_a_batch_has_one_task_and_each_task_reads_its_own_photos(
    learner, some, others, size, epochs, weight, seed, data
):
    pools = {"caption": some, "answer": others}
    if min(map(len, pools.values())) < size:
        return
    phase = phase_of({"caption": weight, "answer": 1.0}, size, epochs)
    learner.prepare(phase)
    plan = make_plan(phase.mix, pools, size, epochs, seed)
    found = batches(learner, phase, plan)
    assert [batch.task for batch in found] == plan.tasks
    prompt = learner.tasks["caption"].examples(learner.train_samples[0], random.Random(0), 1)[0].source
    for batch in found:
        assert len(batch.photos) == len(batch.images) == size and len(batch.texts) == 2 * size
        assert all((text.source == prompt) == (batch.task == "caption") for text in batch.texts)
    for task, pool in pools.items():
        shown = [batch.photos for batch in found if batch.task == task]
        for first in range(0, len(shown), plan.per_epoch[task]):  # one pass over the task's photos
            read = Counter(i for photos in shown[first : first + plan.per_epoch[task]] for i in photos)
            assert read <= Counter(pool)  # none comes again before the pass ends
            if first + plan.per_epoch[task] <= len(shown):
                assert Counter(pool).total() - read.total() < size  # the others do not fill a batch
    start = data.draw(st.integers(0, len(found)))
    rest = batches(learner, phase, plan, start)
    assert [(b.task, b.photos, b.texts) for b in rest] == [(b.task, b.photos, b.texts) for b in found[start:]]


def test_each_task_has_an_order_of_its_own(learner):
    phase = phase_of({"caption": 1.0, "answer": 1.0}, 2, 4)
    learner.prepare(phase)
    plan = learner.plan(0, phase)
    assert plan.pools == {"caption": list(range(PHOTOS)), "answer": list(range(PHOTOS))}
    found = batches(learner, phase, plan)
    first, second = ([b.photos for b in found if b.task == task][:6] for task in ("caption", "answer"))
    assert len(first) == len(second) == 6 and first != second  # one pass of both


def test_a_pool_holds_the_photos_with_something_for_the_task(tmp_path):
    photos = samples(8)
    for i in (0, 3, 4):
        photos[i] = replace(photos[i], captions=(" . ",))
    for i in (1, 4, 6):
        photos[i] = replace(photos[i], fields={"vqa": [{"question": "?!", "answers": ["no"]}]})
    with pytest.warns(UserWarning, match="left out 3 questions that are empty or too long"):
        run = trainer(tmp_path, config({"name": "a", "mix": {"caption": 1.0, "answer": 1.0}}), photos)
    plan = run.plan(0, phase_of({"caption": 1.0, "answer": 1.0}, 1, 1))
    assert plan.pools == {"caption": [1, 2, 5, 6, 7], "answer": [0, 2, 3, 5, 7]}
    assert len(plan.tasks) == 7  # all but the fifth photo have something for a task


def test_a_task_may_learn_from_some_sources_alone(tmp_path):
    photos = [replace(sample, source="ab"[i % 2]) for i, sample in enumerate(samples(8))]
    mix = {"caption": 1.0, "answer": 1.0}
    run = trainer(tmp_path, config({"name": "a", "mix": mix}), photos)
    assert run.plan(0, replace(phase_of(mix, 1, 1), sources={"answer": ["b"]})).pools == {
        "caption": list(range(8)),
        "answer": [1, 3, 5, 7],
    }

    with pytest.raises(DataError, match="phase 'a': no photos of the source 'c' for answer; there are: a, b"):
        run.plan(0, replace(phase_of(mix, 1, 1), sources={"answer": ["b", "c"]}))


@pytest.mark.parametrize("sources", [{"caption": "b"}, {"answer": ["b"]}])
def test_sources_are_lists_for_tasks_of_the_mix(sources):
    with pytest.raises(ValueError, match=r"phase 'a': sources: (caption='b' is one text|answer is not in mix)"):
        config({"name": "a", "sources": sources})


# Whole runs


@pytest.mark.parametrize("task", ["caption", "answer"])
def test_a_mix_of_one_task_is_that_task(tmp_path, task):
    weights = []
    for weight in (1.0, 0.25):
        phase = {"name": "a", "mix": {task: weight}, "epochs": 2, "batch_size": 3, "texts_per_photo": 2}
        phase |= {"tower_lr": 1e-4, "ema": 0.9}
        if (task, weight) == ("caption", 1.0):
            del phase["mix"]  # captions are what a phase learns where it says nothing else
        trainer(tmp_path / str(weight), config(phase), samples(7)).run()
        weights.append((tmp_path / str(weight) / "a" / "model.safetensors").read_bytes())
    assert weights[0] == weights[1]
