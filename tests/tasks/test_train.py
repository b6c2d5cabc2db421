"""`python -m tasks.train` from shards to a captioner: killed, resumed, and on two processes."""

import json
import re
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import pytest
from accelerate.state import AcceleratorState

import vlm
from eval.validation import answer_figures
from tasks import vqa
from tasks.train import main
from vlm.errors import ArgumentError
from vlm.files.lock import locked
from vlm.train.config import TrainConfig, from_json
from vlm.train.loop import RESOLVED
from vlm.train.run import CONFIGS, read_config
from vlm.train.settings import CrossEntropy

ROOT = Path(__file__).resolve().parents[2]
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


def test_a_configuration_by_name_and_by_file(tmp_path, runs):
    assert isinstance(read_config("tiny_caption"), TrainConfig)
    assert read_config(runs.write_config(tmp_path / "mine.json")).tower.name == "test_efficientnet"


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


def test_what_a_user_gets_wrong_is_one_line(tmp_path, data, capsys, no_switch, runs):
    config = runs.write_config(tmp_path / "c.json")
    assert "no configuration 'x'" in fails(runs.command("x", data, tmp_path / "out"), capsys)
    assert "no .tar shards" in fails(runs.command(config, tmp_path / "nothing", tmp_path / "out"), capsys)
    (tmp_path / "file").touch()
    assert "is a file; name a folder" in fails(runs.command(config, data, tmp_path / "file"), capsys)
    assert "cannot be written: Not a directory" in fails(runs.command(config, data, tmp_path / "file" / "out"), capsys)
    silent = runs.write_data(tmp_path / "silent", 2, [" . "])
    assert "no photo to train on with anything for caption among the 2 of" in fails(
        runs.command(config, silent, tmp_path / "out"), capsys
    )
    asked = runs.write_config(tmp_path / "asked.json", phases=[{"name": "a", "mix": {"answer": 1.0}}])
    assert "no photo to train on with anything for answer among the 2 of" in fails(
        runs.command(asked, silent, tmp_path / "out"), capsys
    )
    other = [*runs.command(asked, data, tmp_path / "out"), "--init", "ofa:nowhere.pt"]
    assert "no photo to train on with anything for answer among the 20 of" in fails(other, capsys)
    assert "no OFA checkpoint at 'nowhere.pt'" in fails([config, *other[1:]], capsys)
    (tmp_path / "out").mkdir(exist_ok=True)
    (tmp_path / "out" / "checkpoint.safetensors").write_bytes(b"damaged")
    assert "is not a checkpoint of a training" in fails(runs.command(config, data, tmp_path / "out"), capsys)


def test_shards_to_a_captioner(tmp_path, data, capsys, no_switch, runs):
    config = runs.write_config(tmp_path / "c.json", phases=[{**runs.TINY["phases"][0], "epochs": 1}])
    assert main(runs.command(config, data, tmp_path / "out")) == 0
    assert no_switch == [1]  # memory is kept from the start
    out, _ = capsys.readouterr()
    assert "a epoch 1: set n=2 CIDEr" in out and "BLEU-4" in out
    assert list((tmp_path / "out" / "tensorboard").iterdir())
    model = vlm.load(str(tmp_path / "out" / "a"))
    assert isinstance(model.caption(ROOT / "datasets/sample/cat.jpg"), str)


def test_shards_to_answers(tmp_path, capsys, no_switch, runs):
    asked = [{"question": "What is it?", "answers": ["A dog"] * 3 + ["cat"]}, {"question": "Red?", "answers": ["yes"]}]
    data = runs.write_data(tmp_path / "data", vqa=asked)
    phase = {**runs.TINY["phases"][0], "mix": {"answer": 1.0}, "epochs": 1, "cross_entropy": {"closed_answers": True}}
    config = runs.write_config(tmp_path / "c.json", phases=[phase])
    assert main(runs.command(config, data, tmp_path / "out")) == 0
    assert "a epoch 1: set n=2 accuracy" in (out := capsys.readouterr().out) and "questions 4.0000" in out
    answers = tmp_path / "out" / "a" / "answers.txt"
    assert answers.read_text() == "a dog\ncat\nyes\n"
    again = runs.write_config(tmp_path / "again.json", phases=[{**phase, "name": "b"}], backbone=None)
    assert main([*runs.command(again, data, tmp_path / "more"), "--init", str(tmp_path / "out" / "a")]) == 0
    arguments = ["--model", str(tmp_path / "more" / "b"), "--question", "what is it?", "--answers", str(answers)]
    capsys.readouterr()
    assert vqa.main([*arguments, "--image", str(ROOT / "datasets/sample/cat.jpg")]) == 0
    assert capsys.readouterr().out.strip() in ("a dog", "cat", "yes")
    resolved = tmp_path / "more" / RESOLVED
    assert json.loads(resolved.read_text())["init"] == str(tmp_path / "out" / "a")
    assert main(runs.command(str(resolved), data, tmp_path / "same")) == 0
    first, second = ((tmp_path / name / "b" / "model.safetensors").read_bytes() for name in ("more", "same"))
    assert first == second


def test_shards_to_a_model_for_both(tmp_path, questions, capsys, no_switch, runs):
    phase = {**runs.MIXED, "name": "a", "epochs": 2, "cross_entropy": {"closed_answers": True}}
    config = runs.write_config(tmp_path / "c.json", phases=[phase])
    assert main(runs.command(config, questions, tmp_path / "out")) == 0
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


def test_every_field_can_be_given_as_an_option_and_is_written_down(tmp_path, data, capsys, no_switch, runs):
    phases = [{**runs.TINY["phases"][0], "epochs": 1}, {**runs.TINY["phases"][1], "epochs": 1}]
    config = runs.write_config(tmp_path / "c.json", phases=phases)
    options = ["--phases.0.lr", "2e-4", "--phases.0.mix.caption", "0.5", "--phases.0.objective.label-smoothing", "0.3",
               "--phases.1.objective.no-repeat-ngram", "2", "--seed", "3", "--backbone.dim", "16"]  # fmt: skip
    assert main([*runs.command(config, data, tmp_path / "out"), *options]) == 0
    written = tmp_path / "out" / RESOLVED
    found = from_json(json.loads(written.read_text()))
    assert found.phases[0].lr == 2e-4 and found.phases[0].mix == {"caption": 0.5}
    assert found.phases[0].objective == CrossEntropy(label_smoothing=0.3) and found.seed == 3
    assert json.loads(written.read_text())["phases"][1]["self_critical"] == {"no_repeat_ngram": 2}
    assert found.backbone is not None and found.backbone.dim == 16 and found.backbone.vocab_size > 0
    weights = [(tmp_path / "out" / phase / "model.safetensors").read_bytes() for phase in "ab"]
    assert main(runs.command(str(written), data, tmp_path / "again")) == 0
    assert [(tmp_path / "again" / phase / "model.safetensors").read_bytes() for phase in "ab"] == weights
    assert (tmp_path / "again" / RESOLVED).read_text() == written.read_text()
    capsys.readouterr()
    assert main(runs.command(str(written), data, tmp_path / "out")) == 0  # the same run, which has ended
    assert "epoch" not in capsys.readouterr().out
    # a refused run leaves what the weights were trained by
    before = written.read_text()
    other = [*runs.command(str(written), data, tmp_path / "out"), "--phases.0.lr", "1e-4"]
    assert "was written with another configuration or other data" in fails(other, capsys)
    assert written.read_text() == before


def test_options_may_stand_before_the_configuration(tmp_path, data, capsys, no_switch, runs):
    phase = {**runs.TINY["phases"][0], "epochs": 1}
    config, out = runs.write_config(tmp_path / "c.json", phases=[phase]), tmp_path / "out"
    assert main(["--data", str(data), "--out", str(out), config, "--seed", "5", "--phases.0.lr=1e-4"]) == 0
    found = from_json(json.loads((out / RESOLVED).read_text()))
    assert (found.seed, found.phases[0].lr) == (5, 1e-4)


def test_a_mix_can_be_weighed_by_options(tmp_path, data, capsys, no_switch, runs):
    phase = {**runs.TINY["phases"][0], "mix": {"caption": 1.0, "answer": 1.0}, "epochs": 1}
    config = runs.write_config(tmp_path / "c.json", phases=[phase])
    arguments = [*runs.command(config, data, tmp_path / "out"), "--phases.0.mix.answer", "0.25"]
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


@pytest.mark.parametrize("name", sorted(file.stem for file in CONFIGS.glob("*.json")))
def test_help_of_a_configuration_lists_its_fields(name, capsys, monkeypatch):
    out, _ = ends([name, "--help"], capsys, monkeypatch, 0)
    config = read_config(name)
    assert f"usage: vlm train {name} " in out
    expected = [f"phases.{i}.{field.name}" for i, phase in enumerate(config.phases) for field in fields(phase)]
    expected = [option for option in expected if not option.endswith((".mix", ".sources", ".objective"))]
    for i, phase in enumerate(config.phases):
        expected += [f"phases.{i}.mix.{task}" for task in phase.mix]
        expected += [f"phases.{i}.sources.{task}" for task in phase.sources]
        expected += [f"phases.{i}.objective.{field.name}" for field in fields(phase.objective)]
    for part in ("backbone", "pair", "tower", "image", "augmentation"):
        if getattr(config, part) is not None:
            expected += [f"{part}.{field.name}" for field in fields(getattr(config, part)) if field.name != "text"]
    expected += ["data", "out", "checkpoint_minutes", "init", "tokenizer", "image_size", "text_tokens", "seed"]
    expected += ["location_tokens", "max_tokens", "ofa_captions", "answer_sets", "val_every", "precision"]
    listed = texts_of_options(out)
    missing = [option for option in expected if option.replace("_", "-") not in listed]
    assert missing == []
    # what a phase sets, and the run, is explained; the weights of a mix and its sources are, above them
    silent = [option for option, text in listed.items() if not text]
    groups = re.compile(r"(augmentation|tasks|repeats|grow|phases\.\d+\.(mix|sources))\.")
    assert [option for option in silent if not groups.match(option)] == []


@pytest.mark.parametrize(
    "option, hint",
    [
        ("--phases.0.learning-rate", ""),
        ("--phases.0.lrr", "--phases.0.lr FLOAT"),
        ("--phases.9.lr", "--phases.0.lr FLOAT"),
        ("--phases.0.objective.neighbours", ""),
        ("--phases.0.mix.sing", ""),
        ("--sed", "--seed INT"),
    ],
)
def test_a_mistyped_option_is_one_clear_error(option, hint, capsys, tmp_path, data, monkeypatch, runs):
    arguments = [*runs.command("tiny_caption", data, tmp_path / "out"), option, "1"]
    monkeypatch.setenv("COLUMNS", "129")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and f"unknown option {option}" in err and hint.split(" ")[0] in err and err.count("\n") == 1
    assert "vlm train tiny_caption --help" in err and not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--phases.0.epochs", "0", "phase 'frozen': epochs, batch_size, texts_per_photo and chunks must be at least 1"),
        ("--phases.0.lr", "high", "--phases.0.lr 'high' is not a number"),
        ("--phases.0.mix.caption", "0", "phase 'frozen': mix={'caption': 0.0} must hold tasks with weights above 0"),
        ("--phases.1.objective.label-smoothing", "2", "cross_entropy: label_smoothing=2.0 is not a share; give 0 to"),
        ("--phases.0.schedule", "steps", "--phases.0.schedule steps is unknown; choose one of: cosine"),
        (
            "--precision",
            "fp8",
            "--precision fp8 is unknown; choose one of: auto, no, bf16",
        ),
        ("--backbone.heads", "3", "Seq2SeqConfig: dim=256 is not a multiple of heads=3"),
        ("--image.size", "0", "ImageTransform: size=0 is not a positive whole number of pixels"),
        ("--seed", "", "--seed"),
    ],
)
def test_an_impossible_value_is_one_clear_error(option, value, message, capsys, tmp_path, data, monkeypatch, runs):
    arguments = [*runs.command("tiny_caption", data, tmp_path / "out"), option, value]
    monkeypatch.setenv("COLUMNS", "129")
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1 and not (tmp_path / "out").exists()


def test_a_second_run_is_refused_while_one_writes(tmp_path, data, capsys, no_switch, runs):
    config = runs.write_config(tmp_path / "c.json")
    with locked(tmp_path / "out"):
        err = fails(runs.command(config, data, tmp_path / "out"), capsys)
    assert "another run is writing into" in err and str(tmp_path / "out") in err


@pytest.mark.parametrize("value", ["nan", "-1", "inf"])
def test_a_time_between_checkpoints_that_is_none(tmp_path, data, capsys, runs, value):
    config = runs.write_config(tmp_path / "c.json")
    given = [*runs.command(config, data, tmp_path / "out")[:-2], f"--checkpoint-minutes={value}"]
    assert f"--checkpoint-minutes {value} is no time" in fails(given, capsys)
