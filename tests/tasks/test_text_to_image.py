"""The command that draws, with a small random model and a small random VQGAN of diffusers."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import vlm
from tasks import text_to_image
from vlm.convert.vqgan import load_vqgan
from vlm.files.bundle import Bundle, save_bundle
from vlm.image import ImageTransform
from vlm.tasks import generate_image


@pytest.fixture(scope="module")
def folder(tmp_path_factory, small_model) -> Path:
    """`model`, which draws 4 x 4 codes of 40, and `vqgan`, which makes 8 x 8 pixels of them."""
    from diffusers.models.autoencoders.vq_model import VQModel

    folder = tmp_path_factory.mktemp("draws")
    module, tokenizer = small_model([generate_image.PROMPT, " a red bus"], 300, 0, 96, 32, codes=40)
    (folder / "model").mkdir()
    save_bundle(folder / "model", Bundle(module, tokenizer, ImageTransform(64), {"generate_image": {"top_k": 8}}))
    torch.manual_seed(0)
    VQModel(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(32, 32),
        latent_channels=8,
        num_vq_embeddings=40,
    ).save_pretrained(folder / "vqgan")
    return folder


def test_pictures_are_those_of_the_codes(folder, tmp_path, capsys):
    argv = ["--model", str(folder / "model"), "--vqgan", str(folder / "vqgan"), "--num-images", "2", "--seed", "3"]
    texts = ["a red bus", "a cat"]
    assert text_to_image.main([*argv, "--out", str(tmp_path / "new"), "--text", texts[0], "--text", texts[1]]) == 0
    paths = capsys.readouterr().out.splitlines()
    assert [Path(path).name for path in paths] == ["1-1.png", "1-2.png", "2-1.png", "2-2.png"]
    model, vqgan = vlm.load(str(folder / "model")), load_vqgan(folder / "vqgan")
    codes = [model.image_codes(text, num_images=2, seed=3, top_k=256) for text in texts]
    assert not torch.equal(codes[0][0], codes[0][1])  # drawn apart
    assert codes[0].shape == (2, 4, 4) and model.run("generate_image", None, [], num_images=2) == []
    expected = [picture for grids in codes for picture in vqgan.pictures(grids)]
    for path, picture in zip(paths, expected, strict=True):
        found = Image.open(path)
        assert found.size == (8, 8) and found.tobytes() == picture.tobytes()


@pytest.mark.parametrize(
    "change, reason",
    [
        ({"--model": "tiny"}, r"'tiny' cannot generate images from text \(it was trained for: "),
        ({"--text": " "}, "nothing to draw"),
        ({"--vqgan": "gone.ckpt"}, r"gone\.ckpt"),
        ({"--num-images": "0"}, "--num-images 0 is below 1"),
    ],
)
def test_what_cannot_be_drawn(folder, tmp_path, capsys, change, reason):
    options = {"--text": "a cat", "--model": str(folder / "model"), "--vqgan": str(folder / "vqgan")}
    options |= {"--out": str(tmp_path)} | change
    assert text_to_image.main([part for option in options.items() for part in option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.search(reason, line)
