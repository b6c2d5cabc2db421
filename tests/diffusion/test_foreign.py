"""Pipelines of diffusers in their published layouts, built from diffusers' own classes with a few random weights each.

What `vlm generate` draws is compared with what the pipeline itself draws.
"""

import itertools
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
from tasks import adapt, generate
from vlm.diffusion.adapter import HELD_OUT, AdaptedPrompts, TextAdapter, prompt_embeddings, train_adapter
from vlm.errors import ArgumentError, ModelError

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


TEXTS = [
    " ".join(words)
    for words in itertools.product(("a", "red", "for"), ("red", "green", "blue"), ("shoe", "a", "shirt"))
]


def reads_by_t5(folder: Path) -> bool:
    return any(name in str(folder) for name in ("stable_diffusion_3", "flux"))


@pytest.fixture(scope="module")
def adapted(saved, tmp_path_factory, drawing_base) -> Path:
    """The folder of an adapter that was trained by the command."""
    folder = tmp_path_factory.mktemp("adapter")
    (folder / "texts.txt").write_text("\n".join([*TEXTS, "", "red " * 100]))
    argv = ["--model", saved, "--texts", folder / "texts.txt", "--out", folder / "out", "--base", drawing_base]
    steps = 25 if reads_by_t5(saved) else 100  # its 256 tokens take ten times as long as CLIP's
    code = adapt.main([str(part) for part in [*argv, "--steps", steps, "--batch-size", 8, "--lr", 3e-3]])
    assert code == 0
    return folder / "out"


adaptable = pytest.mark.parametrize(
    "saved", [kind for kind in KINDS if kind is not pixart], indirect=True, ids=lambda kind: kind.__name__
)


@adaptable
def test_an_adapter_says_what_the_pipelines_encoder_says(saved, adapted):
    pipe, prompts = vlm.load_pipeline(saved), AdaptedPrompts.load(adapted)
    told = [text for number, text in enumerate(TEXTS) if number % HELD_OUT]
    expected, pooled = prompt_embeddings(pipe, told)
    with torch.no_grad():
        found, found_pooled = prompts.adapter(prompts.encoder.encode(told))
    # of the letters that a random T5 reads at 256 places, few steps teach little
    limit = 1.0 if reads_by_t5(saved) else 0.75
    assert (found - expected).square().sum() < limit * (expected - expected.mean(0)).square().sum()
    assert (found_pooled is None) == (pooled is None)
    if found_pooled is not None and pooled is not None:
        assert (found_pooled - pooled).square().sum() < limit * (pooled - pooled.mean(0)).square().sum()


@adaptable
def test_an_adapter_draws_what_its_embeddings_draw(saved, adapted, tmp_path, capsys):
    argv = ["--model", saved, "--prompt", "a red shoe", "--negative-prompt", "blue", "--adapter", adapted]
    argv += ["--steps", 2, "--guidance-scale", 2, "--size", 32, "--seed", 4, "--out", tmp_path / "out.png"]
    assert generate.main([str(part) for part in argv]) == 0, capsys.readouterr().err
    pipe, prompts = vlm.load_pipeline(saved), AdaptedPrompts.load(adapted)
    options: dict[str, Any] = {"num_inference_steps": 2, "guidance_scale": 2.0, "height": 32, "width": 32}
    given = prompts.arguments(pipe, "a red shoe", "blue")
    expected = pipe(**given, generator=[torch.Generator().manual_seed(4)], **options).images[0]
    assert Image.open(tmp_path / "out.png").tobytes() == expected.tobytes()
    other = prompts.arguments(pipe, "a blue shirt", "blue")
    assert not torch.equal(other["prompt_embeds"], given["prompt_embeds"])
    again = [str(part) for part in ("--again", tmp_path / "out.png", "--out", tmp_path / "again.png")]
    assert generate.main([*again, "--adapter", str(adapted)]) == 0
    assert (tmp_path / "again.png").read_bytes() == (tmp_path / "out.png").read_bytes()
    assert generate.main(again) == 2  # without the adapter these are other weights


def test_adapters_that_cannot_serve(drawing_base, drawing, tmp_path, capsys):
    with pytest.raises(ModelError, match="is not an adapter"):
        AdaptedPrompts.load(tmp_path)
    pipe, encoder = drawing(), drawing().text_encoder
    with pytest.raises(ArgumentError, match="adapters serve pipelines of the kind of Stable Diffusion"):
        train_adapter(pipe, encoder, TEXTS)
    pixart(tmp_path).save_pretrained(tmp_path / "pixart")
    with pytest.raises(ArgumentError, match="not a PixArtSigmaPipeline"):
        train_adapter(vlm.load_pipeline(tmp_path / "pixart"), encoder, TEXTS)
    stable_diffusion(tmp_path).save_pretrained(tmp_path / "sd")
    sd = vlm.load_pipeline(tmp_path / "sd")
    with pytest.raises(ArgumentError, match="2 texts to learn from are fewer than a batch of 32"):
        train_adapter(sd, encoder, ["a shoe", "a shirt", "a red shirt"])
    other = TextAdapter(encoder.dim + 1, encoder.pooled_dim, 16, 32)
    with pytest.raises(ModelError, match="the states of another base"):
        AdaptedPrompts(other, encoder)
    wide = AdaptedPrompts(TextAdapter(encoder.dim, encoder.pooled_dim, 16, 32, pooled=8), encoder)
    with pytest.raises(ArgumentError, match="StableDiffusionPipeline has no pooled embedding"):
        wide.arguments(sd, "a shoe")
    narrow = AdaptedPrompts(TextAdapter(encoder.dim, encoder.pooled_dim, 16, 24), encoder)
    with pytest.raises(ArgumentError, match="makes embeddings of 24 numbers, the pipeline reads 32; train one for it"):
        narrow.arguments(sd, "a shoe")
    argv = ["--model", str(tmp_path / "sd"), "--out", str(tmp_path / "out"), "--base", str(drawing_base)]
    assert adapt.main([*argv, "--texts", str(tmp_path / "gone.txt")]) == 2
    assert "--texts" in capsys.readouterr().err
