"""The training loop inside one process; `tests/tasks/test_train.py` runs the command itself."""

import io
import math
import random
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from vlm.data.features import view
from vlm.data.shards import Sample
from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.errors import DataError
from vlm.files.bundle import load_folder
from vlm.models.towers import freeze_batch_norm
from vlm.tasks.caption import Caption
from vlm.train.build import build
from vlm.train.checkpoint import Average, save_checkpoint
from vlm.train.config import Phase, TrainConfig, from_json
from vlm.train.loop import Batch, Trainer
from vlm.train.optimizer import adamw
from vlm.train.plan import learning_rate, split_samples
from vlm.train.seq2seq import Seq2SeqTrainer

BACKBONE = {
    "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2, "patch_dim": 256,
    "max_source_positions": 32, "max_target_positions": 64, "token_bucket_size": 8, "image_bucket_size": 4,
    "code_grid": 4,
}  # fmt: skip
PHASES = [
    {"name": "a", "epochs": 2, "batch_size": 3, "texts_per_photo": 2, "tower_lr": 1e-4, "stage": 3, "views": 2,
     "ema": 0.9},
    {"name": "b", "self_critical": {}, "batch_size": 3, "texts_per_photo": 3, "lr": 1e-3, "dropout": 0.0,
     "stage": 3, "views": 2, "ema": 0.9},
    {"name": "c", "batch_size": 3, "texts_per_photo": 2, "tower_lr": 1e-4, "ema": 0.9},
]  # fmt: skip


def config(phases=PHASES, **changes) -> TrainConfig:
    return from_json(
        {
            "backbone": BACKBONE, "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random",
            "text_tokens": 300, "location_tokens": 16, "precision": "no", "phases": phases, **changes,
        }
    )  # fmt: skip


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


WORDS = ["red", "green", "blue", "dog", "cat", "bird", "runs", "sits", "flies"]


def samples(count: int, source: str = "set") -> list[Sample]:
    draw = random.Random(0).sample
    texts = [tuple(f"A {' '.join(draw(WORDS, 3))}." for _ in range(3)) for _ in range(count)]
    return [Sample(f"{source}{i}", photo(i), texts[i], source) for i in range(count)]


def reward(photo: int, sentences) -> list[float]:
    return [float(sum(map(ord, sentence)) % 7 + photo) for sentence in sentences]


def trainer(out: Path, run: TrainConfig, train: list[Sample], val: Sequence[Sample] = (), metric=None):
    bundle, run = build(run, train, out)
    metrics = {"captions": metric} if metric else {}
    return Seq2SeqTrainer(run, bundle, train, val, out, {"cider": reward}, metrics, checkpoint_minutes=0)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)  # a process has one precision, its tests have two


# Schedule and groups


def test_learning_rate_by_hand():
    rates = [learning_rate(step, 10, 0.2, 0.1) for step in range(10)]
    assert rates[:3] == [0.5, 1.0, 1.0]
    assert rates[6] == pytest.approx(0.1 + 0.9 * 0.5)  # half of the eight steps after the warm-up
    assert rates[4] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi / 4)) / 2)
    assert rates[9] == pytest.approx(0.1 + 0.9 * (1 + math.cos(math.pi * 7 / 8)) / 2)
    assert learning_rate(10, 10, 0.2, 0.1) == pytest.approx(0.1)
    assert learning_rate(0, 1, 0.05, 0.0) == 1.0  # a single step is a whole one


@given(st.integers(1, 500), st.floats(0, 1), st.floats(0, 1))
def test_learning_rate_rises_then_falls(total, warmup, final):
    rates = [learning_rate(step, total, warmup, final) for step in range(total)]
    top = max(1, round(total * warmup)) - 1
    assert all(0 < rate <= 1 + 1e-9 for rate in rates[: top + 1]) and rates[min(top, total - 1)] == pytest.approx(1)
    assert all(a < b for a, b in pairwise(rates[: top + 1]))
    assert all(a >= b - 1e-12 for a, b in pairwise(rates[top:]))
    assert min(rates[top:]) >= final - 1e-9


def learners(run: Trainer, phase: Phase):
    return [*run.learners(phase), (run.tower, phase.tower_lr)]


def test_every_trained_parameter_is_in_one_group(tmp_path):
    run = trainer(tmp_path, config(), samples(3))
    run.model.tower.chain[0].requires_grad_(False)  # type: ignore[operator]
    phase = Phase("x", lr=0.5, tower_lr=0.25, weight_decay=0.125)
    optimizer = adamw(phase, learners(run, phase), run.device)
    names = {parameter: name for name, parameter in run.model.named_parameters()}
    found = [names[p] for group in optimizer.param_groups for p in group["params"]]
    assert sorted(found) == sorted(name for name in names.values() if not name.startswith("tower.chain.0."))
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            tower = names[parameter].startswith("tower.")
            assert group["lr"] == group["peak"] == (0.25 if tower else 0.5)
            assert group["weight_decay"] == (0.125 if parameter.ndim > 1 else 0.0)
    assert {group["betas"] for group in optimizer.param_groups} == {(0.9, 0.98)}


def test_a_frozen_tower_has_no_group(tmp_path):
    run = trainer(tmp_path, config(), samples(3))
    run.model.tower.requires_grad_(False)
    phase = Phase("x")
    assert len(adamw(phase, learners(run, phase), run.device).param_groups) == 2


# Photos


def test_splitting_by_hand():
    plain = [Sample(f"p{i}", b"", ("a dog",), "plain") for i in range(7)]
    marked = [Sample(f"m{i}", b"", ("a dog",), "marked", "val" if i == 4 else "train") for i in range(6)]
    silent = [Sample("s", b"", (), "plain"), Sample("t", b"", (" . ",), "plain")]  # nothing to learn from
    train, val = split_samples([*silent, *plain, *marked], 3, ["caption"])
    assert [s.key for s in val] == ["p2", "p5", "m4"]
    assert [s.key for s in train] == ["p0", "p1", "p3", "p4", "p6", "m0", "m1", "m2", "m3", "m5"]
    train, val = split_samples(plain, 0, ["caption"])
    assert (len(train), val) == (7, [])


def batches(run: Trainer, index: int, phase: Phase, epoch: int = 0, skip: int = 0, features=None) -> list[Batch]:
    """The batches of an epoch from the `skip`-th on."""
    phase = replace(phase, epochs=epoch + 1)
    plan = run.plan(index, phase)
    steps = len(plan.tasks) // phase.epochs
    return list(run._batches(index, phase, plan, epoch * steps + skip, (epoch + 1) * steps, features))


def numbers(run: Trainer, phase: Phase, epoch: int, skip: int = 0) -> list[list[int]]:
    return [batch.photos for batch in batches(run, 0, phase, epoch, skip)]


def test_an_epoch_shows_every_photo_once_in_an_order_of_its_own(tmp_path):
    run, phase = trainer(tmp_path, config(), samples(7)), Phase("x", batch_size=3, texts_per_photo=2)
    first, second = numbers(run, phase, 0), numbers(run, phase, 1)
    assert [len(batch) for batch in first] == [3, 3]  # the last photo does not fill a batch
    assert len({i for batch in first for i in batch}) == 6
    assert first == numbers(run, phase, 0) and first != second


def test_repeated_sources_come_more_often(tmp_path):
    photos = [*samples(2, "rare"), *samples(4, "common")]
    run = trainer(tmp_path, config(repeats={"rare": 2}), photos)
    times = Counter(i for batch in numbers(run, Phase("x", batch_size=4, texts_per_photo=1), 0) for i in batch)
    assert times == {0: 2, 1: 2, 2: 1, 3: 1, 4: 1, 5: 1}


def test_batches_after_a_skip_are_those_of_the_whole_epoch(tmp_path):
    run, phase = trainer(tmp_path, config(), samples(9)), Phase("x", batch_size=2, texts_per_photo=2)
    whole, rest = (batches(run, 1, phase, 2, skip) for skip in (0, 2))
    assert (len(whole), len(rest)) == (4, 2)
    for (_, images, photos, captions), (_, other, same, texts) in zip(whole[2:], rest, strict=True):
        assert torch.equal(images, other) and photos == same and captions == texts
        assert images.shape == (2, 3, 64, 64) and len(captions) == 4


# Whole runs


def weights(out: Path) -> dict[str, bytes]:
    return {name: (out / name / "model.safetensors").read_bytes() for name in "abc"}


@pytest.fixture(scope="module", params=["no", "bf16"])
def unbroken(request, tmp_path_factory):
    AcceleratorState._reset_state(True)
    run = config(precision=request.param)
    out = tmp_path_factory.mktemp("unbroken")
    trainer(out, run, samples(10)).run()
    return run, weights(out)


# each phase has 3 photos a batch and 10 photos: 6, 3 and 3 steps
@pytest.mark.parametrize("stops", [[(0, 2)], [(0, 4), (1, 1)], [(0, 6), (1, 2)], [(1, 3), (2, 2)], [(2, 3)]], ids=str)
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, unbroken, stops, run_until):
    run, expected = unbroken
    photos = samples(10)
    for stop in stops:
        run_until(trainer(tmp_path, run, photos), *stop)
    trainer(tmp_path, run, photos).run()
    assert weights(tmp_path) == expected
    trainer(tmp_path, run, photos).run()  # nothing is left to do
    assert weights(tmp_path) == expected


def test_every_phase_changes_the_weights(unbroken):
    assert len(set(unbroken[1].values())) == 3


def metric(hypotheses, references) -> dict[str, float]:
    assert hypotheses.keys() == references.keys()
    return {"words": float(sum(len(text.split()) for text in hypotheses.values()))}


def test_validation_leaves_training_alone(tmp_path, capsys):
    run, photos = config(PHASES[:1]), samples(10)
    for name, figures in (("with", metric), ("without", None)):
        trainer(tmp_path / name, run, photos[:7], photos[7:], figures).run()
    first, second = ((tmp_path / name / "a" / "model.safetensors").read_bytes() for name in ("with", "without"))
    assert first == second
    assert "a epoch 1: set n=3 words" in capsys.readouterr().out


def test_another_configuration_or_other_photos_refuse_the_checkpoint(tmp_path):
    run, photos = config(PHASES[:1]), samples(6)
    trainer(tmp_path, run, photos).run()
    changed = config([{**PHASES[0], "lr": 1e-3}])
    for other, data in ((changed, photos), (config(PHASES[:1], seed=1), photos), (run, photos[:5])):
        with pytest.raises(DataError, match="was written with another configuration or other data; use another --out"):
            trainer(tmp_path, other, data).run()
    trainer(tmp_path, config(PHASES[:2]), photos).run()  # a phase may be added
    assert (tmp_path / "b" / "model.safetensors").exists()


def test_too_few_photos_are_one_clear_error(tmp_path):
    with pytest.raises(DataError, match="2 photos for the task caption are fewer than a batch of 3"):
        trainer(tmp_path, config(), samples(2)).run()


def test_a_later_phase_with_too_large_a_batch_is_refused_before_any_work(tmp_path):
    late = {**PHASES[1], "batch_size": 50}
    with pytest.raises(
        DataError, match=r"^phase 'b': 6 photos .* a batch of 50; lower --phases\.1\.batch-size, or add "
    ):
        trainer(tmp_path, config([PHASES[0], late]), samples(6)).run()
    assert not (tmp_path / "a").exists()


# Damaged photos


def with_damage(count: int, *damaged: int) -> list[Sample]:
    photos = samples(4)
    photos = [replace(photos[i % 4], key=f"photo{i}") for i in range(count)]
    for i in damaged:
        photos[i] = replace(photos[i], image=photos[i].image[:300])
    return photos


FAST = [{"name": "a", "batch_size": 25, "texts_per_photo": 1}]
KEPT = [{"name": "a", "batch_size": 25, "texts_per_photo": 1, "stage": 3, "views": 1}]


@pytest.mark.parametrize("phases", [FAST, KEPT], ids=["decoded each time", "kept features"])
def test_a_damaged_photo_is_replaced_and_named(tmp_path, phases):
    run = trainer(tmp_path, config(phases), with_damage(100, 7))
    with pytest.warns(UserWarning, match="skipped photo: 'photo7'"):
        run.run()
    assert run.skipped.keys == ["photo7"]
    assert all(tensor.isfinite().all() for tensor in load_file(tmp_path / "a" / "model.safetensors").values())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        features = run._features(run.config.phases[0]) if run.config.phases[0].views else None
        found = batches(run, 0, run.config.phases[0], features=features)
    times = Counter(i for batch in found for i in batch.photos)
    assert times[7] == 0 and times[8] == 2 and sum(times.values()) == 100  # its neighbour stands in
    assert all(batch.images.isfinite().all() for batch in found)


@pytest.mark.parametrize("phases", [FAST, KEPT], ids=["decoded each time", "kept features"])
def test_too_many_damaged_photos_fail(tmp_path, phases):
    with pytest.warns(UserWarning), pytest.raises(DataError, match="2 of 100 photos cannot be decoded"):
        trainer(tmp_path, config(phases), with_damage(100, 7, 8)).run()


def test_a_damaged_photo_is_left_out_of_validation(tmp_path, capsys):
    train, val = with_damage(100), with_damage(5, 2)
    run = trainer(tmp_path, config(FAST), train, [replace(s, key=f"val{s.key}") for s in val], metric)
    with pytest.warns(UserWarning, match="skipped photo: 'valphoto2'"):
        run.run()
    assert "a epoch 1: set n=4 words" in capsys.readouterr().out


# Learning


def test_a_tiny_model_overfits_four_photos(tmp_path):
    texts = ["a red dog runs in the snow", "two cats sleep on a sofa", "the blue bird", "a man rides a horse"]
    photos = [replace(sample, captions=(text,)) for sample, text in zip(samples(4), texts, strict=True)]
    phase = {"name": "a", "epochs": 14, "batch_size": 4, "texts_per_photo": 1, "lr": 5e-3, "tower_lr": 1e-3,
             "dropout": 0.0, "weight_decay": 0.0, "ema": 0.9, "cross_entropy": {"label_smoothing": 0.0}}  # fmt: skip
    plain = {"min_area": 1.0, "flip": 0.0, "jitter": 0.0}
    trainer(tmp_path, config([phase], augmentation=plain, repeats={"set": 10}), photos).run()  # 140 steps

    bundle = load_folder(tmp_path / "a")
    model, tokenizer, transform = bundle.module, bundle.tokenizer, bundle.transform
    images = torch.stack([view(photo, transform, None, "")[0] for photo in photos])
    prompt = torch.tensor([[0, *tokenizer.encode(" what does the image describe?"), 2]]).expand(4, -1)
    with torch.inference_mode():
        encoded = model.backbone.encode(prompt, model.tower(images))
        found = generate(model.backbone, encoded, GenerationConfig(beams=1, allowed=tokenizer.text_range))
    assert [tokenizer.decode(hypotheses[0].ids).strip() for hypotheses in found] == texts
    # the mean loss of a word is that of the search: the captions found are the captions learned
    scores = [score for hypotheses in found for score in hypotheses[0].token_scores]
    assert -sum(scores) / len(scores) < 0.4
    assert [list(h[0].ids) for h in found] == [Caption(tokenizer, 64).caption_ids([text])[0] for text in texts]


def test_the_beams_of_a_photo_compete(tmp_path):
    run = trainer(tmp_path, config([{**PHASES[1], "views": 0, "stage": 0, "dropout": 0.5}]), samples(6))
    rewarded: dict[int, list[str]] = {}
    run.rewards = {"cider": lambda photo, said: rewarded.update({photo: list(said)}) or reward(photo, said)}
    (phase,) = run.config.phases
    run.prepare(phase)
    run.model.train()
    freeze_batch_norm(run.tower)
    step = run._step(phase, batches(run, 0, phase)[0], "0")
    loss, figures = run.loss(run.model, step)
    assert loss.requires_grad and run.model.backbone.training
    run.model.eval()
    with torch.inference_mode():
        source = torch.tensor([[0, *run.tasks["caption"].source(None), 2]]).expand(3, -1)
        encoded = run.model.backbone.encode(source, run.model.tower(step.images))
    options = GenerationConfig(beams=3, max_tokens=20, allowed=run.tokenizer.text_range)
    found = generate(run.model.backbone, encoded, options)
    expected = [[run.tokenizer.decode(h.ids).strip() for h in hypotheses] for hypotheses in found]
    assert [rewarded[photo] for photo in step.photos] == expected
    rewards = [value for photo, sentences in rewarded.items() for value in reward(photo, sentences)]
    assert figures["reward"] == pytest.approx(sum(rewards) / len(rewards))


# Runs that must not end as if they had succeeded


@pytest.mark.parametrize("phase", [{"lr": 1e9}, {"tower_lr": 1e12}, {"lr": 1e30, "clip_norm": 1e30}])
def test_a_run_that_diverges_stops_and_keeps_the_last_good_checkpoint(tmp_path, phase):
    made = {"name": "a", "epochs": 20, "batch_size": 3, "texts_per_photo": 2, "warmup": 0.0, **phase}
    run = trainer(tmp_path, config([made]), samples(12))
    with pytest.raises(DataError, match=r"diverged at step \d+: the (loss|gradient norm) is (nan|inf)") as stopped:
        run.run()
    assert "--phases.0.lr" in str(stopped.value) and not (tmp_path / "a").exists()
    if run.checkpoint.exists():
        assert all(
            tensor.isfinite().all() for tensor in load_file(run.checkpoint).values() if tensor.is_floating_point()
        )


def test_another_number_of_processes_is_called_so(tmp_path):
    run = trainer(tmp_path, config(PHASES[:1]), samples(6))
    counters = {"config": run._fingerprint(0).replace(", 1]]", ", 4]]"), "phase": 0, "step": 1}
    save_checkpoint(
        run.checkpoint, run.module, torch.optim.AdamW(run.module.parameters()), Average(run.module, 0.9), counters
    )
    with pytest.raises(DataError, match="written by 4 processes, and now there are 1; continue with 4"):
        run.run()


def test_only_train_trains_and_validation_validates():
    parts = ["train", "val", "test", "private", "train"]
    found = [replace(sample, split=part) for sample, part in zip(samples(5), parts, strict=True)]
    with pytest.warns(UserWarning, match="left out photos .*: 1 of 'private', 1 of 'test'"):
        train, val = split_samples(found, 0, ["caption"])
    assert [s.key for s in train] == ["set0", "set4"] and [s.key for s in val] == ["set1"]
