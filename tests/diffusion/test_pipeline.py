"""The pipeline that draws, against diffusers' own loop and against itself."""

import inspect
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.models.autoencoders.autoencoder_tiny import AutoencoderTiny
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline
from diffusers.schedulers.scheduling_ddim import DDIMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_flow_match_euler_discrete import FlowMatchEulerDiscreteScheduler
from diffusers.schedulers.scheduling_flow_match_heun_discrete import FlowMatchHeunDiscreteScheduler
from PIL import Image

from vlm.diffusion.inputs import generators, picture_tensor
from vlm.errors import ArgumentError, ImageError

PROMPT = "a red shoe"


@pytest.fixture(scope="session")
def pipeline(drawing):
    return drawing()


def draw(pipe, prompt: str | list[str] = PROMPT, seed=3, count=1, **options):
    options = {"num_inference_steps": 4, "output_type": "pt", **options}
    return pipe(prompt, generator=generators(seed, count), **options).images


def photo(side: int = 40) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3)).astype(np.uint8))


def test_the_arguments_are_those_of_diffusers(pipeline):
    ours = inspect.signature(type(pipeline).__call__).parameters
    theirs = inspect.signature(StableDiffusionPipeline.__call__).parameters
    shared = {"prompt", "negative_prompt", "num_inference_steps", "guidance_scale", "generator", "output_type",
              "callback_on_step_end", "height", "width", "num_images_per_prompt", "latents"}  # fmt: skip
    assert shared <= ours.keys() and shared <= theirs.keys()


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_a_picture_is_that_of_a_loop_by_hand(pipeline, scale):
    steps, text = 5, pipeline.text_encoder.encode([PROMPT])
    other = pipeline.text_encoder.encode(["green"])
    scheduler: Any = FlowMatchEulerDiscreteScheduler(shift=1.5)  # diffusers' own loop
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for t in scheduler.timesteps:
            velocity = pipeline.denoiser(x, t, text.states, text.pooled).sample
            if scale != 1:
                without = pipeline.denoiser(x, t, other.states, other.pooled).sample
                velocity = without + scale * (velocity - without)
            x = scheduler.step(velocity, t, x).prev_sample
    found = draw(
        pipeline, num_inference_steps=steps, guidance_scale=scale, negative_prompt="green", output_type="latent"
    )
    torch.testing.assert_close(found, x, atol=1e-4, rtol=1e-4)
    shown = draw(pipeline, num_inference_steps=steps, guidance_scale=scale, negative_prompt="green")
    torch.testing.assert_close(shown, (x / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_one_euler_step_is_the_predicted_picture(pipeline):
    text = pipeline.text_encoder.encode([PROMPT])
    noise = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        clean, _ = pipeline.denoiser.predict(noise, torch.ones(1), text.states, text.pooled)
    found = pipeline(PROMPT, latents=noise, num_inference_steps=1, guidance_scale=1.0, output_type="latent").images
    torch.testing.assert_close(found, clean, atol=1e-5, rtol=1e-5)


def test_the_same_seed_gives_the_same_bytes_alone_and_among_others(pipeline):
    prompts = [PROMPT, "a green shirt for women", "shirt"]
    together = draw(pipeline, prompts, seed=5, count=6, num_images_per_prompt=2)
    assert len(together.unique(dim=0)) == 6
    for number in range(6):
        alone = draw(pipeline, prompts[number // 2], seed=5 + number)
        assert torch.equal(alone[0], together[number])
    batched = draw(pipeline, prompts, seed=5, count=6, num_images_per_prompt=2, pictures_at_once=6)
    torch.testing.assert_close(batched, together, atol=1e-4, rtol=1e-4)


def test_one_generator_draws_a_picture_after_the_other(pipeline):
    both = pipeline([PROMPT] * 2, generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="pt")
    first = pipeline(PROMPT, generator=torch.Generator().manual_seed(1), num_inference_steps=2, output_type="pt")
    assert torch.equal(both.images[0], first.images[0]) and not torch.equal(both.images[0], both.images[1])


@pytest.mark.parametrize(
    "kind, options",
    [
        (FlowMatchEulerDiscreteScheduler, {"shift": 1.0}),
        (FlowMatchHeunDiscreteScheduler, {}),
        (DPMSolverMultistepScheduler, {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}),
    ],
)
def test_solvers_agree_where_there_are_many_steps(drawing, kind, options):
    pipe = drawing()
    pipe.scheduler = kind(**options)
    found = draw(pipe, num_inference_steps=60, guidance_scale=2.0)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler(shift=1.0)
    reference = draw(pipe, num_inference_steps=300, guidance_scale=2.0)
    assert (found - reference).abs().mean() < 0.02 < (found - draw(pipe, seed=4)).abs().mean()


def test_guidance_in_an_interval_is_full_guidance_where_the_interval_is_everything(pipeline):
    plain, whole = draw(pipeline), draw(pipeline, guidance_interval=(0.0, 1.0))
    nowhere = draw(pipeline, guidance_interval=(0.001, 0.002))
    assert torch.equal(plain, whole)
    torch.testing.assert_close(nowhere, draw(pipeline, guidance_scale=1.0))
    assert not torch.allclose(plain, nowhere, atol=1e-3)


def test_a_callback_sees_every_step_and_may_change_the_picture(pipeline):
    seen = []

    def callback(pipe, step, timestep, kwargs):
        seen.append((step, float(timestep), kwargs["latents"].shape))
        return {"latents": torch.zeros_like(kwargs["latents"])} if step == 3 else None

    assert not draw(pipeline, callback_on_step_end=callback, output_type="latent").any()
    assert [step for step, _, _ in seen] == [0, 1, 2, 3] and seen[0][1] == 1000.0
    assert sorted((t for _, t, _ in seen), reverse=True) == [t for _, t, _ in seen]


def test_a_picture_to_start_from_stays_the_more_the_less_the_strength(pipeline):
    start = picture_tensor(photo(), 16, 16) / 2 + 0.5
    far = [
        (draw(pipeline, image=photo(), strength=strength, num_inference_steps=20) - start).abs().mean().item()
        for strength in (0.05, 0.2, 1.0)
    ]
    assert far[0] < far[1] < far[2]  # at small strengths a random network changes little
    assert torch.equal(draw(pipeline, image=photo(), strength=1.0), draw(pipeline))  # from noise alone


def test_a_mask_keeps_what_is_black(pipeline):
    mask = Image.new("L", (40, 40))
    mask.paste(255, (20, 0, 40, 40))
    found = draw(pipeline, image=photo(), mask_image=mask)[0]
    start = picture_tensor(photo(), 16, 16)[0] / 2 + 0.5
    torch.testing.assert_close(found[:, :, :8], start[:, :, :8], atol=1e-5, rtol=0)
    assert (found[:, :, 8:] - start[:, :, 8:]).abs().mean() > 0.05


def test_output_types_and_sizes(pipeline):
    tensor = draw(pipeline, height=16, width=24)[0]
    assert tensor.shape == (3, 16, 24)
    array = draw(pipeline, height=16, width=24, output_type="np")[0]
    (picture,) = draw(pipeline, height=16, width=24, output_type="pil")
    assert picture.size == (24, 16)
    np.testing.assert_allclose(array, tensor.permute(1, 2, 0).numpy())
    np.testing.assert_allclose(np.array(picture), array * 255, atol=0.5)
    found = pipeline(PROMPT, num_inference_steps=4, output_type="pt", return_dict=False, generator=generators(3, 1))
    assert torch.equal(found[0], draw(pipeline))


@pytest.mark.parametrize("kind", ["kl", "tiny"])
def test_latents_of_an_autoencoder(drawing, kind):
    torch.manual_seed(0)
    two: Any = (8, 8)
    if kind == "kl":
        down, up = "DownEncoderBlock2D", "UpDecoderBlock2D"
        blocks: dict[str, Any] = {"down_block_types": (down, down), "up_block_types": (up, up)}
        vae: Any = AutoencoderKL(
            block_out_channels=two, norm_num_groups=4, scaling_factor=0.5, shift_factor=0.1, **blocks
        )
    else:
        blocks = {"num_encoder_blocks": (1, 1), "num_decoder_blocks": (1, 1)}
        vae = AutoencoderTiny(encoder_block_out_channels=two, decoder_block_out_channels=two, **blocks)
    pipe = drawing(vae=vae.eval())
    assert pipe.scale == 2
    latents = draw(pipe, output_type="latent")
    assert latents.shape == (1, 4, 16, 16)
    given = latents / 0.5 + 0.1 if kind == "kl" else latents
    with torch.no_grad():
        expected = (vae.decode(given).sample / 2 + 0.5).clamp(0, 1)
    torch.testing.assert_close(draw(pipe), expected)
    assert draw(pipe, image=photo(), strength=0.3).shape == (1, 3, 32, 32)


def test_texts_are_encoded_once(drawing, monkeypatch):
    pipe, seen = drawing(), []
    encode = pipe.text_encoder.encode
    monkeypatch.setattr(pipe.text_encoder, "encode", lambda texts: seen.append(texts) or encode(texts))
    draw(pipe)
    draw(pipe, seed=4)
    assert seen == [[PROMPT], [""]]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"prompt": ""}, "the prompt is empty"),
        ({"prompt": [PROMPT, " "]}, "the prompt is empty"),
        ({"prompt": []}, "the prompt is empty"),
        ({"prompt": "red " * 40}, r"takes 42 tokens, of at most 32; shorten it"),
        ({"negative_prompt": "red " * 40}, r"takes 42 tokens, of at most 32"),
        ({"negative_prompt": ["a", "b"]}, "2 negative prompts for 1 prompts"),
        ({"num_inference_steps": 0}, "num_inference_steps=0 is below 1"),
        ({"num_images_per_prompt": 0}, "num_images_per_prompt=0 is below 1"),
        ({"guidance_scale": -1.0}, r"guidance_scale=-1\.0 is not 0 or more"),
        ({"guidance_scale": float("nan")}, r"guidance_scale=nan is not 0 or more"),
        ({"guidance_interval": (0.5, 0.2)}, "guidance_interval="),
        ({"height": 30}, "height=30 is not a multiple of 4 pixels, the side of a patch; try 16"),
        ({"width": 0}, "width=0 is not a multiple"),
        ({"strength": 0.5}, "strength is for a picture to start from"),
        ({"mask_image": photo()}, "mask_image is for a picture to start from"),
        ({"image": photo(), "strength": 0.0}, r"strength=0\.0 is not a share"),
        ({"output_type": "jpeg"}, "output_type='jpeg' is unknown"),
        ({"latents": torch.zeros(1, 3, 8, 8)}, "latents have shape"),
    ],
)
def test_what_cannot_be_drawn(pipeline, options, message):
    with pytest.raises(ArgumentError, match=message) as caught:
        pipeline(**{"prompt": PROMPT, "num_inference_steps": 1, **options})
    assert "\n" not in str(caught.value)


def test_other_mistakes_are_one_line_too(drawing):
    pipe = drawing()
    with pytest.raises(ArgumentError, match="2 generators for 1 pictures"):
        draw(pipe, count=2)
    with pytest.raises(ImageError, match="is not an image"):
        draw(pipe, image=b"no picture at all")
    pipe.scheduler = DDIMScheduler()
    with pytest.raises(ArgumentError, match="DDIMScheduler is not set up for flow matching"):
        draw(pipe)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler()
    with torch.no_grad():
        pipe.denoiser.out.bias.fill_(float("nan"))
    with pytest.raises(ArgumentError, match=r"hold NaN or infinite values in torch\.float32"):
        draw(pipe)
