"""The command that draws: a small head, pipelines of diffusers with small random weights, and OFA's codes."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from tasks import generate
from vlm.diffusion.inputs import generators
from vlm.diffusion.load import save_head
from vlm.files.bundle import Bundle, save_bundle
from vlm.image import ImageTransform
from vlm.tasks import generate_image

ROOT = Path(__file__).parents[2]
FEW = ["--steps", "2"]


@pytest.fixture(scope="session")
def folder(tmp_path_factory, drawing_base, drawing) -> Path:
    """A base model with a head."""
    folder = tmp_path_factory.mktemp("head") / "model"
    shutil.copytree(drawing_base, folder)
    save_head(folder, drawing())
    return folder


def run(*argv: object) -> int:
    return generate.main([str(part) for part in argv])


def test_help_loads_nothing_heavy():
    code = """
import sys
from tasks.__main__ import main
try:
    main(["generate", "--help"])
finally:
    print(sorted({"torch", "diffusers", "numpy"} & set(sys.modules)))
"""
    shown = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert shown.returncode == 0 and shown.stdout.splitlines()[-1] == "[]", shown.stderr
    assert "--guidance-scale" in shown.stdout


def test_one_picture_is_that_of_the_pipeline(folder, tmp_path, capsys):
    out = tmp_path / "new/shoe.png"
    assert run("--model", folder, "--prompt", "a red shoe", "--out", out, "--seed", 7, *FEW) == 0
    assert capsys.readouterr().out.splitlines() == [str(out)]
    pipe = vlm.load_pipeline(folder)
    expected = pipe("a red shoe", num_inference_steps=2, generator=generators(7, 1)).images[0]
    with Image.open(out) as found:
        assert found.tobytes() == expected.tobytes()
        record = json.loads(found.info["vlm"])
    assert {"prompt": "a red shoe", "seed": 7, "steps": 2, "model": str(folder)}.items() <= record.items()
    assert re.fullmatch("[0-9a-f]{64}", record["model_sha256"])


def test_several_pictures_a_sheet_and_each_again(folder, tmp_path, capsys):
    out, prompts = tmp_path / "all.png", tmp_path / "prompts.txt"
    prompts.write_text("a green shirt\n\n")
    assert (
        run("--model", folder, "--prompt", "a shoe", "--prompts", prompts, "--num-images", 2, "--out", out, *FEW) == 0
    )
    paths = [Path(line) for line in capsys.readouterr().out.splitlines()]
    assert [path.name for path in paths] == ["all-1.png", "all-2.png", "all-3.png", "all-4.png", "all.png"]
    pictures = [np.array(Image.open(path)) for path in paths]
    assert len({picture.tobytes() for picture in pictures[:4]}) == 4
    assert pictures[4].shape == (34, 34, 3) and np.array_equal(pictures[4][18:, :16], pictures[2])
    for path in paths[:4]:
        again = tmp_path / "again.png"
        assert run("--again", path, "--out", again) == 0
        assert again.read_bytes() == path.read_bytes()


def test_a_picture_to_start_from_and_a_mask(folder, tmp_path, capsys):
    start, mask, out = tmp_path / "start.png", tmp_path / "mask.png", tmp_path / "out.png"
    Image.radial_gradient("L").convert("RGB").resize((16, 16)).save(start)
    half = Image.new("L", (16, 16))
    half.paste(255, (8, 0, 16, 16))
    half.save(mask)
    same = ["--model", folder, "--prompt", "a shoe", "--init-image", start, "--out", out, *FEW]
    assert run(*same, "--mask", mask) == 0
    found, original = np.array(Image.open(out)), np.array(Image.open(start))
    assert np.array_equal(found[:, :8], original[:, :8]) and not np.array_equal(found[:, 8:], original[:, 8:])
    assert run("--again", out, "--out", tmp_path / "again.png") == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    assert run(*same, "--strength", "0.5") == 0
    half.convert("RGB").save(start)
    assert run("--again", out, "--out", tmp_path / "again.png") == 2
    assert "is not the picture that" in capsys.readouterr().err


def test_the_best_are_kept(folder, tmp_path):
    encoders = vlm.load_encoders(folder)
    same = ["--model", folder, "--prompt", "a red shoe", *FEW]
    assert run(*same, "--num-images", 4, "--out", tmp_path / "all.png") == 0
    pictures = [Image.open(tmp_path / f"all-{i}.png") for i in range(1, 5)]
    with torch.no_grad():
        scores = (encoders.encode_image(pictures) @ encoders.encode_text(["a red shoe"]).T)[:, 0]
    assert run(*same, "--rerank", 4, "--rank-model", folder, "--out", tmp_path / "best.png") == 0
    best = Image.open(tmp_path / "best.png")
    assert best.tobytes() == pictures[int(scores.argmax())].tobytes()


def test_variations_of_a_photo(drawing_base, drawing, tmp_path, capsys):
    folder, photo, out = tmp_path / "model", tmp_path / "photo.png", tmp_path / "out.png"
    shutil.copytree(drawing_base, folder)
    save_head(folder, drawing(prior=True))
    Image.radial_gradient("L").convert("RGB").save(photo)
    same = ["--model", folder, "--variations-of", photo, "--out", out, *FEW]
    assert run(*same, "--seed", 3) == 0
    pipe = vlm.load_pipeline(folder)
    expected = pipe(variations_of=[photo], num_inference_steps=2, generator=generators(3, 1)).images[0]
    assert Image.open(out).tobytes() == expected.tobytes()
    assert run("--again", out, "--out", tmp_path / "again.png") == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()
    # without words, the best is the one most like the photo
    assert run(*same, "--num-images", 4) == 0
    encoders, pictures = vlm.load_encoders(folder), [Image.open(tmp_path / f"out-{i}.png") for i in range(1, 5)]
    with torch.no_grad():
        scores = encoders.encode_image(pictures) @ encoders.encode_image([photo])[0]
    assert run(*same, "--rerank", 4, "--rank-model", folder) == 0
    assert Image.open(out).tobytes() == pictures[int(scores.argmax())].tobytes()
    assert run("--model", folder, "--prompt", "a shoe", "--prior", "--out", out, *FEW) == 0
    expected = pipe("a shoe", use_prior=True, num_inference_steps=2, generator=generators(0, 1)).images[0]
    assert Image.open(out).tobytes() == expected.tobytes()
    Image.linear_gradient("L").convert("RGB").save(photo)
    capsys.readouterr()
    assert run("--again", tmp_path / "again.png", "--out", tmp_path / "x.png") == 2
    assert "is not the picture that" in capsys.readouterr().err


def test_a_preview_shows_the_picture_after_every_step(folder, tmp_path, monkeypatch):
    from tasks import _drawing

    seen, preview = [], tmp_path / "preview.png"
    write = _drawing.write
    monkeypatch.setattr(
        _drawing, "write", lambda path, picture, *rest: (seen.append((path, picture)), write(path, picture, *rest))
    )
    out = tmp_path / "x.png"
    assert run("--model", folder, "--prompt", "a shoe", "--out", out, "--steps", 3, "--preview", preview) == 0
    assert [path for path, _ in seen] == [preview] * 3 + [out]
    pixels = [np.asarray(picture, float) for _, picture in seen]
    assert np.array_equal(pixels[2], pixels[3])  # what is expected after the last step is the picture
    assert not np.array_equal(pixels[0], pixels[1])
    assert Image.open(preview).tobytes() == Image.open(out).tobytes()


def test_a_model_without_a_head_says_what_to_do(drawing_base, tmp_path, capsys):
    assert run("--model", drawing_base, "--prompt", "a shoe", "--out", tmp_path / "x.png") == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "has no diffusion head" in line and "vlm train tiny_diffusion" in line and "--model" in line


def test_tiny_draws_what_it_is_told(tmp_path):
    """Two pictures of each of six prompts, by their pixels: the colour of what is not white, and its shape.

    T-shirts are worn, so they are tall; bags are wider. At least ten of twelve, since some pictures are textures all
    over: by chance that happens in 2 %.
    """
    colours = {"red": 0, "green": 1, "blue": 2}
    prompts = [f"a {colour} {thing}" for colour in colours for thing in ("t-shirt", "handbag")]
    flags = [part for prompt in prompts for part in ("--prompt", prompt)]
    assert run(*flags, "--num-images", 2, "--out", tmp_path / "x.png") == 0
    right = []
    for number, prompt in enumerate(prompt for prompt in prompts for _ in range(2)):
        picture = Image.open(tmp_path / f"x-{number + 1}.png").convert("RGB")
        assert picture.size == (64, 64)
        pixels = np.asarray(picture).astype(float)
        thing = pixels.min(2) < 200  # white ground left out
        assert pixels[thing].mean(0).argmax() == colours[prompt.split()[1]], prompt
        height, width = (np.ptp(np.flatnonzero(thing.mean(axis) > 0.05)) + 1 for axis in (1, 0))
        right.append((height > 1.5 * width) == ("t-shirt" in prompt))
    assert sum(right) >= 10, right


@pytest.mark.parametrize(
    "argv, reason",
    [
        ([], "there is nothing to draw; give --prompt"),
        (["--prompt", " "], "the prompt ' ' is empty"),
        (["--prompt", "red " * 40], "takes 42 tokens, of at most 32"),
        (["--prompts", "gone.txt"], "--prompts 'gone.txt' cannot be read: No such file"),
        (["--prompt", "a", "--steps", "0"], "--steps 0 is below 1"),
        (["--prompt", "a", "--guidance-scale", "-1"], r"--guidance-scale -1\.0 is not 0 or more"),
        (["--prompt", "a", "--size", "30"], "--size 30 is not a multiple of 4 pixels"),
        (["--prompt", "a", "--size", "100000"], "--size 100000 is more than 16 times the 16 pixels of training"),
        (["--prompt", "a", "--num-images", "0"], "--num-images 0 is below 1"),
        (["--prompt", "a", "--num-images", "4", "--rerank", "2"], "--rerank 2 draws fewer"),
        (["--prompt", "a", "--strength", "0.5"], "--strength is for a picture to start from"),
        (["--prompt", "a", "--init-image", __file__], "is not an image"),
        (["--prompt", "a", "--init-image", "gone.jpg"], r"'gone\.jpg' does not exist"),
        (["--prompt", "a", "--cpu-offload"], "--cpu-offload moves parts to a GPU"),
        (["--prompt", "a", "--prior"], "learned to draw from texts alone; leave --prior out"),
        (["--variations-of", str(ROOT / "datasets/sample/cat.jpg")], "from texts alone; leave --variations-of out"),
        (["--variations-of", "gone.jpg"], r"'gone\.jpg' does not exist|from texts alone"),
        (["--prompt", "a", "--prior", "--variations-of", "x.jpg"], "--variations-of and --prior both replace"),
        (["--prompt", "a", "--preview", "picture.jpg"], r"--preview 'picture\.jpg' is not the name of a \.png file"),
        (["--prompt", "a", "--preview", "/dev/null/x.png"], "--preview '/dev/null/x.png' cannot be written"),
        (["--prompt", "a", "--out", "picture.jpg"], r"--out 'picture\.jpg' is not the name of a \.png file"),
        (["--prompt", "a", "--again", "x.png"], "leave --prompt out"),
        (["--again", "gone.png"], "does not exist"),
        (["--again", str(ROOT / "datasets/sample/cat.jpg")], "holds no settings"),
        (["--prompt", "a", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
    ],
)
def test_what_cannot_be_drawn(folder, tmp_path, capsys, argv, reason):
    out = [] if "--out" in argv else ["--out", str(tmp_path / "x.png")]
    options = ["--model", str(folder), *out, *argv]
    assert run(*options) == 2
    (line,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert re.search(reason, line)


@pytest.mark.parametrize("option", ["--init-image", "--mask", "--variations-of"])
def test_nothing_is_drawn_over_what_it_is_drawn_from(folder, tmp_path, capsys, option):
    photo, link = tmp_path / "photo.png", tmp_path / "link.png"
    Image.radial_gradient("L").convert("RGB").resize((16, 16)).save(photo)
    Image.new("L", (16, 16)).save(tmp_path / "start.png")
    link.symlink_to(photo)
    before = photo.read_bytes()
    same = ["--model", folder, "--prompt", "a shoe", option, photo, *FEW]
    if option == "--mask":
        same += ["--init-image", tmp_path / "start.png"]
    numbered = tmp_path / "many-2.png"
    os.link(photo, numbered)
    for more in (["--out", photo], ["--out", link], ["--out", tmp_path / "many.png", "--num-images", 2],
                 ["--out", tmp_path / "x.png", "--preview", photo]):  # fmt: skip
        assert run(*same, *more) == 2
        assert "would be drawn over; name another file" in capsys.readouterr().err
    assert photo.read_bytes() == before and not (tmp_path / "x.png").exists()


def test_a_picture_is_not_drawn_again_over_what_it_started_from(folder, tmp_path, capsys):
    start, out = tmp_path / "start.png", tmp_path / "out.png"
    Image.radial_gradient("L").convert("RGB").save(start)
    assert run("--model", folder, "--prompt", "a shoe", "--init-image", start, "--out", out, *FEW) == 0
    assert run("--again", out, "--out", start) == 2
    assert "would be drawn over" in capsys.readouterr().err
    assert run("--again", out, "--out", tmp_path / "x.png", "--preview", start) == 2
    assert "would be drawn over" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_told_before_drawing(folder, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert run("--model", folder, "--prompt", "a shoe", "--out", tmp_path / "file/x.png") == 2
    err = capsys.readouterr().err
    assert "cannot be written" in err and "%" not in err  # no progress bar


def test_a_picture_of_other_weights_is_not_drawn_again(folder, drawing, tmp_path, capsys):
    assert run("--model", folder, "--prompt", "a shoe", "--out", tmp_path / "x.png", *FEW) == 0
    other = tmp_path / "other"
    shutil.copytree(folder, other)
    save_head(other, drawing("backbone"))
    assert run("--again", tmp_path / "x.png", "--model", other, "--out", tmp_path / "y.png") == 2
    assert "has other weights" in capsys.readouterr().err


def test_image_codes_behind_the_same_command(tmp_path, small_model, capsys):
    from diffusers.models.autoencoders.vq_model import VQModel

    from vlm.convert.vqgan import load_vqgan

    module, tokenizer = small_model([generate_image.PROMPT, " a red bus"], 300, 0, 96, 32, codes=40)
    (tmp_path / "model").mkdir()
    save_bundle(tmp_path / "model", Bundle(module, tokenizer, ImageTransform(64), {"generate_image": {"top_k": 8}}))
    torch.manual_seed(0)
    down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
    VQModel(
        down_block_types=(down, down),
        up_block_types=(up, up),
        block_out_channels=(32, 32),
        latent_channels=8,
        num_vq_embeddings=40,
    ).save_pretrained(tmp_path / "vqgan")
    same = ["--model", tmp_path / "model", "--vqgan", tmp_path / "vqgan", "--prompt", "a red bus"]
    assert run(*same, "--seed", 3, "--out", tmp_path / "bus.png") == 0
    codes = vlm.load(tmp_path / "model").image_codes("a red bus", seed=3)
    (expected,) = load_vqgan(tmp_path / "vqgan").pictures(codes)
    assert Image.open(tmp_path / "bus.png").tobytes() == expected.tobytes()
    assert run(*same, "--guidance-scale", 2, "--out", tmp_path / "x.png") == 2
    assert "--guidance-scale has no meaning" in capsys.readouterr().err
    assert run("--model", "ofa:gone.pt", "--prompt", "a", "--out", tmp_path / "x.png") == 2
    assert "give --vqgan" in capsys.readouterr().err
