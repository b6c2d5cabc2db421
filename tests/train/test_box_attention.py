"""Attention drawn into boxes: by hand, against the attention that the model computes, and in training."""

import math
import random
from dataclasses import replace

import pytest
import torch
from accelerate.state import AcceleratorState

from vlm.data.shards import Sample
from vlm.models.attention import Attention, attend
from vlm.tasks import TASKS
from vlm.train.box_attention import box_attention_loss, box_cover, watched
from vlm.train.build import build
from vlm.train.config import Phase, from_json
from vlm.train.loop import Batch
from vlm.train.seq2seq import Seq2SeqTrainer
from vlm.train.settings import CrossEntropy

BACKBONE = {
    "vocab_size": 0, "dim": 32, "ffn_dim": 64, "heads": 2, "encoder_layers": 1, "decoder_layers": 3, "patch_dim": 256,
    "max_source_positions": 64, "max_target_positions": 64, "token_bucket_size": 8, "image_bucket_size": 4,
    "code_grid": 4, "encoder_entangle": True,
}  # fmt: skip
CONFIG = from_json(
    {
        "backbone": BACKBONE, "tower": {"name": "test_efficientnet"}, "image": {"size": 64}, "init": "random",
        "text_tokens": 300, "location_tokens": 16, "precision": "no", "phases": [{"name": "a"}],
    }
)  # fmt: skip
PHRASES = [{"text": "a red dog", "boxes": [[0.0, 0.0, 0.5, 0.5]]}, {"text": "the sky", "boxes": [[0.5, 0.5, 1, 1]]}]
SAMPLE = Sample("p", b"", ("a red dog under the sky",), "set", fields={"phrases": PHRASES})


@pytest.fixture(autouse=True)
def fresh_accelerator():
    AcceleratorState._reset_state(True)


def test_cover_by_hand():
    cover = box_cover(torch.tensor([[0.0, 0.0, 0.75, 0.5], [0.5, 0.5, 0.6, 0.75]]), 2)
    assert cover.tolist() == [[[1.0, 0.5], [0.0, 0.0]], [[0.0, 0.0], [0.0, 1.0]]]  # a small box counts in full


def test_loss_by_hand():
    """One row, two heads, three tokens of the decoder, four patches and a word; the last two tokens write the box."""
    weights = torch.zeros(1, 2, 3, 5)
    weights[0, :, 1] = torch.tensor([[0.5, 0.1, 0.2, 0.1, 0.1], [0.1, 0.3, 0.2, 0.1, 0.3]])
    weights[0, :, 2] = torch.tensor([[0.0, 0.0, 0.0, 0.0, 1.0], [0.2, 0.2, 0.2, 0.2, 0.2]])
    box = torch.tensor([[0.0, 0.0, 1.0, 0.5]])  # the upper two patches
    expected = -(math.log((0.6 + 0.4) / 2) + math.log((0.0 + 0.4) / 2)) / 2
    assert box_attention_loss(weights, torch.tensor([[1, 2]]), box, 4).item() == pytest.approx(expected)


@pytest.mark.parametrize("group, bias_rows", [(1, 1), (3, 1), (3, 6)])
def test_weights_are_those_that_forward_uses(group, bias_rows):
    torch.manual_seed(0)
    attention = Attention(16, 2, 2.0).eval()
    states, x = torch.randn(2, 5, 16), torch.randn(2 * group, 4, 16)
    keys, values = attention.keys_values(states)
    bias = torch.randn(bias_rows, 2, 4, 5)
    weights = attention.weights(x, keys, bias)
    assert weights.shape == (2 * group, 2, 4, 5)
    for row in range(2 * group):  # each row by itself
        own = bias[row : row + 1] if bias_rows > 1 else bias
        q, _ = attention._queries(x[row : row + 1], keys[row // group][None], None)
        k, v = keys[row // group][None], values[row // group][None]
        torch.testing.assert_close(weights[row][None] @ v, attend(q, k, v, own), atol=1e-6, rtol=1e-5)


def trainer(tmp_path) -> Seq2SeqTrainer:
    config = replace(CONFIG, tasks={"ground": {"prefix": "source_only", "prompt": " region of {}"}})
    bundle, config = build(config, [SAMPLE], tmp_path)
    return Seq2SeqTrainer(config, bundle, [SAMPLE] * 2, [], tmp_path, checkpoint_minutes=0)


def step(run: Seq2SeqTrainer, weight: float, spread: float = 0.02) -> tuple[torch.Tensor, dict[str, float]]:
    objective = CrossEntropy(box_attention=weight, location_spread=spread)
    phase = Phase("x", {"ground": 1.0}, batch_size=2, texts_per_photo=2, dropout=0.0, objective=objective)
    run.prepare(phase)
    texts = [example for i in (0, 1) for example in run.texts(i, "ground", phase, random.Random(i))]
    images = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    return run.loss(run.module, run._step(phase, Batch("ground", images, [0, 1], texts), "seed"))


@pytest.mark.parametrize("spread", [0.0, 0.1])
def test_attention_is_drawn_whatever_the_targets_of_the_box(tmp_path, spread):
    run = trainer(tmp_path)
    plain, _ = step(run, 0.0, spread)
    loss, figures = step(run, 2.0, spread)
    assert figures["box_attention"] > 0.5
    assert loss.item() == pytest.approx(plain.item() + 2 * figures["box_attention"], rel=1e-5)


def test_training_draws_attention_into_the_box(tmp_path):
    """What a pass pays attention to, read from the outside, moves into the boxes as the loss says."""
    run = trainer(tmp_path)
    plain, figures = step(run, 0.0)
    assert "box_attention" not in figures
    loss, figures = step(run, 2.0)
    assert loss.item() == pytest.approx(plain.item() + 2 * figures["box_attention"], rel=1e-5)
    # spread evenly over four patches and the start and end token, of which one patch lies inside
    assert figures["box_attention"] == pytest.approx(-math.log(1 / 6), abs=0.3)
    optimizer = torch.optim.AdamW(run.module.parameters(), lr=3e-3)
    for _ in range(60):
        loss, figures = step(run, 2.0)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert figures["box_attention"] < -math.log(0.7)
    assert not any(module._forward_pre_hooks for module in run.model.backbone.decoder.modules())
    task = TASKS["ground"](run.tokenizer, 64, run.config.tasks["ground"])
    example = task.example(task.source(None, "the sky"), run.tokenizer.locations([0.5, 0.5, 1, 1]))
    image = torch.rand(1, 3, 64, 64, generator=torch.Generator().manual_seed(3))
    with torch.no_grad(), watched(run.model.backbone) as seen:
        run.model.eval()(image, torch.tensor([example.source]), torch.tensor([example.previous]))
        (weights,) = seen.weights()  # of the inner one of three layers
    side = math.isqrt(weights.shape[-1] - len(example.source))
    lower_right = weights[0].mean(0)[len(example.prefix) - 1, : side * side].view(side, side)[side // 2 :, side // 2 :]
    assert lower_right.sum() > 0.4  # of a photo that it never saw
