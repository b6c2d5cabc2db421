"""`python -m tasks.train` from shards to a captioner: killed, resumed, and on two processes."""

import contextlib
import io
import json
import os
import random
import re
import signal
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from webdataset.writer import TarWriter

import vlm
from eval.validation import answer_figures
from tasks import vqa
from tasks.train import main
from vlm.errors import ArgumentError, DataError
from vlm.train.checkpoint import read_counters
from vlm.train.config import CrossEntropy, TrainConfig, from_json
from vlm.train.loop import RESOLVED
from vlm.train.run import read_config

ROOT = Path(__file__).resolve().parents[2]
SHARED = {"batch_size": 4, "texts_per_photo": 2, "ema": 0.9}
TINY = {
    "backbone": {
        "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 2,
        "patch_dim": 256, "max_source_positions": 32, "max_target_positions": 64, "token_bucket_size": 8,
        "image_bucket_size": 4, "code_grid": 4,
    },
    "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random", "text_tokens": 400,
    "location_tokens": 16, "precision": "bf16",
    "phases": [
        {**SHARED, "name": "a", "epochs": 6, "tower_lr": 1e-4, "stage": 3, "views": 2},
        {**SHARED, "name": "b", "epochs": 6, "self_critical": {}, "lr": 1e-3, "stage": 3, "views": 2},
        {**SHARED, "name": "c", "epochs": 6, "tower_lr": 1e-4, "hidden_patches": 0.3,
         "cross_entropy": {"hidden_tokens": 0.2}},
    ],
}  # fmt: skip


MIXED = {**SHARED, "name": "d", "mix": {"caption": 1.0, "answer": 0.5}, "epochs": 6, "tower_lr": 1e-4}
ASKED = [{"question": "What is it?", "answers": ["a dog"] * 3 + ["cat"]}, {"question": "Red?", "answers": ["yes"]}]


def write_data(folder: Path, count: int = 20, captions: list[str] | None = None, vqa: list[dict] | None = None) -> Path:
    folder.mkdir()
    rng = random.Random(0)
    words = ["red", "green", "dog", "cat", "bird", "runs", "sits", "flies"]
    with TarWriter(str(folder / "a.tar")) as writer:
        for i in range(count):
            pixels = np.random.default_rng(i).integers(0, 256, (4, 5, 3)).astype(np.uint8)
            buffer = io.BytesIO()
            Image.fromarray(pixels).resize((80, 64)).save(buffer, "JPEG")
            texts = captions or [f"A {' '.join(rng.sample(words, 3))}." for _ in range(3)]
            record = {"captions": texts, "source": "set", "split": "val" if i % 10 == 9 else "train", "vqa": vqa or []}
            writer.write({"__key__": f"photo{i:03}", "jpg": buffer.getvalue(), "json": record})
    return folder


def write_config(file: Path, **changes) -> str:
    file.write_text(json.dumps({**TINY, **changes}))
    return str(file)


def command(config: str, data: Path, out: Path) -> list[str]:
    return [config, "--data", str(data), "--out", str(out), "--checkpoint-minutes", "0"]


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("train") / "data")


@pytest.fixture(scope="module")
def questions(tmp_path_factory) -> Path:
    return write_data(tmp_path_factory.mktemp("questions") / "data", vqa=ASKED)


# Arguments


def test_help_loads_nothing_heavy():
    code = """
import sys
from tasks.__main__ import main
try:
    main(["train", "--help"])
finally:
    print(sorted({"torch", "timm", "numpy"} & set(sys.modules)))
"""
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and run.stdout.splitlines()[-1] == "[]", run.stderr
    assert "vlm train CONFIG -h" in run.stdout and "--checkpoint-minutes" in run.stdout


def test_a_configuration_by_name_and_by_file(tmp_path):
    assert isinstance(read_config("tiny_caption"), TrainConfig)
    assert read_config(write_config(tmp_path / "mine.json")).tower.name == "test_efficientnet"


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "is not a training configuration"),
        (b"[]", "is not a training configuration"),
        (b"null", "is not a training configuration"),
        (b"\xff", "is not a training configuration"),
        (b'{"backbone": {"vocab_size": 0}}', "lacks 'phases'"),
        (b'{"backbone": {"vocab_size": 0, "heads": 0}, "phases": []}', "is not a training configuration"),
        (b'{"backbone": {"vocab_size": 0}, "phases": [3]}', "is not a training configuration"),
        (b'{"backbone": {"vocab_size": 0}, "phases": [], "more": 1}', "'more'"),
    ],
)
def test_a_damaged_configuration_is_one_clear_error(tmp_path, content, message):
    (tmp_path / "c.json").write_bytes(content)
    with pytest.raises(ArgumentError, match=message) as caught:
        read_config(str(tmp_path / "c.json"))
    assert str(caught.value).isprintable() and "c.json" in str(caught.value)


def test_an_unknown_configuration_lists_the_known_ones():
    with pytest.raises(ArgumentError, match=r"no configuration 'nothing'; give a JSON file or one of: .*tiny_caption"):
        read_config("nothing")


def fails(arguments: list[str], capsys) -> str:
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1
    return err


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)  # a process has one precision, its tests have two


@pytest.fixture
def no_switch(monkeypatch) -> list[int]:
    """Leave the memory of the test process alone, but count the calls."""
    calls: list[int] = []
    monkeypatch.setattr("vlm.train.run.keep_freed_memory", lambda: calls.append(1))
    return calls


def test_what_a_user_gets_wrong_is_one_line(tmp_path, data, capsys, no_switch):
    config = write_config(tmp_path / "c.json")
    assert "no configuration 'x'" in fails(command("x", data, tmp_path / "out"), capsys)
    assert "no .tar shards" in fails(command(config, tmp_path / "nothing", tmp_path / "out"), capsys)
    (tmp_path / "file").touch()
    assert "cannot be a folder" in fails(command(config, data, tmp_path / "file"), capsys)
    assert "cannot be a folder" in fails(command(config, data, tmp_path / "file" / "out"), capsys)
    silent = write_data(tmp_path / "silent", 2, [" . "])
    assert "no photo with anything for caption among the 2 of" in fails(
        command(config, silent, tmp_path / "out"), capsys
    )
    asked = write_config(tmp_path / "asked.json", phases=[{"name": "a", "mix": {"answer": 1.0}}])
    assert "no photo with anything for answer among the 2 of" in fails(command(asked, silent, tmp_path / "out"), capsys)
    other = [*command(asked, data, tmp_path / "out"), "--init", "ofa:nowhere.pt"]
    assert "no photo with anything for answer among the 20 of" in fails(other, capsys)
    assert "no OFA checkpoint at 'nowhere.pt'" in fails([config, *other[1:]], capsys)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "checkpoint.safetensors").write_bytes(b"damaged")
    assert "is not a checkpoint of a training" in fails(command(config, data, tmp_path / "out"), capsys)


def test_shards_to_a_captioner(tmp_path, data, capsys, no_switch):
    config = write_config(tmp_path / "c.json", phases=[{**TINY["phases"][0], "epochs": 1}])
    assert main(command(config, data, tmp_path / "out")) == 0
    assert no_switch == [1]  # memory is kept from the start
    out, _ = capsys.readouterr()
    assert "a epoch 1: set n=2 CIDEr" in out and "BLEU-4" in out
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    model = vlm.load(str(tmp_path / "out" / "a"))
    assert isinstance(model.caption(ROOT / "datasets/sample/cat.jpg"), str)


def test_shards_to_answers(tmp_path, capsys, no_switch):
    asked = [{"question": "What is it?", "answers": ["A dog"] * 3 + ["cat"]}, {"question": "Red?", "answers": ["yes"]}]
    data = write_data(tmp_path / "data", vqa=asked)
    phase = {**TINY["phases"][0], "mix": {"answer": 1.0}, "epochs": 1, "cross_entropy": {"closed_answers": True}}
    config = write_config(tmp_path / "c.json", phases=[phase])
    assert main(command(config, data, tmp_path / "out")) == 0
    assert "a epoch 1: set n=2 accuracy" in (out := capsys.readouterr().out) and "questions 4.0000" in out
    answers = tmp_path / "out" / "a" / "answers.txt"
    assert answers.read_text() == "a dog\ncat\nyes\n"
    again = write_config(tmp_path / "again.json", phases=[{**phase, "name": "b"}], backbone=None)
    assert main([*command(again, data, tmp_path / "more"), "--init", str(tmp_path / "out" / "a")]) == 0
    arguments = ["--model", str(tmp_path / "more" / "b"), "--question", "what is it?", "--answers", str(answers)]
    capsys.readouterr()
    assert vqa.main([*arguments, "--image", str(ROOT / "datasets/sample/cat.jpg")]) == 0
    assert capsys.readouterr().out.strip() in ("a dog", "cat", "yes")
    resolved = tmp_path / "more" / RESOLVED
    assert json.loads(resolved.read_text())["init"] == str(tmp_path / "out" / "a")
    assert main(command(str(resolved), data, tmp_path / "same")) == 0
    first, second = ((tmp_path / name / "b" / "model.safetensors").read_bytes() for name in ("more", "same"))
    assert first == second


def test_shards_to_a_model_for_both(tmp_path, questions, capsys, no_switch):
    phase = {**MIXED, "name": "a", "epochs": 2, "cross_entropy": {"closed_answers": True}}
    config = write_config(tmp_path / "c.json", phases=[phase])
    assert main(command(config, questions, tmp_path / "out")) == 0
    out = capsys.readouterr().out
    for epoch in (1, 2):  # figures of each task
        assert f"a epoch {epoch}: set caption n=2 CIDEr" in out and f"a epoch {epoch}: set answer n=2 accuracy" in out
    assert "BLEU-4" in out and "questions 4.0000" in out
    model = vlm.load(str(tmp_path / "out" / "a"))
    assert set(model.tasks) == {"caption", "answer"}
    assert isinstance(model.caption(ROOT / "datasets/sample/cat.jpg"), str)
    answers = (tmp_path / "out" / "a" / "answers.txt").read_text().splitlines()
    assert answers == ["a dog", "cat", "yes"]
    assert model.answer(ROOT / "datasets/sample/cat.jpg", "red?", choices=answers) in answers


def test_answers_are_scored_as_the_benchmarks_score_them():
    people = {"a": ["dog"] * 3 + ["cat"] * 7, "b": ["a lamp"], "c": ["cup, lamp"], "d": ["no"]}
    found = answer_figures({"a": "dog", "b": "lamp", "c": "lamp, cup", "d": "yes"}, people)
    # leave-one-out: (3 x 2/3 + 7 x 1) / 10; articles and the order of a set do not count
    assert found == {"accuracy": pytest.approx(100 * (0.9 + 1 + 1 + 0) / 4), "questions": 4}


# Options of the command line


def test_every_field_can_be_given_as_an_option_and_is_written_down(tmp_path, data, capsys, no_switch):
    phases = [{**TINY["phases"][0], "epochs": 1}, {**TINY["phases"][1], "epochs": 1}]
    config = write_config(tmp_path / "c.json", phases=phases)
    options = ["--phases.0.lr", "2e-4", "--phases.0.mix.caption", "0.5", "--phases.0.objective.label-smoothing", "0.3",
               "--phases.1.objective.no-repeat-ngram", "2", "--seed", "3", "--backbone.dim", "16"]  # fmt: skip
    assert main([*command(config, data, tmp_path / "out"), *options]) == 0
    written = tmp_path / "out" / RESOLVED
    found = from_json(json.loads(written.read_text()))
    assert found.phases[0].lr == 2e-4 and found.phases[0].mix == {"caption": 0.5}
    assert found.phases[0].objective == CrossEntropy(label_smoothing=0.3) and found.seed == 3
    assert json.loads(written.read_text())["phases"][1]["self_critical"] == {"no_repeat_ngram": 2}
    assert found.backbone is not None and found.backbone.dim == 16 and found.backbone.vocab_size > 0
    weights = [(tmp_path / "out" / phase / "model.safetensors").read_bytes() for phase in "ab"]
    assert main(command(str(written), data, tmp_path / "again")) == 0
    assert [(tmp_path / "again" / phase / "model.safetensors").read_bytes() for phase in "ab"] == weights
    assert (tmp_path / "again" / RESOLVED).read_text() == written.read_text()
    capsys.readouterr()
    assert main(command(str(written), data, tmp_path / "out")) == 0  # the same run, which has ended
    assert "epoch" not in capsys.readouterr().out
    # a refused run leaves what the weights were trained by
    before = written.read_text()
    other = [*command(str(written), data, tmp_path / "out"), "--phases.0.lr", "1e-4"]
    assert "is of another configuration or other data" in fails(other, capsys)
    assert written.read_text() == before


def test_options_may_stand_before_the_configuration(tmp_path, data, capsys, no_switch):
    phase = {**TINY["phases"][0], "epochs": 1}
    config, out = write_config(tmp_path / "c.json", phases=[phase]), tmp_path / "out"
    assert main(["--data", str(data), "--out", str(out), config, "--seed", "5", "--phases.0.lr=1e-4"]) == 0
    found = from_json(json.loads((out / RESOLVED).read_text()))
    assert (found.seed, found.phases[0].lr) == (5, 1e-4)


def test_a_mix_can_be_weighed_by_options(tmp_path, data, capsys, no_switch):
    phase = {**TINY["phases"][0], "mix": {"caption": 1.0, "answer": 1.0}, "epochs": 1}
    config = write_config(tmp_path / "c.json", phases=[phase])
    arguments = [*command(config, data, tmp_path / "out"), "--phases.0.mix.answer", "0.25"]
    assert "0 photos for the task answer are fewer than a batch of 4" in fails(arguments, capsys)  # none is asked about
    written = json.loads((tmp_path / "out" / RESOLVED).read_text())
    assert written["phases"][0]["mix"] == {"caption": 1.0, "answer": 0.25}


def ends(arguments: list[str], capsys, monkeypatch, code: int) -> tuple[str, str]:
    """What a command prints that ends the process."""
    monkeypatch.setenv("COLUMNS", "129")  # as wide as one column of boxes gets
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == code
    return capsys.readouterr()


def texts_of_options(shown: str) -> dict[str, str]:
    """What help says of each option; nothing where there is only a type and a default."""
    found: dict[str, str] = {}
    text = ""
    for part in reversed(" ".join(line.strip(" │╭╮╰╯─") for line in shown.splitlines()).split(" --")[1:]):
        name, _, rest = part.partition(" ")
        if not name.endswith(","):  # --flag, --no-flag and what both mean
            text = re.sub(r"\{.*?\}|\[.*?\]+|\||\b(STR|INT|FLOAT)\b", "", re.split(r"\((?:default|required)", rest)[0])
        found[name.rstrip(",")] = text.strip()
    return found


@pytest.mark.parametrize("name", ["tiny_caption", "tiny_pair", "ofa_caption", "ofa_vqa"])
def test_help_of_a_configuration_lists_its_fields(name, capsys, monkeypatch):
    out, _ = ends([name, "--help"], capsys, monkeypatch, 0)
    config = read_config(name)
    assert f"usage: vlm train {name} " in out
    expected = [f"phases.{i}.{field.name}" for i, phase in enumerate(config.phases) for field in fields(phase)]
    expected = [option for option in expected if not option.endswith((".mix", ".objective"))]
    for i, phase in enumerate(config.phases):
        expected += [f"phases.{i}.mix.{task}" for task in phase.mix]
        expected += [f"phases.{i}.objective.{field.name}" for field in fields(phase.objective)]
    for part in ("backbone", "pair", "tower", "image", "augmentation"):
        if getattr(config, part) is not None:
            expected += [f"{part}.{field.name}" for field in fields(getattr(config, part)) if field.name != "text"]
    expected += ["data", "out", "checkpoint_minutes", "init", "tokenizer", "image_size", "text_tokens", "seed"]
    expected += ["location_tokens", "max_tokens", "ofa_captions", "answer_sets", "val_every", "precision"]
    listed = texts_of_options(out)
    missing = [option for option in expected if option.replace("_", "-") not in listed]
    assert missing == []
    # what a phase sets, and the run, is explained; the weights of a mix are, above them
    silent = [option for option, text in listed.items() if not text]
    groups = ("augmentation.", "tasks.", "repeats.")
    assert [option for option in silent if ".mix." not in option and not option.startswith(groups)] == []


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--phases.0.learning-rate", ""),
        ("--phases.0.lrr", "--phases.0.lr FLOAT"),
        ("--phases.9.lr", "--phases.2.lr FLOAT"),
        ("--phases.0.objective.neighbours", ""),
        ("--phases.0.mix.sing", ""),
        ("--sed", "--seed INT"),
    ],
)
def test_a_mistyped_option_is_one_clear_error(option, hint, capsys, tmp_path, data, monkeypatch):
    arguments = [*command("tiny_caption", data, tmp_path / "out"), option, "1"]
    out, err = ends(arguments, capsys, monkeypatch, 2)
    assert out == "" and f"Unrecognized options: {option}, 1" in err and hint in err and "Traceback" not in err
    assert "run vlm train tiny_caption --help" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--phases.0.epochs", "0", "phase 'frozen': epochs, batch_size, texts_per_photo and chunks must be at least 1"),
        ("--phases.0.lr", "high", "--phases.0.lr: could not convert string to float: 'high'"),
        ("--phases.0.mix.caption", "0", "phase 'frozen': mix={'caption': 0.0} must hold tasks with weights above 0"),
        ("--phases.1.objective.label-smoothing", "2", "cross_entropy: label_smoothing=2.0 is not a share; give 0 to"),
        ("--phases.0.schedule", "steps", "invalid choice 'steps' for argument '--phases.0.schedule'. Expected one of"),
        (
            "--precision",
            "fp8",
            "invalid choice 'fp8' for argument '--precision'. Expected one of ('auto', 'no', 'bf16'",
        ),
        ("--backbone.heads", "3", "Seq2SeqConfig: dim=256 is not a multiple of heads=3"),
        ("--image.size", "0", "ImageTransform: size=0 is not a positive whole number of pixels"),
        ("--seed", "", "--seed"),
    ],
)
def test_an_impossible_value_is_one_clear_error(option, value, message, capsys, tmp_path, data, monkeypatch):
    arguments = [*command("tiny_caption", data, tmp_path / "out"), option, value]
    out, err = ends(arguments, capsys, monkeypatch, 2)
    assert out == "" and message in err and "Traceback" not in err and not (tmp_path / "out").exists()


# Killed and started again


def start(arguments: list[str], log: Path) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with log.open("a") as file:
        return subprocess.Popen(
            [sys.executable, "-m", "tasks.train", *arguments], cwd=ROOT, env=environment, stdout=file, stderr=file
        )


def finish(arguments: list[str], log: Path) -> None:
    assert start(arguments, log).wait(600) == 0, log.read_text()[-2000:]


def kill_in(phase: int, arguments: list[str], out: Path, log: Path) -> dict:
    """Run until the middle of a phase, then SIGKILL; returns the counters of the last checkpoint."""
    process = start(arguments, log)
    checkpoint = out / "checkpoint.safetensors"
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline and process.poll() is None:
        # safetensors opens a file twice, and the run may replace it in between
        with contextlib.suppress(DataError):
            counters = read_counters(checkpoint)
            if counters["phase"] == phase and counters["step"] >= 5:
                process.send_signal(signal.SIGKILL)
                break
        time.sleep(0.005)
    assert process.wait(60) == -signal.SIGKILL, log.read_text()[-2000:]
    return read_counters(checkpoint)


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_killed_in_every_phase_it_ends_with_the_weights_of_an_unbroken_run(tmp_path, questions, precision):
    data, log = questions, tmp_path / "log"
    config = write_config(tmp_path / "c.json", phases=[*TINY["phases"], MIXED], precision=precision)
    finish(command(config, data, tmp_path / "whole"), log)
    arguments = command(config, data, tmp_path / "broken")
    for phase in range(4):  # kept features, self-critical, full, two tasks
        counters = kill_in(phase, arguments, tmp_path / "broken", log)
        assert counters["phase"] == phase and 5 <= counters["step"] < 24  # 6 epochs of 4 batches
    finish(arguments, log)
    for name in (*(f"{phase}/model.safetensors" for phase in "abcd"), "checkpoint.safetensors"):
        whole, broken = (load_file(tmp_path / run / name) for run in ("whole", "broken"))
        assert whole.keys() == broken.keys()
        assert [key for key in whole if not torch.equal(whole[key], broken[key])] == [], name


@pytest.mark.slow
def test_another_configuration_refuses_the_checkpoint(tmp_path, data):
    arguments = command(write_config(tmp_path / "c.json"), data, tmp_path / "out")
    kill_in(0, arguments, tmp_path / "out", tmp_path / "log")
    changed = command(write_config(tmp_path / "other.json", seed=1), data, tmp_path / "out")
    process = start(changed, tmp_path / "other.log")
    assert process.wait(600) == 2
    last = (tmp_path / "other.log").read_text().splitlines()[-1]
    assert last.startswith("error: ") and "is of another configuration or other data; use another --out" in last


# Two processes

SCRIPT = """
import os, sys
import torch
from vlm.train import run

class Trainer(run.Seq2SeqTrainer):
    def run(self):
        super().run()
        torch.save(self.model.state_dict(), self.out / f"rank{self.accelerator.process_index}.pt")

run.Seq2SeqTrainer = Trainer
from tasks.train import main
sys.exit(main(sys.argv[1:]))
"""


def on_two_processes(arguments: list[str], tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    run = subprocess.run(
        [sys.executable, *launch, *arguments],
        cwd=tmp_path, env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
        capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]


@pytest.mark.slow
def test_two_processes_end_with_the_same_weights(tmp_path, questions):
    data, phases = questions, [{**phase, "epochs": 1, "batch_size": 2} for phase in (*TINY["phases"], MIXED)]
    config = write_config(tmp_path / "c.json", phases=phases, precision="no")
    on_two_processes(command(config, data, tmp_path / "out"), tmp_path)
    first, second = (torch.load(tmp_path / "out" / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    for name in "bc":  # and those after each ran
        phase = load_file(tmp_path / "out" / name / "model.safetensors")
        assert not torch.equal(phase["backbone.embed.weight"], first["backbone.embed.weight"].half())


@pytest.mark.slow
def test_two_processes_take_the_step_of_one_with_twice_the_batch(tmp_path):
    # one caption for all photos: equal lengths make the mean of two means the mean of all words
    data = write_data(tmp_path / "data", 8, ["a red dog runs"])
    gradients = {}
    for name, size in (("two", 4), ("one", 8)):
        phase = {
            "name": "a",
            "batch_size": size,
            "texts_per_photo": 1,
            "dropout": 0.0,
            "tower_lr": 1e-4,
            "clip_norm": 1e9,
        }
        config = write_config(tmp_path / f"{name}.json", phases=[phase], precision="no")
        arguments = command(config, data, tmp_path / name)
        if name == "two":
            on_two_processes(arguments, tmp_path)
        else:
            finish(arguments, tmp_path / "log")
        checkpoint = tmp_path / name / "checkpoint.safetensors"
        assert read_counters(checkpoint)["step"] == 1
        # after one step AdamW's first moment is (1 - 0.9) times the gradient
        gradients[name] = {k: v for k, v in load_file(checkpoint).items() if k.endswith(".exp_avg")}
    assert gradients["one"].keys() == gradients["two"].keys()
    for name, gradient in gradients["one"].items():
        limit = 1e-4 * gradient.abs().max().item() + 1e-8
        torch.testing.assert_close(gradients["two"][name], gradient, atol=limit, rtol=1e-3)
