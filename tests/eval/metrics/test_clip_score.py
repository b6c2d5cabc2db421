"""CLIPScore worked out by hand."""

import numpy as np
import pytest

from eval.metrics.clip_score import clip_scores, ref_clip_score
from vlm.errors import DataError


def test_cosines_by_hand():
    # lengths do not count; cosines 1, 0.6, 0 and -1, the last of which counts as 0
    images = [[2, 0], [3, 4], [0, 1], [1, 0]]
    texts = [[5, 0], [1, 0], [1, 0], [-1, 0]]
    assert clip_scores(images, texts) == pytest.approx([2.5, 1.5, 0, 0])


def test_references_by_hand():
    # CLIPScore 2.5 * 0.6 = 1.5, closest caption at cosine 0.8: 2 * 1.5 * 0.8 / 2.3
    assert ref_clip_score([3, 4], [1, 0], [[0, 1], [4, 3], [-1, 0]]) == pytest.approx(2.4 / 2.3)


@pytest.mark.parametrize("image, references", [([0, 1], [[1, 0]]), ([1, 0], [[0, 1]]), ([1, 0], [[-1, 0], [-1, 1]])])
def test_either_at_zero_makes_the_mean_zero(image, references):
    assert ref_clip_score(image, [1, 0], references) == 0


@pytest.mark.parametrize(
    "images, texts, message",
    [
        ([[1, 0]], [[1, 0], [0, 1]], r"\[1, 2\] against \[2, 2\]"),
        ([1, 0], [1, 0], r"\[2\] against \[2\]"),
        ([[0, 0]], [[1, 0]], "no direction"),
        ([[1, 0]], [[np.nan, 0]], "no direction"),
    ],
)
def test_unusable_embeddings(images, texts, message):
    with pytest.raises(DataError, match=message):
        clip_scores(images, texts)
