"""From vectors of texts to vectors of photos, and pictures that are drawn from them."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge

import vlm
from vlm.diffusion.inputs import generators
from vlm.diffusion.prior import RIDGE, fit_prior
from vlm.errors import ArgumentError, ImageError

PROMPT = "a red shoe"


def unit(rows: np.ndarray) -> np.ndarray:
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def pairs() -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    texts = unit(rng.normal(size=(300, 12)))
    return texts, unit(texts @ rng.normal(size=(12, 12)) + 2 + 0.1 * rng.normal(size=(300, 12)))


def test_the_fit_is_ridge_regression(pairs):
    texts, photos = pairs
    prior = fit_prior(texts, photos)
    expected = Ridge(alpha=RIDGE * len(texts)).fit(texts, photos)
    np.testing.assert_allclose(prior.proj.weight.detach(), expected.coef_, atol=1e-5)
    with torch.no_grad():
        found = prior(torch.from_numpy(texts)).numpy()
    np.testing.assert_allclose(found, unit(expected.predict(texts)), atol=1e-5)
    assert (found * photos).sum(1).mean() > 0.9 > (texts * photos).sum(1).mean()


def test_the_vector_of_a_photo_stands_in_place_of_the_texts(drawing):
    pipe = drawing(prior=True)
    photo = np.random.default_rng(0).integers(0, 256, (40, 40, 3)).astype(np.uint8)
    noise = torch.randn(1, 3, 16, 16)
    empty, vector = pipe.text_encoder.encode([""]), pipe.text_encoder.encode_image([photo])
    same = {"latents": noise, "num_inference_steps": 1, "guidance_scale": 1.0, "output_type": "latent"}
    with torch.no_grad():  # one Euler step is the predicted picture
        expected, _ = pipe.denoiser.predict(noise, torch.ones(1), empty.states, vector)
    torch.testing.assert_close(pipe(variations_of=[photo], **same).images, expected, atol=1e-5, rtol=1e-5)
    text = pipe.text_encoder.encode([PROMPT])
    with torch.no_grad():
        expected, _ = pipe.denoiser.predict(noise, torch.ones(1), text.states, vector)
        by_prior, _ = pipe.denoiser.predict(noise, torch.ones(1), text.states, pipe.prior(text.pooled))
    torch.testing.assert_close(pipe(PROMPT, variations_of=[photo], **same).images, expected, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(pipe(PROMPT, use_prior=True, **same).images, by_prior, atol=1e-5, rtol=1e-5)
    assert not torch.allclose(by_prior, expected, atol=1e-3)


def test_variations_of_several_photos_are_those_of_each(drawing):
    pipe = drawing(prior=True)
    photos = list(np.random.default_rng(0).integers(0, 256, (2, 40, 40, 3)).astype(np.uint8))
    same = {"num_inference_steps": 2, "output_type": "pt"}
    both = pipe(["", "shirt"], variations_of=photos, generator=generators(1, 2), **same).images
    alone = pipe("shirt", variations_of=photos[1:], generator=generators(2, 1), **same).images
    assert torch.equal(both[1:], alone)


def test_a_prior_is_saved_with_its_pipeline(drawing, tmp_path):
    pipe = drawing(prior=True)
    pipe.save_pretrained(tmp_path)
    again = vlm.load_pipeline(tmp_path)
    assert torch.equal(again.prior.proj.weight, pipe.prior.proj.weight)
    drawing().save_pretrained(tmp_path / "without")
    assert vlm.load_pipeline(tmp_path / "without").prior is None


def test_what_cannot_be_drawn(drawing, tmp_path):
    pipe = drawing(prior=True)
    with pytest.raises(ArgumentError, match="give one of them"):
        pipe(PROMPT, variations_of=[tmp_path], use_prior=True)
    with pytest.raises(ArgumentError, match="2 photos for 1 prompts; give one for each"):
        pipe(PROMPT, variations_of=[tmp_path / "a.jpg", tmp_path / "b.jpg"])
    with pytest.raises(ArgumentError):
        pipe(variations_of="a.jpg")
    with pytest.raises(ImageError, match="does not exist"):
        pipe(variations_of=[tmp_path / "a.jpg"])
    with pytest.raises(ArgumentError, match="the prompt is empty"):
        pipe(use_prior=True)
    for options in ({"variations_of": [tmp_path / "a.jpg"]}, {"use_prior": True}):
        with pytest.raises(ArgumentError, match=f"learned from texts alone; leave {next(iter(options))} out"):
            drawing()(PROMPT, **options)
