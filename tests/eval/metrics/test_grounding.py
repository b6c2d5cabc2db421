"""Acc@0.5: by hand, against a float32 reading of OFA's evaluation, and against torchvision."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torchvision.ops import box_iou as torchvision_iou

from eval.metrics.grounding import box_iou, grounding_accuracy, grounding_hits
from vlm.errors import DataError


@pytest.mark.parametrize(
    "prediction, target, iou",
    [
        ([0, 0, 10, 10], [0, 0, 10, 10], 1.0),
        ([0, 0, 10, 10], [0, 0, 20, 10], 1 / 2),
        ([0, 0, 10, 10], [5, 5, 15, 15], 25 / 175),
        ([0, 0, 10, 10], [10, 0, 20, 10], 0.0),  # they touch
        ([0, 0, 10, 10], [11, 11, 20, 20], 0.0),  # apart on both axes: the product of the two gaps is positive
        ([10, 10, 0, 0], [0, 0, 10, 10], 0.0),  # corners in the wrong order
        ([5, 5, 5, 5], [0, 0, 10, 10], 0.0),  # no area
        ([2, 3, 4, 7], [0, 0, 10, 10], 8 / 100),
    ],
)
def test_iou_by_hand(prediction, target, iou):
    assert box_iou([prediction], [target])[0] == pytest.approx(iou, abs=1e-6)
    assert box_iou([target], [prediction])[0] == pytest.approx(iou, abs=1e-6)


def test_exactly_one_half():
    """The 1e-6 of OFA's formula counts for boxes of a few pixels; in float32 it vanishes beside larger ones."""
    assert grounding_hits([[0, 0, 10, 10], [0, 0, 1, 1]], [[0, 0, 20, 10], [0, 0, 2, 1]]).tolist() == [True, False]


def test_accuracy():
    targets = [[0, 0, 10, 10]] * 4
    predictions = [[0, 0, 10, 10], [0, 0, 10, 6], [0, 0, 10, 4], [20, 20, 30, 30]]
    assert grounding_accuracy(predictions, targets) == 0.5
    assert grounding_accuracy(predictions, targets, threshold=0.3) == 0.75
    assert grounding_accuracy(predictions, targets, threshold=0.0) == 0.75  # no overlap is never a hit


def ofa_hits(predictions: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """OFA's rule, box by box on float32 scalars."""
    hits = []
    for (px0, py0, px1, py1), (tx0, ty0, tx1, ty1) in zip(predictions, targets, strict=True):
        w = min(px1, tx1) - max(px0, tx0)
        h = min(py1, ty1) - max(py0, ty0)
        iou = w * h / ((px1 - px0) * (py1 - py0) + (tx1 - tx0) * (ty1 - ty0) - w * h + 1e-6)
        hits.append(bool(iou >= 0.5 and w > 0 and h > 0))
    return torch.tensor(hits)


def random_boxes(rng: np.random.Generator, boxes: int) -> np.ndarray:
    """Corners on a coarse grid, so that touching, equal and overlapping boxes are common; some inverted or empty."""
    sizes = rng.choice([1.0, 0.3, 57.0], (boxes, 1)).astype(np.float32)
    return rng.integers(0, 9, (boxes, 4)).astype(np.float32) * sizes


def test_hits_equal_a_reading_of_ofa():
    rng = np.random.default_rng(0)
    predictions, targets = random_boxes(rng, 1500), random_boxes(rng, 1500)
    targets[:800] = np.concatenate(
        [np.minimum(*np.split(targets[:800], 2, 1)), np.maximum(*np.split(targets[:800], 2, 1))], 1
    )
    predictions[:800] = targets[:800] + rng.integers(-1, 2, (800, 4)).astype(np.float32)
    expected = ofa_hits(torch.from_numpy(predictions), torch.from_numpy(targets)).tolist()
    assert 100 < sum(expected) < 1400
    assert grounding_hits(predictions, targets).tolist() == expected


def test_iou_equals_torchvision():
    rng = np.random.default_rng(1)
    corners = rng.uniform(0, 400, (2, 200, 2, 2))
    predictions, targets = np.concatenate([corners.min(2), corners.max(2)], -1)  # ordered corners
    expected = torchvision_iou(torch.from_numpy(predictions), torch.from_numpy(targets)).diagonal()
    torch.testing.assert_close(torch.from_numpy(box_iou(predictions, targets)).double(), expected, atol=1e-5, rtol=1e-4)


coordinate = st.integers(-50, 50)
box = st.tuples(coordinate, coordinate, coordinate, coordinate)


@given(box, box, coordinate)
def test_iou_is_a_fraction_symmetric_and_moves_with_the_boxes(a, b, shift):
    iou = box_iou([a], [b])[0]
    assert 0 <= iou <= 1
    assert box_iou([b], [a])[0] == iou
    assert box_iou([np.add(a, shift)], [np.add(b, shift)])[0] == iou


@pytest.mark.parametrize(
    "predictions, targets, message",
    [
        ([[0, 0, 1, 1]], [[0, 0, 1, 1]] * 2, "1 predicted boxes for 2 targets"),
        ([[0, 0, 1]], [[0, 0, 1, 1]], r"predictions has shape \[1, 3\]"),
        ([[0, 0, 1, 1]], [[0, 0, 1], [0, 0, 1, 1]], "targets: not all boxes have four numbers"),
        ([[0, 0, 1, 1]], [[0, 0, float("nan"), 1]], r"targets\[0\] is .*finite"),
        ([], [], "no boxes"),
    ],
)
def test_errors(predictions, targets, message):
    with pytest.raises(DataError, match=message):
        grounding_accuracy(predictions, targets)
