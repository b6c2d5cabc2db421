"""Contrastive losses against open_clip's, and large batches against one pass over all of it."""

import math
import os
import subprocess
import sys
from pathlib import Path

import open_clip.loss
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from vlm.train.contrastive import cached_backward, gather
from vlm.train.objectives import sigmoid_loss, softmax_loss


def features(rows: int, dim: int = 8, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return nn.functional.normalize(torch.randn(rows, dim, generator=generator), dim=-1)


@settings(deadline=None)
@given(st.integers(1, 9), st.floats(0.5, 50), st.integers(0, 99))
def test_losses_and_gradients_equal_open_clip(rows, scale, seed):
    for ours, theirs, bias in (
        (softmax_loss, open_clip.loss.ClipLoss(), ()),
        (sigmoid_loss, open_clip.loss.SigLipLoss(), (torch.tensor(-3.0),)),
    ):
        found = []
        for loss in (ours, theirs):
            image, text = features(rows, seed=seed).requires_grad_(), features(rows, seed=seed + 100).requires_grad_()
            value = loss(image, text, torch.tensor(scale), *bias)
            value.backward()
            found.append((value.detach(), image.grad, text.grad))
        torch.testing.assert_close(found[0], found[1], atol=1e-5, rtol=1e-4)


def test_several_sentences_a_photo_by_hand():
    # cosines 1 and 0, scale ln 3: a photo gives its own two sentences 3/8 each, a sentence its photo 3/4
    image = torch.eye(2)
    text = image.repeat_interleave(2, 0)
    expected = (math.log(8 / 3) + math.log(4 / 3)) / 2
    assert softmax_loss(image, text, torch.tensor(math.log(3))).item() == pytest.approx(expected)
    # sigmoid: own pairs at 3/4, the others at 1/2; each sentence has one of both
    expected = math.log(4 / 3) + math.log(2)
    assert sigmoid_loss(image, text, torch.tensor(math.log(3)), torch.tensor(0.0)).item() == pytest.approx(expected)


@pytest.mark.parametrize("count", [1, 3])
def test_repeated_sentences_count_like_one(count):
    image, text, scale = features(4), features(4, seed=1), torch.tensor(9.0)
    repeated = text.repeat_interleave(count, 0)
    # the photo's softmax has `count` times as many terms
    expected = softmax_loss(image, text, scale) + math.log(count) / 2
    torch.testing.assert_close(softmax_loss(image, repeated, scale), expected)


class Pair(nn.Module):
    def __init__(self, dropout: float = 0.0):
        super().__init__()
        torch.manual_seed(0)
        self.image = nn.Sequential(nn.Linear(5, 8), nn.Dropout(dropout))
        self.text = nn.Linear(6, 8)
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, image: Tensor, text: Tensor) -> tuple[Tensor, Tensor]:
        return nn.functional.normalize(self.image(image), dim=-1), nn.functional.normalize(self.text(text), dim=-1)

    def loss(self, image: Tensor, text: Tensor) -> Tensor:
        return softmax_loss(gather(image), gather(text), self.scale.exp())


def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(8, 5, generator=generator), torch.randn(16, 6, generator=generator)


def gradients(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def whole_batch() -> dict[str, Tensor]:
    model = Pair()
    model.loss(*model(*batch())).backward()
    found = gradients(model)
    assert len(found) == 5
    return found


@pytest.mark.parametrize("chunks", [1, 2, 4, 8])
def test_cached_gradients_are_those_of_the_whole_batch(chunks):
    model = Pair()
    value = cached_backward(model, batch(), model.loss, chunks)
    torch.testing.assert_close(gradients(model), whole_batch(), atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(value, model.loss(*model(*batch())).detach())


def test_both_passes_drop_the_same_and_random_numbers_go_on():
    model = Pair(dropout=0.5)
    torch.manual_seed(3)
    cached_backward(model, batch(), model.loss, 2)
    next_number, found = torch.rand(1), gradients(model)
    model.zero_grad()
    torch.manual_seed(3)
    parts = [model(image, text) for image, text in zip(*(t.chunk(2) for t in batch()), strict=True)]
    model.loss(*(torch.cat(kind) for kind in zip(*parts, strict=True))).backward()
    torch.testing.assert_close(found, gradients(model), atol=1e-6, rtol=1e-5)
    assert torch.equal(next_number, torch.rand(1))


SCRIPT = """
import os, sys
import torch
from torch import distributed
sys.path.insert(0, sys.argv[1])
from test_contrastive import Pair, batch, cached_backward, gradients

torch.set_num_threads(1)
distributed.init_process_group("gloo")
rank = distributed.get_rank()
for chunks in (1, 2):
    model = Pair()
    cached_backward(model, [tensor.chunk(2)[rank] for tensor in batch()], model.loss, chunks)
    for parameter in model.parameters():  # what data-parallel training does
        distributed.all_reduce(parameter.grad)
        parameter.grad /= 2
    torch.save(gradients(model), f"{sys.argv[2]}/{rank}-{chunks}.pt")
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_have_the_gradient_of_one_big_batch(tmp_path: Path):
    (tmp_path / "script.py").write_text(SCRIPT)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(tmp_path / "script.py")]
    here = Path(__file__).parent
    run = subprocess.run(
        [sys.executable, *launch, str(here), str(tmp_path)],
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(here.parents[1])},
        capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for file in [tmp_path / f"{rank}-{chunks}.pt" for rank in range(2) for chunks in (1, 2)]:
        torch.testing.assert_close(torch.load(file, weights_only=True), whole_batch(), atol=1e-6, rtol=1e-5)
