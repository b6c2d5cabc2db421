"""Losses against numbers of the original OFA code, and worked out by hand."""

import json
import math
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vlm.convert.ofa.checkpoint import rename
from vlm.models.vision_language import VisionLanguageModel
from vlm.train.objectives import (
    label_smoothed_cross_entropy,
    location_cross_entropy,
    mean_of_others,
    self_critical_loss,
)


def losses(golden: Path) -> dict:
    return json.loads((golden / "nano_golden.json").read_text())["losses"]


@pytest.fixture(scope="module")
def functions(golden) -> dict:
    """The losses of a few logits."""
    return losses(golden)["function_level"]


@pytest.fixture(scope="module")
def scst(golden) -> dict:
    return losses(golden)["scst"]


def forward(
    model: VisionLanguageModel, inputs: dict[str, Tensor], target: Tensor, rows: slice = slice(None)
) -> tuple[Tensor, Tensor]:
    """Logits and labels of every word of `target`, padded with 1, for rows of the loss inputs."""
    data = {name: inputs[name][rows] for name in ("src_tokens", "patch_images", "patch_masks")}
    encoded = model.backbone.encode(data["src_tokens"], model.tower(data["patch_images"]), data["patch_masks"])
    previous = torch.cat([torch.zeros_like(target[:, :1]), target[:, :-1]], 1)
    previous[target == 1] = 1
    words = target != 1
    return model.backbone.logits(model.backbone.decode(previous, encoded))[words], target[words]


def grad_norms(model: VisionLanguageModel, loss: Tensor, names: dict) -> dict[str, float]:
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {name: float(gradients[str(rename(name))].norm()) for name in names}  # type: ignore[union-attr]


@pytest.mark.parametrize("case", ["plain", "eps0"])
def test_label_smoothing_equals_the_original(functions, case):
    logits, target = torch.tensor(functions["inputs"]["logits"]), torch.tensor(functions["inputs"]["target"])
    expected = functions[case]
    mean = label_smoothed_cross_entropy(logits, target, expected["options"]["epsilon"])
    assert mean.item() * expected["ntokens"] == pytest.approx(expected["loss"], abs=1e-4)


def test_closed_answers_equal_the_original_on_logits(functions):
    logits, target = torch.tensor(functions["inputs"]["logits"]), torch.tensor(functions["inputs"]["target"])
    expected, allowed = functions["mask"], torch.tensor(functions["inputs"]["constraint_masks"]).bool()
    mean = label_smoothed_cross_entropy(logits, target, expected["options"]["epsilon"], allowed=allowed)
    assert mean.item() * expected["ntokens"] == pytest.approx(expected["loss"], abs=1e-4)


def test_dropped_words_equal_the_original_on_logits(functions):
    logits, target = torch.tensor(functions["inputs"]["logits"]), torch.tensor(functions["inputs"]["target"])
    expected = functions["drop_worst"]
    mean = label_smoothed_cross_entropy(
        logits, target, expected["options"]["epsilon"], drop_worst=expected["options"]["drop_worst_ratio"]
    )
    assert mean.item() * expected["ntokens"] == pytest.approx(expected["loss"], abs=1e-4)


CASES = ["ls0", "ls0.1", "trie_ls0", "trie_ls0.1", "trie_conf", "conf", "drop_worst0.2", "drop_worst0.2_before"]


def loss_cases(golden: Path) -> dict[str, dict]:
    """Some of the recorded cases are of losses that we do not have."""
    return {name: case for name, case in losses(golden)["cases"].items() if name in CASES}


@pytest.mark.cases(find=loss_cases)
def test_loss_and_gradients_through_the_whole_model_equal_the_original(nano, arrays, case):
    options = case["options"]
    model = nano()
    inputs = arrays("nano/loss_inputs")
    target = inputs[f"target_{options['target']}"]
    logits, labels = forward(model, inputs, target)
    assert len(labels) == case["ntokens"]
    weights = allowed = None
    if "conf" in options:
        weights = torch.tensor(options["conf"])[:, None].expand_as(target)[target != 1]
    if "constraint_masks" in options:
        allowed = inputs[options["constraint_masks"]][target != 1]
    active = options.get("update_num", 0) > options.get("drop_worst_after", 0)
    loss = case["sample_size"] * label_smoothed_cross_entropy(
        logits,
        labels,
        options["label_smoothing"],
        allowed=allowed,
        weights=weights,
        drop_worst=options.get("drop_worst_ratio", 0.0) if active else 0.0,
    )
    assert loss.item() == pytest.approx(case["loss"], rel=1e-5)
    assert grad_norms(model, loss, case["grad_norm"]) == pytest.approx(case["grad_norm"], rel=1e-4)


def test_self_critical_loss_and_gradients_equal_the_original(nano, arrays, scst):
    expected = scst["loss_case"]
    model = nano()
    samples, rewards = expected["samples"], torch.tensor(expected["rewards"])
    longest = max(map(len, samples))
    target = torch.tensor([[*ids, *[1] * (longest - len(ids))] for ids in samples])
    logits, labels = forward(model, arrays("nano/loss_inputs"), target, slice(0, 2))
    assert len(labels) == expected["ntokens"]
    loss = self_critical_loss(logits, labels, rewards[:, None].expand_as(target)[target != 1]) * len(labels)
    assert loss.item() == pytest.approx(expected["loss"], rel=1e-5)
    assert grad_norms(model, loss, expected["grad_norm"]) == pytest.approx(expected["grad_norm"], rel=1e-4)


def test_rewards_equal_the_original(scst):
    rewards = mean_of_others(torch.tensor(scst["cider_d"], dtype=torch.float64).view(-1, 3))
    assert rewards.flatten().tolist() == pytest.approx(scst["reward"])


def test_label_smoothing_by_hand():
    # p = 1/2, 1/4, 1/4; 0.1 of the label's weight goes to the two others, half each
    logits = torch.tensor([[math.log(2), 0.0, 0.0]])
    expected = 0.9 * math.log(2) + 0.1 * math.log(4)
    assert label_smoothed_cross_entropy(logits, torch.tensor([0]), 0.1).item() == pytest.approx(expected)
    assert label_smoothed_cross_entropy(logits, torch.tensor([0])).item() == pytest.approx(math.log(2))
    both = label_smoothed_cross_entropy(logits.expand(2, 3), torch.tensor([0, 1]), 0.1).item()
    second = 0.9 * math.log(4) + 0.05 * math.log(2) + 0.05 * math.log(4)
    assert both == pytest.approx((expected + second) / 2)  # a mean over words


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0, 0.5), st.integers(0, 99))
def test_label_smoothing_equals_its_formula(vocab, words, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(words, vocab, generator=generator) * 3
    labels = torch.randint(vocab, (words,), generator=generator)
    log_probs = logits.double().log_softmax(-1)
    each = smoothing / (vocab - 1)  # SPEC 11.1: (1 - eps - e) * nll + e * (sum over all of the vocabulary)
    nll = -log_probs[range(words), labels]
    expected = ((1 - smoothing - each) * nll - each * log_probs.sum(-1)).mean().item()
    assert label_smoothed_cross_entropy(logits, labels, smoothing).item() == pytest.approx(expected, rel=1e-4)


def test_closed_answers_by_hand():
    # the last entry is no answer: 2/3 and 1/3 are left; a word without a rival costs nothing and pulls at nothing
    logits = torch.tensor([[math.log(2), 0.0, 5.0], [1.0, 2.0, 3.0]], requires_grad=True)
    allowed = torch.tensor([[True, True, False], [False, True, False]])
    loss = label_smoothed_cross_entropy(logits, torch.tensor([0, 1]), 0.1, allowed=allowed)
    assert loss.item() == pytest.approx((0.9 * math.log(1.5) + 0.1 * math.log(3)) / 2, rel=1e-5)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[0, 2] == 0 and (logits.grad[1] == 0).all() and logits.grad[0, 0] < 0


@given(st.integers(2, 9), st.integers(1, 6), st.floats(0, 0.5), st.integers(0, 99))
def test_where_every_word_is_allowed_nothing_changes(vocab, words, smoothing, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(words, vocab, generator=generator) * 3
    labels = torch.randint(vocab, (words,), generator=generator)
    free = label_smoothed_cross_entropy(logits, labels, smoothing).item()
    allowed = torch.ones_like(logits, dtype=torch.bool)
    closed = label_smoothed_cross_entropy(logits, labels, smoothing, allowed=allowed)
    assert closed.item() == pytest.approx(free, rel=1e-4)
    weighed = label_smoothed_cross_entropy(logits, labels, smoothing, weights=torch.full((words,), 0.25))
    assert weighed.item() == pytest.approx(free / 4, rel=1e-4)


def test_the_worst_words_are_dropped_by_hand():
    logits = torch.tensor([[0.0, 0.0], [0.0, math.log(3)], [0.0, math.log(3)]])
    labels = torch.tensor([0, 0, 1])  # probabilities 1/2, 1/4, 3/4
    for share, kept in ((0.0, [2, 4, 4 / 3]), (0.3, [2, 4 / 3]), (0.6, [4 / 3]), (0.99, [4 / 3])):
        expected = sum(map(math.log, kept)) / len(kept)
        assert label_smoothed_cross_entropy(logits, labels, drop_worst=share).item() == pytest.approx(expected)


def test_losses_are_computed_in_float32():
    logits = torch.tensor([[8.0, 7.9, 0.0]]).bfloat16().requires_grad_()
    label, one = torch.tensor([0]), torch.ones(1)
    for loss in (label_smoothed_cross_entropy(logits, label), self_critical_loss(logits, label, one)):
        exact = torch.nn.functional.cross_entropy(logits.detach().double(), label).item()
        assert loss.dtype == torch.float32 and loss.item() == pytest.approx(exact, rel=1e-6)


def test_self_critical_loss_by_hand():
    logits = torch.tensor([[math.log(2), 0.0, 0.0]] * 3, requires_grad=True)
    loss = self_critical_loss(logits, torch.tensor([0, 1, 2]), torch.tensor([0.5, -1.0, 0.0]))
    assert loss.item() == pytest.approx((0.5 * math.log(2) - math.log(4)) / 3)
    loss.backward()
    assert logits.grad is not None
    # a rewarded word becomes likelier, a punished one less likely, and one without advantage stays
    assert logits.grad[0, 0] < 0 < logits.grad[1, 1] and (logits.grad[2] == 0).all()
    assert logits.grad[0].tolist() == pytest.approx([-0.5 / 3 * 0.5, 0.25 / 3 * 0.5, 0.25 / 3 * 0.5])


def test_mean_of_others_by_hand():
    found = mean_of_others(torch.tensor([[1.0, 2.0, 6.0], [3.0, 3.0, 3.0]]))
    assert found.tolist() == [[-3.0, -1.5, 4.5], [0.0, 0.0, 0.0]]


@given(st.lists(st.floats(-10, 10), min_size=2, max_size=6), st.floats(-5, 5))
def test_advantages_sum_to_zero_and_ignore_a_constant(rewards, constant):
    row = torch.tensor([rewards], dtype=torch.float64)
    found = mean_of_others(row)
    assert found.sum().item() == pytest.approx(0, abs=1e-9)
    torch.testing.assert_close(mean_of_others(row + constant), found, atol=1e-9, rtol=0)
    others = [sum(rewards[:i] + rewards[i + 1 :]) / (len(rewards) - 1) for i in range(len(rewards))]
    assert found[0].tolist() == pytest.approx([r - o for r, o in zip(rewards, others, strict=True)], abs=1e-9)


def test_nearby_locations_are_nearly_right():
    torch.manual_seed(0)
    logits = torch.randn(5, 30)
    labels = torch.tensor([12, 10, 19, 2, 15])  # 2: not a location
    found = location_cross_entropy(logits, labels, 10, 20, 1.5)
    log_probs, expected = logits.log_softmax(-1), []
    for row, label in enumerate(labels.tolist()):
        targets = [math.exp(-0.5 * ((i - label) / 1.5) ** 2) for i in range(10, 20)]
        near = -sum(t / sum(targets) * log_probs[row, i].item() for i, t in zip(range(10, 20), targets, strict=True))
        expected.append(near if label >= 10 else -log_probs[row, label].item())
    assert found.item() == pytest.approx(sum(expected) / 5, rel=1e-5)
    exact = nn.functional.cross_entropy(logits, labels)  # the limit of a narrow peak
    torch.testing.assert_close(location_cross_entropy(logits, labels, 10, 20, 1e-3), exact)


def test_the_best_location_is_the_label():
    logits = torch.zeros(1, 30, requires_grad=True)
    optimizer = torch.optim.SGD([logits], lr=5.0)
    for _ in range(200):
        optimizer.zero_grad()
        location_cross_entropy(logits, torch.tensor([14]), 10, 20, 1.0).backward()
        optimizer.step()
    assert logits.argmax().item() == 14 and logits[0, 13] > logits[0, 12] > logits[0, 11] > logits[0, 9]
