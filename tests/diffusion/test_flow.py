"""The training objective, by hand."""

import torch

from vlm.diffusion.flow import add_noise, alignment_loss, draw_shares, velocity_loss
from vlm.models.denoiser import velocity


def test_shares_of_noise_are_logit_normal():
    shares = draw_shares(20_000, 0.5, 0.8, torch.Generator().manual_seed(0))
    logits = shares.logit()
    assert shares.min() > 0 and shares.max() < 1
    assert abs(logits.mean() - 0.5) < 0.03 and abs(logits.std() - 0.8) < 0.03


def test_noise_by_hand():
    clean, noise = torch.ones(2, 1, 1, 1), torch.full((2, 1, 1, 1), -1.0)
    assert add_noise(clean, noise, torch.tensor([0.25, 1.0])).flatten().tolist() == [0.5, -1.0]


def test_the_loss_is_that_of_the_velocities():
    generator = torch.Generator().manual_seed(0)
    clean, noise, predicted = torch.randn(3, 2, 3, 4, 4, generator=generator)
    share = torch.tensor([0.3, 0.9])
    noisy = add_noise(clean, noise, share)
    torch.testing.assert_close(velocity(noisy, clean, share), noise - clean, atol=1e-5, rtol=1e-5)
    expected = (velocity(noisy, predicted, share) - (noise - clean)).square().mean((1, 2, 3))
    torch.testing.assert_close(velocity_loss(predicted, clean, share), expected)


def test_the_loss_by_hand_and_where_there_is_little_noise():
    clean, predicted = torch.zeros(2, 1, 1, 2), torch.full((2, 1, 1, 2), 0.1)
    found = velocity_loss(predicted, clean, torch.tensor([0.5, 0.001]))
    torch.testing.assert_close(found, torch.tensor([0.01 / 0.25, 0.01 / 0.0025]))


def test_alignment_by_hand():
    a = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]])
    b = torch.tensor([[[3.0, 0.0], [5.0, 0.0]]])
    assert alignment_loss(a, b).item() == 0.5
