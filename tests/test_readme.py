"""The README's commands and code do what it says."""

import contextlib
import io
import re
import shlex
from pathlib import Path

from tasks import caption
from tasks.__main__ import main as commands
from vlm.train.run import read_config

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
COMMANDS = [line for kind, block in BLOCKS if not kind for line in block.splitlines()]


def after(marker: str) -> str:
    """The fenced block after an HTML comment."""
    found = re.search(rf"<!-- {marker} -->\n```\w*\n(.*?)\n```", README, re.DOTALL)
    assert found, f"README has no block after <!-- {marker} -->"
    return found[1]


def test_caption_commands_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    lines = [line for line in COMMANDS if line.startswith("vlm caption")]
    local = [line for line in lines if "models/ofa_base" not in line]  # which is converted by the command above it
    assert len(local) == len(lines) - 1 == 3
    for line in local:
        assert commands(shlex.split(line)[1:]) == 0, line
        assert capsys.readouterr().out, line


def test_the_first_command_prints_what_the_readme_says(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    command = after("caption-command").split("&& ")[-1]
    assert caption.main(shlex.split(command)[3:]) == 0
    assert capsys.readouterr().out.strip() == after("caption-output")


def run(code: str) -> list[str]:
    """The lines that a block of Python prints."""
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(code, "README.md", "exec"), {})
    return out.getvalue().splitlines()


def test_python_code_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    captions, encoders, lora = (block for kind, block in BLOCKS if kind == "python")
    assert len(run(captions)) == 4
    cat, rocket = map(float, re.findall(r"-?\d\.\d+", run(encoders)[0]))
    assert cat > rocket
    losses = list(map(float, run(lora)))
    assert len(losses) == 5 and losses[-1] < losses[0]


def test_search_and_label_commands_run(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    lines = [line for line in COMMANDS if line.startswith(("vlm retrieve", "vlm classify"))]
    assert len(lines) == 4
    places = {
        "PHOTOS/": "datasets/sample",
        "my.index": str(tmp_path / "my.index"),
        "found.html": str(tmp_path / "a.html"),
    }
    for line in lines:
        assert commands([places.get(word, word) for word in shlex.split(line)[1:]]) == 0, line
    out = capsys.readouterr().out
    assert "cat.jpg: cat" in out and "rocket.jpg: rocket" in out and "espresso" in out
    assert (tmp_path / "a.html").stat().st_size > 1000


def test_the_drawing_command_runs(monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(ROOT)
    (line,) = [line for line in COMMANDS if line.startswith("vlm generate")]
    words = [str(tmp_path / word) if word == "bags.png" else word for word in shlex.split(line)[1:]]
    assert commands([*words, "--steps", "1"]) == 0  # fewer than in the README: only the words are tried
    assert len(capsys.readouterr().out.splitlines()) == len(list(tmp_path.glob("*.png"))) == 9


def test_question_commands_run(monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    local = [line for line in COMMANDS if line.startswith("vlm vqa") and "models/ofa_base" not in line]
    assert len(local) == 2
    for line in local:
        assert commands(shlex.split(line)[1:]) == 0, line
    assert capsys.readouterr().out.splitlines()[:2] == ["what animal is it?: cat", "is it a dog?: no"]


def test_the_training_configuration_that_it_names_exists():
    names = re.findall(r"(?:vlm |tasks\.)train (\w+)", README)
    assert len(names) >= 3 and all(read_config(name).phases for name in names)
