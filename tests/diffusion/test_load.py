"""Pipelines by name: heads of a base model, saved pipelines of ours, and pipelines of diffusers."""

import json
import shutil

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.ddpm.pipeline_ddpm import DDPMPipeline
from diffusers.pipelines.pipeline_utils import DiffusionPipeline

import vlm
from vlm.diffusion.inputs import generators
from vlm.diffusion.load import HEAD, load_head, save_head
from vlm.diffusion.pipeline import TextToImagePipeline
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import load_folder


def picture(pipe) -> torch.Tensor:
    return pipe("a red shoe", num_inference_steps=2, generator=generators(0, 1), output_type="pt").images


@pytest.mark.parametrize("states", ["pair", "backbone"])
def test_a_saved_pipeline_draws_the_same(drawing, tmp_path, states):
    pipe = drawing(states)
    pipe.save_pretrained(tmp_path)
    loaded = vlm.load_pipeline(tmp_path)
    assert isinstance(loaded, TextToImagePipeline) and isinstance(loaded, DiffusionPipeline)
    assert loaded.text_encoder.states == states and loaded.vae is None and loaded.scheduler.config.shift == 1.5
    assert torch.equal(picture(loaded), picture(pipe))
    again = TextToImagePipeline.from_pretrained(tmp_path, local_files_only=True)
    assert torch.equal(picture(again), picture(pipe))
    assert not list(tmp_path.rglob("*.bin"))  # nothing is pickled


def test_a_head_in_the_folder_of_its_base(drawing, drawing_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(drawing_base, folder)
    torch.manual_seed(0)
    options = {"encoder_block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8)}
    vae = AutoencoderTiny(**options, num_encoder_blocks=(1, 1), num_decoder_blocks=(1, 1))  # pyright: ignore
    for pipe in (drawing("backbone"), drawing(vae=vae.eval())):
        save_head(folder, pipe)
        loaded = vlm.load_pipeline(str(folder))
        assert torch.equal(picture(loaded), picture(pipe))
    assert vlm.load(folder).name == str(folder)  # the base works as before


def test_a_model_without_a_head_says_what_to_do(drawing_base):
    message = r"has no diffusion head; train one with `vlm train tiny_diffusion`, or choose a pipeline of diffusers"
    with pytest.raises(ModelError, match=message):
        vlm.load_pipeline(drawing_base)
    with pytest.raises(ModelError, match=message):
        load_head(load_folder(drawing_base))


@pytest.mark.parametrize("name", ["nothing", "./nothing", "ofa:base.pt", __file__])
def test_names_of_nothing(name):
    with pytest.raises(ModelError) as caught:
        vlm.load_pipeline(name)
    assert "\n" not in str(caught.value)


def test_a_head_of_another_base_is_refused(drawing, drawing_base, tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(drawing_base, folder)
    save_head(folder, drawing("backbone"))
    (folder / HEAD / "text.json").write_text('{"states": "pair", "max_tokens": 64}')
    with pytest.raises(ModelError, match="reads text states of 32 and 8 channels; the base model's have 16 and 8"):
        vlm.load_pipeline(folder)
    (folder / HEAD / "denoiser/diffusion_pytorch_model.safetensors").write_bytes(b"damaged")
    with pytest.raises(ModelError, match="is not a diffusion head"):
        vlm.load_pipeline(folder)


def test_a_pipeline_that_does_not_read_text(tmp_path):
    from diffusers.models.unets.unet_2d import UNet2DModel
    from diffusers.schedulers.scheduling_ddpm import DDPMScheduler

    blocks = {"down_block_types": ("DownBlock2D",), "up_block_types": ("UpBlock2D",)}
    unet = UNet2DModel(sample_size=8, block_out_channels=(8,), norm_num_groups=4, **blocks)  # pyright: ignore
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="is a DDPMPipeline, which does not draw from text"):
        vlm.load_pipeline(tmp_path)


def test_an_index_cannot_name_foreign_code(drawing, tmp_path):
    drawing().save_pretrained(tmp_path)
    index = json.loads((tmp_path / "model_index.json").read_text())
    for library in ("os", "antigravity", "vlm.train.run", "../x"):
        (tmp_path / "model_index.json").write_text(json.dumps({**index, "denoiser": [library, "system"]}))
        with pytest.raises(ModelError, match=f"wants code from '{library}' for denoiser"):
            vlm.load_pipeline(tmp_path)
    for content in ("", "[]", "{}"):
        (tmp_path / "model_index.json").write_text(content)
        with pytest.raises(ModelError, match="is not the index of a pipeline"):
            vlm.load_pipeline(tmp_path)


def test_a_device_that_is_not_there(drawing, tmp_path):
    drawing().save_pretrained(tmp_path)
    with pytest.raises(ArgumentError, match="device 'cuda:77' cannot be used"):
        vlm.load_pipeline(tmp_path, device="cuda:77")
    assert next(vlm.load_pipeline(tmp_path, dtype=torch.bfloat16).denoiser.parameters()).dtype == torch.bfloat16
