"""Pipelines of diffusers in their published layouts, built from diffusers' own classes with a few random weights each.

What `vlm generate` draws is compared with what the pipeline itself draws.
"""

import json
import shutil
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch
from PIL import Image

import vlm
from tasks import generate
from vlm.errors import ModelError

# both packages import their names on first use, which pyright does not follow
diffusers: Any = import_module("diffusers")
transformers: Any = import_module("transformers")
LETTERS = [chr(code) for code in range(97, 123)]


def clip_tokenizer(folder: Path) -> Any:
    """Letter by letter."""
    names = [*LETTERS, *(f"{letter}</w>" for letter in LETTERS), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({name: i for i, name in enumerate(names)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return transformers.CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=16)


def t5_tokenizer() -> Any:
    """Letter by letter."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), ("▁", -1.0), *((letter, -2.0) for letter in LETTERS)]
    words = tokenizers.Tokenizer(tokenizers.models.Unigram(pieces, unk_id=2))
    words.pre_tokenizer = tokenizers.pre_tokenizers.Metaspace()
    words.post_processor = tokenizers.processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return transformers.T5TokenizerFast(tokenizer_object=words, model_max_length=16, extra_ids=0)


def clip_text(kind: Any = None, **changes: Any) -> Any:
    config = transformers.CLIPTextConfig(
        vocab_size=54, hidden_size=32, intermediate_size=37, num_attention_heads=4, num_hidden_layers=2,
        max_position_embeddings=16, bos_token_id=52, eos_token_id=53, projection_dim=32, **changes,
    )  # fmt: skip
    return (kind or transformers.CLIPTextModel)(config).eval()


def t5_text() -> Any:
    config = transformers.T5Config(vocab_size=30, d_model=32, d_ff=37, d_kv=8, num_heads=4, num_layers=2)
    return transformers.T5EncoderModel(config).eval()


def autoencoder(latents: int) -> Any:
    return diffusers.AutoencoderKL(
        block_out_channels=(32,), latent_channels=latents, shift_factor=0.1, scaling_factor=1.5,
        use_quant_conv=False, use_post_quant_conv=False,
    ).eval()  # fmt: skip


def stable_diffusion(folder: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=16, norm_num_groups=2, cross_attention_dim=32,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
    )  # fmt: skip
    return diffusers.StableDiffusionPipeline(
        vae=autoencoder(4), text_encoder=clip_text(), tokenizer=clip_tokenizer(folder), unet=unet,
        scheduler=diffusers.DDIMScheduler(steps_offset=1, clip_sample=False), safety_checker=None,
        feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> Any:
    unet = diffusers.UNet2DConditionModel(
        block_out_channels=(4, 8), layers_per_block=1, sample_size=16, norm_num_groups=2, cross_attention_dim=64,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=80,
        transformer_layers_per_block=(1, 1),
    )  # fmt: skip
    return diffusers.StableDiffusionXLPipeline(
        vae=autoencoder(4), text_encoder=clip_text(),
        text_encoder_2=clip_text(transformers.CLIPTextModelWithProjection), tokenizer=clip_tokenizer(folder),
        tokenizer_2=clip_tokenizer(folder), unet=unet, scheduler=diffusers.EulerDiscreteScheduler(),
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> Any:
    transformer = diffusers.SD3Transformer2DModel(
        sample_size=16, patch_size=1, in_channels=4, out_channels=4, num_layers=1, attention_head_dim=8,
        num_attention_heads=4, joint_attention_dim=32, caption_projection_dim=32, pooled_projection_dim=64,
    )  # fmt: skip
    with_projection = transformers.CLIPTextModelWithProjection
    return diffusers.StableDiffusion3Pipeline(
        transformer=transformer, vae=autoencoder(4), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip_text(with_projection), text_encoder_2=clip_text(with_projection), text_encoder_3=t5_text(),
        tokenizer=clip_tokenizer(folder), tokenizer_2=clip_tokenizer(folder), tokenizer_3=t5_tokenizer(),
    )  # fmt: skip


def flux(folder: Path) -> Any:
    transformer = diffusers.FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=(4, 4, 8),
    )  # fmt: skip
    return diffusers.FluxPipeline(
        transformer=transformer, vae=autoencoder(1), scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
        text_encoder=clip_text(), text_encoder_2=t5_text(), tokenizer=clip_tokenizer(folder),
        tokenizer_2=t5_tokenizer(),
    )  # fmt: skip


def pixart(folder: Path) -> Any:
    transformer = diffusers.PixArtTransformer2DModel(
        sample_size=32, num_layers=2, patch_size=2, attention_head_dim=8, num_attention_heads=3, caption_channels=32,
        in_channels=4, cross_attention_dim=24, out_channels=8, norm_type="ada_norm_single",
    )  # fmt: skip
    return diffusers.PixArtSigmaPipeline(
        transformer=transformer, vae=autoencoder(4), scheduler=diffusers.DDIMScheduler(), text_encoder=t5_text(),
        tokenizer=t5_tokenizer(),
    )  # fmt: skip


KINDS: list[Callable[[Path], Any]] = [stable_diffusion, stable_diffusion_xl, stable_diffusion_3, flux, pixart]


@pytest.fixture(scope="module", params=KINDS, ids=lambda kind: kind.__name__)
def saved(request, tmp_path_factory) -> Path:
    """The folder of a pipeline with random weights."""
    folder = tmp_path_factory.mktemp(request.param.__name__)
    torch.manual_seed(0)
    request.param(folder).save_pretrained(folder / "pipeline")
    return folder / "pipeline"


def test_a_pipeline_draws_by_our_command_as_by_itself(saved, tmp_path, capsys):
    out = tmp_path / "out.png"
    argv = ["--model", saved, "--prompt", "a red shoe", "--steps", 2, "--guidance-scale", 2, "--size", 32, "--seed", 4]
    assert generate.main([str(part) for part in [*argv, "--out", out]]) == 0, capsys.readouterr().err
    pipe = diffusers.DiffusionPipeline.from_pretrained(saved, local_files_only=True)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 32, "width": 32}
    if isinstance(pipe, diffusers.PixArtSigmaPipeline):
        options["use_resolution_binning"] = False
    expected = pipe("a red shoe", generator=[torch.Generator().manual_seed(4)], **options).images[0]  # pyright: ignore
    with Image.open(out) as found:
        assert found.tobytes() == expected.tobytes()
    assert generate.main(["--again", str(out), "--out", str(tmp_path / "again.png")]) == 0
    assert (tmp_path / "again.png").read_bytes() == out.read_bytes()


def test_it_starts_from_a_picture_where_diffusers_can(saved, tmp_path, capsys):
    start, out = tmp_path / "start.png", tmp_path / "out.png"
    Image.radial_gradient("L").save(start)
    argv = ["--model", saved, "--prompt", "a shoe", "--steps", 4, "--size", 32, "--init-image", start, "--out", out]
    code = generate.main([str(part) for part in argv])
    if "pixart" in str(saved):
        assert code == 2 and "cannot start from a picture" in capsys.readouterr().err
    else:
        assert code == 0 and Image.open(out).size == (32, 32), capsys.readouterr().err


def test_sizes_that_it_cannot_make_are_one_line(saved, tmp_path, capsys):
    argv = ["--model", saved, "--prompt", "a shoe", "--steps", 1, "--size", 33, "--out", tmp_path / "x.png"]
    code = generate.main([str(part) for part in argv])
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert code == len(errors) * 2  # some pipelines round the size instead


def test_pickled_weights_are_refused(saved, tmp_path):
    shutil.copytree(saved, tmp_path / "pipeline")
    for file in list((tmp_path / "pipeline").rglob("*.safetensors")):
        file.rename(file.with_suffix(".bin"))
    with pytest.raises(ModelError, match="cannot be loaded as"):
        vlm.load_pipeline(tmp_path / "pipeline")
