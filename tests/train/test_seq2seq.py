"""Captions and answers learned by models that exist already: a small checkpoint of OFA, `tiny`, and by new ones."""

import io
import json
import random
import runpy
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

import vlm
from vlm.convert.ofa import config as ofa_config
from vlm.data.shards import Sample
from vlm.errors import ArgumentError
from vlm.files.bundle import load_bundle
from vlm.models.layers import DropPath
from vlm.predictor import decoder_prefix, encoder_ids
from vlm.train.build import build
from vlm.train.config import Phase, TrainConfig, from_json
from vlm.train.loop import Batch
from vlm.train.plan import learning_rate, split_samples
from vlm.train.seq2seq import Seq2SeqTrainer
from vlm.train.settings import CrossEntropy, SelfCritical

TESTS = Path(__file__).parents[1]
PLAIN = {"min_area": 1.0, "flip": 0.0, "jitter": 0.0}
CAPTION: dict[str, Any] = {"name": "a", "batch_size": 2, "texts_per_photo": 2, "tower_lr": 1e-4, "ema": 0.9}
ANSWER: dict[str, Any] = {
    "name": "b", "mix": {"answer": 1.0}, "batch_size": 2, "texts_per_photo": 2, "tower_lr": 1e-4, "ema": 0.9,
    "drop_path": 0.2, "schedule": "linear", "freeze_embeddings": True, "chunks": 2,
    "cross_entropy": {"drop_worst": 0.2, "drop_worst_after": 0.3, "weighted_answers": True, "closed_answers": True},
}  # fmt: skip
PEOPLE = [["red"] * 6 + ["Dark red"] * 4, ["three"], ["Yes", "no", "yes"]]


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)  # a process has one precision, its tests may have two


def photo(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 256, (4, 5, 3)).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((80, 64)).save(buffer, "JPEG")
    return buffer.getvalue()


def samples(count: int) -> list[Sample]:
    """Photos with captions and questions; the first has no questions, the second no captions."""
    found = []
    for i in range(count):
        vqa = [
            {"question": f"What is {word}?", "answers": PEOPLE[(i + j) % 3]} for j, word in enumerate("xyz"[i % 3 :])
        ]
        captions = () if i == 1 else (f"A dog, number {i}!", "two red cats")
        found.append(Sample(f"p{i}", photo(i), captions, "set", fields={"vqa": vqa if i else []}))
    return found


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> Iterator[Path]:
    """A checkpoint of OFA for VQA, with random weights, and its vocabulary, whose pieces are bytes."""
    folder = tmp_path_factory.mktemp("ofa")
    small = runpy.run_path(str(TESTS / "convert" / "conftest.py"))["Small"]
    pieces = sorted(pre_tokenizers.ByteLevel.alphabet())
    (folder / "encoder.json").write_text(json.dumps({piece: i for i, piece in enumerate(pieces)}))
    (folder / "dict.txt").write_text("".join(f"{i} 1\n" for i in range(256)))
    (folder / "vocab.bpe").write_text("#version: 0.2\n")
    sizes = {"max_source_positions": 64, "max_target_positions": 64}
    cfg = {"task": {"patch_image_size": 32, "prompt_type": "prev_output"}, "model": small.namespace(**sizes)}
    tensors = small.tensors(vocab=4 + 256 + 1 + 8192 + 1000, positions=64)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ofa_config.BLOCKS, "small", (1, 1, 1))
        yield small.file(folder / "ofa.pt", model=tensors, cfg=cfg)


def from_ofa(checkpoint: Path, *phases: dict, **changes) -> TrainConfig:
    start = {"init": f"ofa:{checkpoint}", "image_size": 64, "precision": "no", "max_tokens": 20, "augmentation": PLAIN}
    return from_json({**start, "phases": list(phases), **changes})


def metric(found, references) -> dict[str, float]:
    assert found.keys() == references.keys() and all(references.values())
    return {"texts": float(len(found))}


def trainer(out: Path, config: TrainConfig, train: list[Sample], val: list[Sample] | None = None) -> Seq2SeqTrainer:
    bundle, config = build(config, train, out)
    metrics = {"captions": metric, "answers": metric}
    return Seq2SeqTrainer(config, bundle, train, val or [], out, {}, metrics, 0)


def phase_of(data: dict) -> Phase:
    return from_json({"phases": [data]}).phases[0]


def settings_of(model: vlm.Model) -> dict:
    return {name: task.settings for name, task in model.tasks.items()}


# From a checkpoint of OFA


def test_a_checkpoint_of_ofa_learns_captions_then_answers(checkpoint, tmp_path, capsys):
    train, val = samples(5), [replace(sample, key=f"v{sample.key}") for sample in samples(4)]
    trainer(tmp_path, from_ofa(checkpoint, CAPTION, ANSWER), train, val).run()
    shown = capsys.readouterr().out
    # three of the four have captions; three have questions, of which there are 2 + 1 + 3
    for phase, epoch in (("a", 0), ("a", 1), ("b", 1)):  # each phase says what it does to all tasks; epoch 0 is before
        assert f"{phase} epoch {epoch}: set caption n=4 texts 3.0000" in shown
        assert f"{phase} epoch {epoch}: set answer n=4 texts 6.0000" in shown
    assert (tmp_path / "validation.md").read_text() == (
        "| photos | figure | start | a | b |\n| --- | --- | ---: | ---: | ---: |\n"
        "| set answer | texts | 6.00 | 6.00 | 6.00 |\n| set caption | texts | 3.00 | 3.00 | 3.00 |\n"
    )
    before = vlm.load(f"ofa:{checkpoint}")
    captioner, answerer = (vlm.load(str(tmp_path / name)) for name in "ab")
    assert settings_of(captioner) == settings_of(answerer) == settings_of(before)  # all of it, the prefix among them
    assert answerer.bundle.transform.size == 64 and before.bundle.transform.size == 32
    assert answerer.bundle.tokenizer.encode(" a dog") == before.bundle.tokenizer.encode(" a dog")
    assert isinstance(captioner.caption(photo(0)), str) and isinstance(answerer.caption(photo(0)), str)
    answers = (tmp_path / "b" / "answers.txt").read_text().splitlines()
    assert answers == ["three", "yes", "no", "red", "dark red"] and not (tmp_path / "a" / "answers.txt").exists()
    assert answerer.answer(photo(1), "What is x?", choices=answers) in answers

    first, second = (model.bundle.module.state_dict() for model in (captioner, answerer))
    changed = {name for name in first if not torch.equal(first[name], second[name])}
    assert "backbone.embed.weight" not in changed and "tower.chain.0.0.weight" in changed
    start = before.bundle.module.state_dict()["backbone.embed.weight"]
    assert not torch.allclose(first["backbone.embed.weight"], start, atol=1e-3)  # captions may change it


@pytest.mark.parametrize("prefix", ["source", "source_only"])
def test_training_and_asking_read_the_same(checkpoint, tmp_path, monkeypatch, prefix):
    run = trainer(tmp_path, from_ofa(checkpoint, CAPTION, ANSWER), samples(3))
    model = vlm.load(f"ofa:{checkpoint}")
    model.task("answer").settings["prefix"] = prefix
    heard: list[tuple[list[int], list[int]]] = []

    class Enough(Exception):
        pass

    def read(self, sources, patches, prefix):
        heard.extend((encoder_ids(ids, prefix), decoder_prefix(ids, prefix)) for ids in sources)
        raise Enough

    monkeypatch.setattr("vlm.predictor.Predictor.read", read)
    for ask in (lambda: model.caption(photo(0)), lambda: model.answer(photo(2), " What-is Z")):
        with pytest.raises(Enough):
            ask()
    caption = run.texts(0, "caption", run.config.phases[0], random.Random(0))[0]
    asked = replace(samples(3)[2], fields={"vqa": [{"question": "What is z?", "answers": ["A  Dog"]}]})
    answerer = trainer(tmp_path, from_ofa(checkpoint, ANSWER, tasks={"answer": {"prefix": prefix}}), [asked])
    answer = answerer.texts(0, "answer", phase_of(ANSWER), random.Random(0))[0]
    for example, (source, given), text in zip((caption, answer), heard, (" two red cats", " a dog"), strict=True):
        assert (example.source, example.prefix) == (source, given)
        ids = model.bundle.tokenizer.encode(text)
        if example is caption and example.target[:-1] != ids:
            ids = model.bundle.tokenizer.encode(" a dog number 0")
        assert example.previous == [*given, *ids]
        assert example.target == [1] * (len(given) - 1) + [*ids, 2]
    assert len(heard[1][1]) > 1  # the decoder is given the question
    assert (heard[1][0] == [0, 2]) == (prefix == "source_only")


def test_a_killed_run_of_a_mix_ends_as_an_unbroken_one(checkpoint, tmp_path, run_until, monkeypatch):
    mixed = {**CAPTION, "mix": {"caption": 1.0, "answer": 0.5}, "epochs": 3, "drop_path": 0.1}
    config, train = from_ofa(checkpoint, mixed), samples(7)
    run = trainer(tmp_path / "whole", config, train)
    learned: list[str] = []
    step = run._step
    monkeypatch.setattr(
        run, "_step", lambda phase, batch, *rest: learned.append(batch.task) or step(phase, batch, *rest)
    )
    run.run()
    assert set(learned) == {"caption", "answer"} and len(learned) == 9  # seven photos, two a step, three times
    for stop in (2, 4, 8):
        run_until(trainer(tmp_path / "broken", config, train), 0, stop)
    trainer(tmp_path / "broken", config, train).run()
    for file in ("a/model.safetensors", "checkpoint.safetensors"):
        whole, broken = (load_file(tmp_path / run / file) for run in ("whole", "broken"))
        assert [name for name in whole if not torch.equal(whole[name], broken[name])] == [], file


def test_a_mix_is_validated_task_by_task(checkpoint, tmp_path, capsys):
    train, val = samples(5), [replace(sample, key=f"v{sample.key}") for sample in samples(4)]
    trainer(tmp_path, from_ofa(checkpoint, {**CAPTION, "mix": {"caption": 1.0, "answer": 1.0}}), train, val).run()
    shown = capsys.readouterr().out
    assert "a epoch 1: set answer n=4 texts 6.0000" in shown and "a epoch 1: set caption n=4 texts 3.0000" in shown


def test_a_killed_run_ends_as_an_unbroken_one(checkpoint, tmp_path, run_until):
    answers = {**ANSWER, "epochs": 2}
    config, train = from_ofa(checkpoint, {**CAPTION, "drop_path": 0.1}, answers), samples(7)
    trainer(tmp_path / "whole", config, train).run()  # 6 of 7 photos have captions, 6 have questions: 3 and 6 steps
    for stop in ((0, 2), (1, 1), (1, 4), (1, 6)):
        run_until(trainer(tmp_path / "broken", config, train), *stop)
    trainer(tmp_path / "broken", config, train).run()
    for file in ("a/model.safetensors", "b/model.safetensors", "checkpoint.safetensors"):
        whole, broken = (load_file(tmp_path / run / file) for run in ("whole", "broken"))
        assert [name for name in whole if not torch.equal(whole[name], broken[name])] == [], file
    for file in ("a/config.json", "b/config.json", "b/answers.txt"):
        assert (tmp_path / "whole" / file).read_text() == (tmp_path / "broken" / file).read_text(), file
    assert (tmp_path / "whole/a/model.safetensors").read_bytes() != (
        tmp_path / "whole/b/model.safetensors"
    ).read_bytes()


# Steps


def gradients(
    run: Seq2SeqTrainer, phase: Phase, photos: list[int], dropout: float = 0.0, task: str = ""
) -> tuple[float, dict]:
    """Loss of one step on these photos, and the gradients that it leaves.

    In float64: what reaches the first layers is a small rest of large terms, so that in float32 it would depend on the
    order in which this processor adds.
    """
    run.module.zero_grad()
    run.module.double()
    run.prepare(replace(phase, dropout=dropout, drop_path=0.0))
    task = task or next(iter(phase.mix))
    texts = [example for i in photos for example in run.texts(i, task, phase, random.Random(i))]
    images = torch.stack([run.config.image(Image.open(io.BytesIO(photo(i)))).double() for i in photos])
    loss, _ = run.backward(run.module, run._step(phase, Batch(task, images, photos, texts), "seed", done=0.0))
    found = {name: p.grad.clone() for name, p in run.module.named_parameters() if p.grad is not None}
    return loss.item(), found


@pytest.mark.parametrize("name", ["a", "b"])
def test_parts_of_a_batch_add_up_to_the_whole(checkpoint, tmp_path, name, assert_same_sums):
    run = trainer(tmp_path, from_ofa(checkpoint, CAPTION, ANSWER), samples(7))
    phase = phase_of({**(CAPTION if name == "a" else ANSWER), "batch_size": 4, "chunks": 1})
    whole, expected = gradients(run, phase, [2, 3, 4, 6])
    parts, found = gradients(run, replace(phase, chunks=4), [2, 3, 4, 6])
    assert parts == pytest.approx(whole, rel=1e-6)  # added up in float32
    assert_same_sums(found, expected, terms=32 * 32 * 4)  # the first convolution's, over the places of four photos


def test_questions_that_only_the_decoder_reads_share_the_encoding_of_their_photo(checkpoint, tmp_path, monkeypatch):
    run = trainer(tmp_path, from_ofa(checkpoint, ANSWER, tasks={"answer": {"prefix": "source_only"}}), samples(7))
    phase = phase_of({**ANSWER, "batch_size": 3, "chunks": 1})
    assert run.tasks["answer"].one_encoding
    loss, found = gradients(run, phase, [2, 3, 4])
    monkeypatch.setattr(type(run.tasks["answer"]), "one_encoding", False)
    expected, right = gradients(run, phase, [2, 3, 4])
    assert loss == pytest.approx(expected, rel=1e-9) and found.keys() == right.keys()
    for name in right:
        torch.testing.assert_close(found[name], right[name], rtol=1e-6, atol=1e-9)


def test_tokens_are_hidden_in_answers_and_never_in_questions(checkpoint, tmp_path, monkeypatch):
    run = trainer(tmp_path, from_ofa(checkpoint, ANSWER), samples(7))
    objective = CrossEntropy(hidden_tokens=0.9)
    phase = Phase("x", {"answer": 1.0}, batch_size=3, texts_per_photo=2, objective=objective)
    read: list[torch.Tensor] = []
    forward = run.model.forward
    monkeypatch.setattr(run.model, "forward", lambda *args: read.append(args[2]) or forward(*args))
    gradients(run, phase, [2, 3, 4])
    texts = [example for i in (2, 3, 4) for example in run.texts(i, "answer", phase, random.Random(i))]
    hidden = 0
    for ids, example in zip(read[0].tolist(), texts, strict=True):
        start = len(example.prefix)
        assert ids[:start] == example.prefix
        hidden += ids[start:].count(3)
    assert hidden > sum(len(example.previous) - len(example.prefix) for example in texts) / 2


def test_a_batch_of_questions_is_the_mean_of_its_words(checkpoint, tmp_path):
    """Questions and answers of different lengths stand in one padded batch; padding changes nothing."""
    run = trainer(tmp_path, from_ofa(checkpoint, ANSWER), samples(7))
    objective = CrossEntropy(closed_answers=True, weighted_answers=True)
    phase = Phase("x", {"answer": 1.0}, batch_size=2, texts_per_photo=1, objective=objective)
    run.prepare(phase)
    tokens = {i: run.texts(i, "answer", phase, random.Random(i))[0].num_tokens for i in range(1, 7)}
    short, long = (choose(tokens, key=tokens.__getitem__) for choose in (min, max))
    assert tokens[short] < tokens[long]
    whole = gradients(run, phase, [short, long])[0]
    total = sum(gradients(run, phase, [i])[0] * tokens[i] for i in (short, long))
    assert whole == pytest.approx(total / (tokens[short] + tokens[long]), rel=1e-4)


def test_beside_rewards_other_tasks_are_learned_by_cross_entropy(checkpoint, tmp_path):
    run = trainer(tmp_path, from_ofa(checkpoint, CAPTION, ANSWER), samples(7))
    mix = {"caption": 1.0, "answer": 1.0}
    rewarded = Phase("x", mix, batch_size=2, texts_per_photo=2, objective=SelfCritical())
    plain = Phase("x", mix, batch_size=2, texts_per_photo=2)
    loss, found = gradients(run, rewarded, [2, 3], task="answer")
    expected, right = gradients(run, plain, [2, 3], task="answer")
    assert loss == expected and found.keys() == right.keys()
    assert all(torch.equal(found[name], right[name]) for name in right)


def test_the_worst_words_are_dropped_late_in_a_phase(checkpoint, tmp_path):
    run = trainer(tmp_path, from_ofa(checkpoint, CAPTION), samples(3))
    objective = CrossEntropy(drop_worst=0.5, drop_worst_after=0.5)
    phase = Phase("x", batch_size=2, texts_per_photo=2, dropout=0.0, objective=objective)
    run.prepare(phase)
    texts = [example for i in (0, 2) for example in run.texts(i, "caption", phase, random.Random(i))]
    batch = Batch("caption", torch.zeros(2, 3, 64, 64), [0, 2], texts)
    early, late = (run.loss(run.module, run._step(phase, batch, "seed", done))[0] for done in (0.49, 0.5))
    plain = run.loss(run.module, run._step(replace(phase, objective=CrossEntropy()), batch, "seed", 0.5))[0]
    assert early == plain > late


def test_a_phase_sets_branches_and_embeddings(checkpoint, tmp_path):
    run = trainer(tmp_path, from_ofa(checkpoint, ANSWER), samples(3))
    run.prepare(Phase("x", drop_path=0.2, freeze_embeddings=True))
    backbone = run.model.backbone
    rates = [
        [m.rate for m in stack.modules() if isinstance(m, DropPath)] for stack in (backbone.encoder, backbone.decoder)
    ]
    assert rates == [[0.0, 0.2], [0.0]]
    assert not backbone.embed.weight.requires_grad and backbone.encoder.patch_proj.weight.requires_grad


def test_questions_that_do_not_fit_are_left_out(checkpoint, tmp_path):
    people = [
        ("What is it?", ["dog"]), ("why " * 30, ["dog"]), ("?!", ["dog"]), ("Which?", ["a long long answer", "cat"]),
        ("What?", ["another long answer"]),
    ]  # fmt: skip
    sample = Sample("p", photo(0), (), "set", fields={"vqa": [{"question": q, "answers": a} for q, a in people]})
    with pytest.warns(UserWarning, match="left out 3 questions that are empty or too long, or whose answers are"):
        run = trainer(tmp_path, from_ofa(checkpoint, ANSWER, max_tokens=12), [sample])
    run.prepare(run.config.phases[0])
    learned = run.texts(0, "answer", run.config.phases[0], random.Random(0))
    decode = run.tokenizer.decode
    assert sorted(decode(e.target[len(e.prefix) - 1 :]) for e in learned) == [" cat", " dog"]  # each question once
    assert run.closed == {"answer": ["dog", "cat"]}


@pytest.mark.parametrize(
    "settings, message",
    [({"prefix": "source_and_end"}, "prefix='source_and_end', after which nothing is searched; choose source"),
     ({"beam": 3}, "there is no such option: 'beam'")],
)  # fmt: skip
def test_settings_that_cannot_be_searched_fail_at_once(checkpoint, tmp_path, settings, message):
    with pytest.raises(ArgumentError, match=message):
        trainer(tmp_path, from_ofa(checkpoint, ANSWER, tasks={"answer": settings}), samples(3))


def test_sentences_do_not_compete_after_a_prefix(checkpoint, tmp_path):
    """A phase of cross-entropy may have one."""
    phase = {"name": "a", "epochs": 1, "batch_size": 2, "mix": {"caption": 1.0}}
    settings = {"caption": {"prefix": "source"}}
    trainer(tmp_path, from_ofa(checkpoint, phase, tasks=settings), samples(3))
    with pytest.raises(ArgumentError, match="caption has prefix='source'; sentences that compete are written without"):
        trainer(tmp_path, from_ofa(checkpoint, {**phase, "self_critical": {}}, tasks=settings), samples(3))


def test_photos_are_split_by_what_is_learned():
    found = samples(4)
    for tasks, keys in ((("caption",), "023"), (("answer",), "123"), (("caption", "answer"), "0123")):
        assert [s.key for s in split_samples(found, 0, tasks)[0]] == [f"p{key}" for key in keys]


def test_the_line_down_equals_the_original(golden):
    expected = json.loads((golden / "nano_golden.json").read_text())["optim"]["lr_schedule"][0]
    config = expected["config"]
    total, warmup = config["total_num_update"], config["warmup_updates"]
    for update, lr in zip(expected["updates"], expected["lr"], strict=True):
        if warmup <= update < total:
            factor = learning_rate(update, total, warmup / total, config["end_learning_rate"], "linear")
            assert factor * config["lr"][0] == pytest.approx(lr, rel=1e-6)


# Other models


def test_tiny_learns_to_answer(tmp_path):
    config = from_json({"init": "tiny", "image_size": 64, "precision": "no", "phases": [{**ANSWER, "stage": 8}]})
    trainer(tmp_path, config, samples(3)[1:]).run()
    model = vlm.load(str(tmp_path / "b"))
    assert set(model.tasks) == {"answer", *load_bundle("tiny").tasks}
    assert isinstance(model.answer(photo(1), "What is y?"), str) and isinstance(model.caption(photo(1)), str)


def test_a_tiny_model_overfits_four_answers(tmp_path):
    """Photo and question decide the answer, neither does alone."""
    texts = {
        (0, "What is it?"): "dog",
        (0, "What colour?"): "red",
        (1, "What is it?"): "two cats",
        (1, "What colour?"): "blue",
    }
    train = [
        Sample(f"p{i}", photo(i), (), "set", fields={"vqa": [
            {"question": question, "answers": [answer] * 3} for (j, question), answer in texts.items() if j == i
        ]}) for i in range(2)
    ]  # fmt: skip
    backbone = {
        "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "patch_dim": 256, "max_source_positions": 32, "max_target_positions": 96, "token_bucket_size": 8,
        "image_bucket_size": 4, "code_grid": 4,
    }  # fmt: skip
    phase = {
        "name": "a", "mix": {"answer": 1.0}, "epochs": 15, "batch_size": 2, "texts_per_photo": 2, "lr": 5e-3,
        "tower_lr": 1e-3, "dropout": 0.0, "weight_decay": 0.0, "ema": 0.9, "cross_entropy": {"label_smoothing": 0.0},
    }  # fmt: skip
    config = from_json({
        "backbone": backbone, "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random",
        "text_tokens": 300, "location_tokens": 16, "precision": "no", "augmentation": PLAIN, "repeats": {"set": 10},
        "tasks": {"answer": {"prefix": "source"}}, "phases": [phase],
    })  # fmt: skip
    trainer(tmp_path, config, train).run()  # 150 steps
    model = vlm.load(str(tmp_path / "a"))
    assert model.tasks.keys() == {"answer"} and model.tasks["answer"].prefix == "source"
    assert {key: model.answer(photo(key[0]), key[1]) for key in texts} == texts
