"""The transformer that draws, with small random weights."""

import pytest
import torch
from torch import Tensor

from vlm.models.config import DenoiserConfig
from vlm.models.denoiser import (
    Denoised,
    Denoiser,
    from_patches,
    grid_positions,
    rotate,
    rotations,
    sinusoids,
    to_patches,
    velocity,
)

SIZES = DenoiserConfig(size=16, patch_size=4, dim=16, heads=2, layers=2, text_dim=12, pooled_dim=6)


@pytest.fixture
def denoiser() -> Denoiser:
    torch.manual_seed(0)
    model = Denoiser(SIZES)
    for parameter in model.parameters():  # those that start at zero would hide what they multiply
        torch.nn.init.normal_(parameter, std=0.2)
    return model.eval()


def inputs(batch: int = 3, side: int = 16, tokens: int = 5) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    sample = torch.randn(batch, 3, side, side, generator=generator)
    states = torch.randn(batch, tokens, 12, generator=generator)
    return sample, torch.linspace(0.1, 0.9, batch), states, torch.randn(batch, 6, generator=generator)


def test_patches_by_hand():
    picture = torch.arange(16.0).view(1, 1, 4, 4)
    patches = to_patches(picture, 2)
    assert patches.tolist() == [[[0, 1, 4, 5], [2, 3, 6, 7], [8, 9, 12, 13], [10, 11, 14, 15]]]
    wide = torch.randn(2, 3, 4, 8)
    assert torch.equal(from_patches(to_patches(wide, 2), 2, 4, 2), wide)


def test_velocity_by_hand():
    clean, noise = torch.full((2, 1, 1, 1), 0.5), torch.full((2, 1, 1, 1), -1.0)
    share = torch.tensor([0.25, 0.01])
    sample = (1 - share)[:, None, None, None] * clean + share[:, None, None, None] * noise
    # noise - clean, where there is enough noise to divide by; else the share counts as 0.05
    torch.testing.assert_close(velocity(sample, clean, share).flatten(), torch.tensor([-1.5, -1.5 * 0.01 / 0.05]))


def test_positions_of_a_larger_picture_lie_between_those_of_a_smaller():
    small, large = (grid_positions(side, side, torch.device("cpu")).view(side, side, 2) for side in (4, 8))
    torch.testing.assert_close(large.view(4, 2, 4, 2, 2).mean((1, 3)), small)
    assert small[0, 0].tolist() == [-0.375, -0.375] and small[0, 3].tolist() == [-0.375, 0.375]
    assert grid_positions(2, 4, torch.device("cpu"))[0].tolist() == [-0.125, -0.375]


def test_rotated_products_depend_on_differences_of_positions():
    q, k = torch.randn(2, 1, 1, 1, 8, dtype=torch.float64)
    at = torch.tensor([[0.0, 0.0], [1.0, 2.0], [3.0, -1.0], [4.0, 1.0]])
    turns = rotations(at, 8).double()
    turned = [(rotate(q, turns[:, [i]]), rotate(k, turns[:, [i]])) for i in range(4)]
    assert torch.equal(turned[0][0], q)
    torch.testing.assert_close(turned[1][0].norm(), q.norm())
    # 1 - 0 = 3 - 2 in both rows and columns
    torch.testing.assert_close(turned[1][0] @ turned[0][1].mT, turned[3][0] @ turned[2][1].mT, atol=1e-6, rtol=1e-6)


def test_sinusoids_by_hand():
    found = sinusoids(torch.tensor([0.0, 2.0]), 4, 100.0)
    torch.testing.assert_close(found[0], torch.tensor([1.0, 1.0, 0.0, 0.0]))
    # cos 2, cos 0.2, sin 2, sin 0.2
    torch.testing.assert_close(found[1], torch.tensor([-0.41614684, 0.98006658, 0.90929743, 0.19866933]))


def test_an_untrained_network_predicts_a_grey_picture():
    model = Denoiser(SIZES)
    sample, share, states, pooled = inputs()
    clean, _ = model.predict(sample, share, states, pooled)
    assert not clean.any()
    found = model(sample, share * 1000, states, pooled)
    assert isinstance(found, Denoised)
    torch.testing.assert_close(found.sample, sample / share[:, None, None, None])


def test_padding_of_the_text_changes_nothing(denoiser):
    sample, share, states, pooled = inputs()
    mask = torch.arange(5)[None] < torch.tensor([5, 2, 3])[:, None]
    found = denoiser(sample, share * 1000, states, pooled, mask, return_dict=False)[0]
    other = torch.where(mask[..., None], states, 9.0)
    assert torch.equal(denoiser(sample, share * 1000, other, pooled, mask).sample, found)
    for row, words in enumerate([5, 2, 3]):
        alone = denoiser(
            sample[[row]], float(share[row] * 1000), states[[row], :words], pooled[[row]], return_dict=False
        )[0]
        torch.testing.assert_close(alone[0], found[row], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("changed", range(4), ids=["sample", "share", "states", "pooled"])
def test_the_prediction_depends_on_every_input(denoiser, changed):
    before = list(inputs())
    after = [value + 0.1 * torch.rand_like(value) if place == changed else value for place, value in enumerate(before)]
    assert not torch.allclose(denoiser.predict(*after)[0], denoiser.predict(*before)[0], atol=1e-4)


def test_any_size_of_whole_patches_and_the_patches_of_a_layer(denoiser):
    for height, width in ((8, 8), (32, 32), (8, 16)):
        sample = torch.randn(1, 3, height, width)
        _, share, states, pooled = inputs(1)
        clean, inner = denoiser.predict(sample, share, states, pooled, layer=1)
        assert clean.shape == sample.shape and inner.shape == (1, height * width // 16, 16)
    assert denoiser.predict(sample, share, states, pooled)[1] is None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_says_nearly_the_same(denoiser, dtype):
    expected = denoiser.predict(*inputs())[0]
    size = expected.abs().mean()
    with torch.autocast("cpu", dtype=dtype):
        assert (denoiser.predict(*inputs())[0] - expected).abs().mean() < 0.05 * size
    torch.nn.Module.to(denoiser, dtype)
    found = denoiser.predict(*inputs())[0]
    assert found.dtype == dtype and (found - expected).abs().mean() < 0.05 * size


def test_it_is_saved_and_loaded_as_a_model_of_diffusers(denoiser, tmp_path):
    denoiser.save_pretrained(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {"config.json", "diffusion_pytorch_model.safetensors"}
    loaded = Denoiser.from_pretrained(tmp_path, local_files_only=True)
    assert loaded.sizes == SIZES
    assert torch.equal(loaded.predict(*inputs())[0], denoiser.predict(*inputs())[0])


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"size": 30}, "size=30 is not a multiple of patch_size=4"),
        ({"dim": 20}, "dim=20 is not a multiple of"),
        ({"layers": 0}, "layers=0 is not a whole number above 0"),
        ({"dim": 16.0}, r"dim=16\.0 is not a whole number"),
    ],
)
def test_impossible_sizes_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        DenoiserConfig(**{**vars(SIZES), **changes})
