"""VQGANs of taming-transformers and of diffusers, read as decoders of image codes.

`vqgan_tensors.json` lists the tensors of a small `GumbelVQ` of taming-transformers (32 channels, then twice as many
with attention, 40 codes), `vqgan_golden.npz` what its decoder makes of 6 x 8 codes with the weights of `weights`.
"""

import json
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.convert.vqgan import load_vqgan
from vlm.errors import ArgumentError, ModelError

HERE = Path(__file__).parent
CODES = torch.arange(48).view(1, 6, 8) * 7 % 40


def weights(name: str, shape: list[int]) -> torch.Tensor:
    seed = sum(ord(letter) * (place + 1) for place, letter in enumerate(name)) % 2**31
    values = np.random.RandomState(seed).standard_normal(shape)
    if len(shape) == 1:
        values = 0.1 * values + name.endswith("weight")
    elif "embed" not in name:
        values /= np.sqrt(np.prod(shape[1:]))
    return torch.from_numpy(values.astype(np.float32))


@pytest.fixture(scope="module")
def tensors() -> dict[str, torch.Tensor]:
    shapes = json.loads((HERE / "vqgan_tensors.json").read_text())
    return {name: weights(name, shape) for name, shape in shapes.items()}


@pytest.fixture(scope="module")
def checkpoint(tensors, tmp_path_factory) -> Path:
    """As pytorch_lightning writes it: with one of its classes among the names."""
    callback = type("ModelCheckpoint", (), {"__module__": "pytorch_lightning.callbacks"})
    module = types.ModuleType("pytorch_lightning.callbacks")
    module.ModelCheckpoint = callback  # type: ignore[attr-defined]
    path = tmp_path_factory.mktemp("vqgan") / "last.ckpt"
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, "pytorch_lightning", types.ModuleType("pytorch_lightning"))
        patch.setitem(sys.modules, "pytorch_lightning.callbacks", module)
        torch.save({"epoch": 3, "callbacks": {callback: {"best": 0.5}}, "state_dict": tensors}, path)
    return path


def test_pixels_are_those_of_the_original(checkpoint):
    decoder = load_vqgan(checkpoint)
    golden = torch.from_numpy(np.load(HERE / "vqgan_golden.npz")["pixels"])
    assert decoder.pixels == 2
    with torch.inference_mode():
        torch.testing.assert_close(decoder(CODES)[0], golden, atol=1e-5, rtol=0)
    (picture,) = decoder.pictures(CODES)
    assert picture.size == (16, 12) and picture.mode == "RGB"
    levels = ((golden.clamp(-1, 1) + 1) * 127.5).permute(1, 2, 0).numpy()
    assert np.abs(np.asarray(picture) - levels).max() <= 1.001  # the part behind the point is cut off


def test_a_folder_of_diffusers_decodes_as_diffusers_does(tmp_path):
    from diffusers.models.autoencoders.vq_model import VQModel

    torch.manual_seed(0)
    model = VQModel(
        down_block_types=("DownEncoderBlock2D", "AttnDownEncoderBlock2D"),
        up_block_types=("AttnUpDecoderBlock2D", "UpDecoderBlock2D"),
        block_out_channels=(32, 64),
        latent_channels=8,
        num_vq_embeddings=40,
        lookup_from_codebook=True,
    ).eval()
    model.save_pretrained(tmp_path)
    with torch.inference_mode():
        (expected, _) = model.decode(CODES, force_not_quantize=True, return_dict=False, shape=(1, 6, 8, 8))
        torch.testing.assert_close(load_vqgan(tmp_path)(CODES), expected)


def test_codes_without_a_vector(checkpoint):
    with pytest.raises(ArgumentError, match="go up to 40"):
        load_vqgan(checkpoint).pictures(CODES + 1)


@pytest.mark.parametrize(
    "change, reason",
    [
        (lambda t: t.pop("quantize.embed.weight"), r"lacks quantize\.embed\.weight"),
        (lambda t: t.pop("post_quant_conv.weight"), r"lacks post_quant_conv\.weight"),
        (lambda t: t.pop("decoder.norm_out.bias"), r"it lacks decoder\.conv_norm_out\.bias"),
        (lambda t: t.pop("decoder.up.1.block.0.conv1.bias"), r"lacks 'decoder\.up\.1\.block\.0\.conv1\.bias'"),
        (lambda t: t.update({"decoder.extra.weight": torch.zeros(2)}), r"decoder\.extra\.weight has the wrong"),
        (lambda t: t.update({"decoder.mid.attn_1.q.weight": torch.zeros(2, 2)}), r"attn_1\.q\.weight has the wrong"),
        (lambda t: t.update({"decoder.conv_in.weight": torch.zeros(2)}), "impossible sizes|wrong shape"),
    ],
)
def test_damaged_checkpoints(tensors, tmp_path, change, reason):
    changed = dict(tensors)
    change(changed)
    torch.save({"state_dict": changed}, tmp_path / "last.ckpt")
    with pytest.raises(ModelError, match=rf"last\.ckpt.*{reason}"):
        load_vqgan(tmp_path / "last.ckpt")


def test_what_is_no_checkpoint(tmp_path):
    with pytest.raises(ModelError, match="no VQGAN at"):
        load_vqgan(tmp_path / "gone.ckpt")
    with pytest.raises(ModelError, match="not a folder of diffusers"):
        load_vqgan(tmp_path)
    (tmp_path / "text.ckpt").write_text("no")
    with pytest.raises(ModelError, match=r"text\.ckpt"):
        load_vqgan(tmp_path / "text.ckpt")
    torch.save({"state_dict": {"a": types.SimpleNamespace()}}, tmp_path / "code.ckpt")
    with pytest.raises(ModelError, match="SimpleNamespace"):
        load_vqgan(tmp_path / "code.ckpt")
