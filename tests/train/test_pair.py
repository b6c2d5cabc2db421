"""Training of the contrastive pair inside one process."""

import io
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import tokenizers
import torch
from accelerate.state import AcceleratorState
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from vlm.data.features import view
from vlm.data.shards import Sample
from vlm.files.bundle import load_folder, load_pair
from vlm.models.config import PairConfig, TextConfig
from vlm.models.pair import ContrastivePair
from vlm.models.towers import freeze_batch_norm
from vlm.train.build import build
from vlm.train.config import Phase, TrainConfig, from_json
from vlm.train.pair import PairTrainer, nearest, with_neighbours
from vlm.train.settings import Contrastive, Sigmoid

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", ".", "red", "green", "blue", "dog", "cat", "bird", "runs", "sits"]
TEXT = TextConfig(vocab_size=len(WORDS), dim=16, layers=1, heads=2, ffn_dim=32, max_positions=8)
SHARED = {"epochs": 2, "batch_size": 4, "texts_per_photo": 2, "stage": 3, "views": 2, "dropout": 0.3, "ema": 0.9}
HEADS = {**SHARED, "name": "a", "contrastive": {"neighbours": 1}}
PHASES = [
    HEADS,
    {**SHARED, "name": "b", "contrastive": {"text_lr": 1e-3}, "chunks": 2},
    {**SHARED, "name": "c", "sigmoid": {"neighbours": 1}, "tower_lr": 1e-3},
]


BACKBONE = {"vocab_size": 0, "dim": 16, "ffn_dim": 16, "heads": 2, "encoder_layers": 1, "decoder_layers": 1,
            "patch_dim": 256}  # fmt: skip


def samples(count: int, source: str = "set") -> list[Sample]:
    """Noise, each with three different sentences."""
    found = []
    for i in range(count):
        pixels = np.random.default_rng(i).integers(0, 256, (3, 3, 3)).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(pixels).resize((64, 64)).save(buffer, "PNG")
        texts = tuple(f"A {color} {WORDS[9 + i % 3]} {WORDS[12 + i % 2]}." for color in WORDS[6:9])
        found.append(Sample(f"{source}{i}", buffer.getvalue(), texts, source))
    return found


def config(phases=PHASES, **changes) -> TrainConfig:
    return from_json(
        {
            "backbone": BACKBONE, "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random",
            "text_tokens": 300, "location_tokens": 16, "precision": "no", "phases": phases,
            "pair": {"patch_dim": 256, "dim": 8, "width": 16, "text": vars(TEXT)}, **changes,
        }
    )  # fmt: skip


def tokenizer() -> tokenizers.Tokenizer:
    words = tokenizers.models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]")
    found = tokenizers.Tokenizer(words)
    found.normalizer = tokenizers.normalizers.Lowercase()
    found.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    found.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return found


def trainer(out: Path, run: TrainConfig, train: list[Sample], val=(), metric=None) -> PairTrainer:
    assert run.pair is not None
    bundle, filled = build(replace(run, pair=None, phases=(Phase("x"),)), train, out)
    torch.manual_seed(1)
    bundle = replace(bundle, pair=ContrastivePair(run.pair), pair_tokenizer=tokenizer())
    run = replace(filled, pair=run.pair, phases=run.phases)
    return PairTrainer(run, bundle, train, val, out, metric, checkpoint_minutes=0)


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)


def files(out: Path, name: str) -> list[bytes]:
    return [(out / phase / name).read_bytes() for phase in "abc"]


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory) -> Path:
    AcceleratorState._reset_state(True)
    out = tmp_path_factory.mktemp("unbroken")
    trainer(out, config(), samples(8)).run()
    return out


# each phase has two epochs of two steps
@pytest.mark.parametrize("stops", [[(0, 1)], [(0, 4), (1, 3)], [(2, 2)]], ids=str)
def test_a_killed_run_ends_with_the_weights_of_an_unbroken_one(tmp_path, unbroken, stops, run_until):
    for stop in stops:
        run_until(trainer(tmp_path, config(), samples(8)), *stop)
    trainer(tmp_path, config(), samples(8)).run()
    for name in ("pair.safetensors", "model.safetensors"):
        assert files(tmp_path, name)[-1] == files(unbroken, name)[-1]


def test_a_phase_changes_what_it_trains(unbroken):
    start = ContrastivePair(PairConfig(256, 8, 16, TEXT)).state_dict()
    heads, words, tower = (load_pair(unbroken / phase)[0].state_dict() for phase in "abc")
    for name in start:
        is_text = name.startswith("text.")
        assert torch.equal(heads[name], words[name]) == (name in ("logit_bias",)), name
        if is_text:
            assert torch.equal(words[name], tower[name]), name
    assert heads["logit_bias"] == words["logit_bias"] == 0 != tower["logit_bias"]
    first, second, third = files(unbroken, "model.safetensors")
    assert first == second != third  # captions stay as they are until a phase trains the tower


def test_a_frozen_text_tower_stays_as_it_was(tmp_path):
    run = trainer(tmp_path, config([HEADS]), samples(8))
    before = {name: tensor.clone() for name, tensor in run.pair.text.state_dict().items()}
    run.run()
    after = run.pair.text.state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert run.vectors is not None
    for number, ids in enumerate(run.ids):
        torch.testing.assert_close(run.vectors[number], run.pair.text(torch.tensor([ids]))[0], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", [Contrastive, Sigmoid])
@pytest.mark.parametrize("text_lr", [0.0, 1e-3])
def test_a_batch_in_chunks_has_the_gradient_of_the_whole(tmp_path, kind, text_lr, assert_same_sums):
    found = []
    for chunks in (1, 4):
        objective = kind(text_lr=text_lr)
        phase = Phase("x", batch_size=4, texts_per_photo=3, dropout=0.0, chunks=chunks, objective=objective)
        run = trainer(tmp_path / str(chunks), config(), samples(8))
        for module, lr in run.learners(phase):
            module.requires_grad_(bool(lr))
        run.prepare(phase)
        run.module.train()
        freeze_batch_norm(run.tower)
        run.module.double()  # in float32, what is left of the pairs' pushes and pulls depends on the order of adding
        batch = next(run._batches(0, phase, run.plan(0, phase), 0, 1, None))
        batch = batch._replace(images=batch.images.double())
        loss, figures = run.backward(run.module, run._step(phase, batch, "seed"))
        gradients = {n: p.grad for n, p in run.pair.named_parameters() if p.grad is not None and p.grad.any()}
        assert any(name.startswith("text.") for name in gradients) == bool(text_lr)
        found.append((loss.detach(), figures, gradients))
    (whole_loss, whole_figures, whole), (loss, figures, gradients) = found
    assert whole.keys() == gradients.keys()
    # the longest sums are those over the 256 channels of a patch
    assert_same_sums({"loss": loss, **gradients}, {"loss": whole_loss, **whole}, terms=256)
    assert figures == pytest.approx(whole_figures, rel=1e-6)


@given(st.lists(st.integers(0, 9), max_size=30), st.integers(1, 4), st.integers(0, 99))
def test_neighbours_stand_together_and_no_photo_is_lost(order, count, seed):
    near = nearest(torch.randn(10, 4, generator=torch.Generator().manual_seed(seed)), 5)
    placed = with_neighbours(order, near, count)
    assert sorted(placed) == sorted(order)
    if order:
        assert placed[0] == order[0]
        expected = [other for other in near[order[0]] if other in order][:count]
        assert placed[1 : 1 + len(expected)] == expected


def test_neighbours_by_hand():
    near = nearest(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0], [0.1, 1.0], [-1.0, 0.0]]), 2)
    assert near[0] == [1, 3] and near[2] == [3, 1] and near[4] == [2, 3]
    assert with_neighbours([4, 0, 2, 1, 3], near, 1) == [4, 2, 0, 1, 3]
    assert with_neighbours([0, 0, 3, 1], near, 1) == [0, 1, 0, 3]


def test_a_phase_with_neighbours_puts_like_captions_in_one_batch(tmp_path):
    run = trainer(tmp_path, config(), samples(12))
    phase = Phase("x", batch_size=4, texts_per_photo=3, objective=Contrastive(neighbours=1))
    run.prepare(phase)
    order = run.order(phase, run.photos, "seed")
    assert sorted(order) == sorted(run.photos)
    same = [run.train_samples[a].captions == run.train_samples[b].captions for a, b in pairwise(order)]
    assert same[0] and sum(same) >= 6  # of twelve photos with six sets of captions


def test_validation_compares_the_photos_of_a_source(tmp_path, capsys):
    seen = []

    def metric(image, text, owners):
        seen.append((image, text, owners))
        return {"n": float(len(image))}

    val = [*samples(3, "few"), *samples(5, "many")]
    val[1] = replace(val[1], captions=val[1].captions[:1])
    run = trainer(tmp_path, config([{**HEADS, "epochs": 1}]), samples(8), val, metric)
    run.run()
    image, text, owners = sorted(seen, key=lambda found: len(found[0]))[0]
    assert image.shape == (3, 8) and text.shape == (7, 8) and owners.tolist() == [0, 0, 0, 1, 2, 2, 2]
    np.testing.assert_allclose(np.linalg.norm(np.concatenate([image, text]), axis=1), 1, atol=1e-5)
    shown = capsys.readouterr().out
    assert "a epoch 1: few n=3 n 3.0000" in shown and "a epoch 1: many n=5 n 5.0000" in shown


def test_a_small_pair_learns_four_photos(tmp_path):
    texts = ["a red dog runs", "green cat sits", "blue bird", "a bird sits"]
    photos = [replace(sample, captions=(text,)) for sample, text in zip(samples(4), texts, strict=True)]
    phase = {"name": "a", "contrastive": {"text_lr": 1e-2}, "epochs": 10, "batch_size": 4, "texts_per_photo": 1,
             "lr": 1e-2, "tower_lr": 1e-3, "dropout": 0.0, "weight_decay": 0.0, "ema": 0.5}  # fmt: skip
    plain = {"min_area": 1.0, "flip": 0.0, "jitter": 0.0}
    run = trainer(tmp_path, config([phase], augmentation=plain, repeats={"set": 4}), photos)
    run.run()
    pair, words = load_pair(tmp_path / "a")
    bundle = load_folder(tmp_path / "a")
    model, transform = bundle.module, bundle.transform
    with torch.no_grad():
        grid = model.tower(torch.stack([view(photo, transform, None, "")[0] for photo in photos]))
        text = torch.cat([pair.encode_text(torch.tensor([words.encode(one).ids])) for one in texts])
        assert (pair.encode_patches(grid) @ text.T).argmax(1).tolist() == [0, 1, 2, 3]
