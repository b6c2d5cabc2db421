"""The caption command with the shipped weights, as a user types it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tasks import caption
from tasks.__main__ import commands, main

ROOT = Path(__file__).parents[2]
SAMPLE = ROOT / "datasets" / "sample"


def test_one_photo_prints_one_line(capsys):
    assert caption.main(["--image", str(SAMPLE / "cat.jpg")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert out.count("\n") == 1 and len(out.split()) >= 3 and ":" not in out


def test_folder_in_json_has_each_photo_once(capsys):
    assert caption.main(["--image", str(SAMPLE), "--json", "--num-captions", "2", "--num-beams", "3"]) == 0
    out, err = capsys.readouterr()
    lines = [json.loads(line) for line in out.splitlines()]
    photos = sorted(str(p) for p in SAMPLE.glob("*.jpg"))
    assert [line["path"] for line in lines] == [p for p in photos for _ in range(2)]
    assert all(first["score"] >= second["score"] for first, second in zip(lines[::2], lines[1::2], strict=True))
    assert "photo" in err  # more than a handful: a progress bar


def test_a_bad_file_loses_only_itself(tmp_path, capsys):
    shutil.copy(SAMPLE / "cat.jpg", tmp_path / "a.jpg")
    (tmp_path / "b.jpg").write_bytes((SAMPLE / "cat.jpg").read_bytes()[:3000])
    shutil.copy(SAMPLE / "coffee.jpg", tmp_path / "c.jpg")
    assert caption.main(["--image", str(tmp_path), "--image", str(tmp_path / "gone.jpg")]) == 1
    out, err = capsys.readouterr()
    assert [line.split(":")[0] for line in out.splitlines()] == [str(tmp_path / "a.jpg"), str(tmp_path / "c.jpg")]
    assert "b.jpg" in err and "gone.jpg" in err and len(err.splitlines()) == 2


@pytest.mark.parametrize(
    "options, words",
    [
        (["--model", "nosuch"], ["nosuch", "tiny"]),
        (["--num-captions", "9"], ["--num-captions 9", "--num-beams 5"]),
        (["--num-beams", "0"], ["--num-beams 0"]),
        (["--batch-size", "0"], ["--batch-size 0"]),
        (["--device", "nosuch"], ["nosuch", "cpu"]),
        (["--max-length", "5000"], ["5000"]),
        (["--max-megapixels", "0.001"], ["cat.jpg", "--max-megapixels 0.001"]),
    ],
)
def test_bad_options_give_one_line(options, words, capsys):
    assert caption.main(["--image", str(SAMPLE / "cat.jpg"), *options]) in (1, 2)
    out, err = capsys.readouterr()
    assert out == "" and len(err.splitlines()) == 1 and all(word in err for word in words), err


def test_sampling_depends_on_the_seed_alone(capsys):
    def draw(seed: str) -> str:
        options = ["--sample", "--seed", seed, "--num-captions", "4", "--temperature", "1.5"]
        assert caption.main(["--image", str(SAMPLE / "cat.jpg"), *options]) == 0
        return capsys.readouterr().out

    first = draw("1")
    assert draw("1") == first
    assert draw("2") != first


def test_help_imports_nothing_heavy():
    code = "import sys, tasks.caption as c\ntry: c.main(['--help'])\nexcept SystemExit: pass\n"
    code += "print(sorted(m for m in ('torch', 'timm', 'numpy', 'tokenizers') if m in sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert "--num-beams" in done.stdout and done.stdout.splitlines()[-1] == "[]"


def test_the_console_command_lists_and_runs_the_tasks(capsys):
    assert set(commands()) >= {"caption", "train"}
    assert main(["--help"]) == 0 and "caption" in capsys.readouterr().out
    assert main(["nosuch"]) == 2 and "caption" in capsys.readouterr().err
    assert main(["caption", "--image", str(SAMPLE / "cat.jpg")]) == 0
    assert len(capsys.readouterr().out.split()) >= 3


def test_a_photo_held_upside_down_is_turned(tmp_path, capsys):
    photo = Image.open(SAMPLE / "cat.jpg")
    turned = photo.transpose(Image.Transpose.ROTATE_180)
    exif = turned.getexif()
    exif[0x0112] = 3
    photo.save(tmp_path / "a.png")
    turned.save(tmp_path / "b.png", exif=exif)
    assert caption.main(["--image", str(tmp_path)]) == 0
    first, second = capsys.readouterr().out.splitlines()
    assert first.split(": ")[1] == second.split(": ")[1]
    assert os.path.basename(first.split(": ")[0]) == "a.png"
