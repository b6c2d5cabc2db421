"""Retrieval ranks: by hand, and against sorting every row."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import retrieval
from eval.metrics.retrieval import fold_summary, ranks_from_features, ranks_from_similarity, recall
from vlm.errors import ArgumentError, DataError

# two images; captions 0 and 2 describe the first, 1 and 3 the second
OWNERS = [0, 1, 0, 1]
SIMILARITY = [
    [0.1, 0.8, 0.5, 0.2],  # own captions 0.1 and 0.5; one wrong caption is better than 0.5
    [0.3, 0.4, 0.9, 0.7],  # own captions 0.4 and 0.7; one wrong caption is better than 0.7
]


def test_by_hand():
    ranks = ranks_from_similarity(SIMILARITY, OWNERS)
    assert ranks.image_to_text.tolist() == [2, 2]
    assert ranks.text_to_image.tolist() == [2, 2, 2, 1]
    summary = ranks.summary()
    assert summary["text_to_image/recall@1"] == 0.25
    assert summary["text_to_image/recall@5"] == 1.0
    assert summary["image_to_text/recall@1"] == 0.0
    assert summary["image_to_text/median_rank"] == 2.0
    assert list(summary) == [
        f"{direction}/{figure}"
        for direction in ("image_to_text", "text_to_image")
        for figure in ("recall@1", "recall@5", "recall@10", "median_rank")
    ]


def test_ties_are_settled_against_the_model():
    ranks = ranks_from_similarity(np.zeros((3, 6)), [0, 0, 1, 1, 2, 2])
    assert ranks.image_to_text.tolist() == [5, 5, 5]  # behind the four wrong captions, not behind its own other one
    assert ranks.text_to_image.tolist() == [3] * 6


def test_recall_and_median():
    ranks = np.array([1, 1, 2, 6, 11, 40])
    assert [recall(ranks, k) for k in (1, 5, 10)] == pytest.approx([2 / 6, 3 / 6, 4 / 6])
    summary = retrieval.RetrievalRanks(ranks, ranks[:5]).summary()
    assert summary["image_to_text/median_rank"] == 4.0
    assert summary["text_to_image/median_rank"] == 2.0


def sorted_rank(scores: np.ndarray, right: np.ndarray) -> int:
    """Sort one row, wrong candidates first among equals; the place of the first right one."""
    order = sorted(range(len(scores)), key=lambda i: (-scores[i], right[i]))
    return next(place for place, i in enumerate(order, 1) if right[i])


def brute_force(similarity: np.ndarray, owners: np.ndarray) -> tuple[list[int], list[int]]:
    images = range(len(similarity))
    to_text = [sorted_rank(similarity[i], owners == i) for i in images]
    to_image = [sorted_rank(similarity[:, j], np.arange(len(similarity)) == owner) for j, owner in enumerate(owners)]
    return to_text, to_image


@given(st.data())
def test_ranks_equal_sorting_every_row(data):
    images = data.draw(st.integers(1, 6))
    extra = data.draw(st.lists(st.integers(0, images - 1), max_size=10))
    owners = np.array(data.draw(st.permutations([*range(images), *extra])))
    values = st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0])  # few, so that ties abound
    row = st.lists(values, min_size=len(owners), max_size=len(owners))
    similarity = np.array(data.draw(st.lists(row, min_size=images, max_size=images)))
    ranks = ranks_from_similarity(similarity, owners)
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == brute_force(similarity, owners)
    order = np.array(data.draw(st.permutations(range(len(owners)))))
    shuffled = ranks_from_similarity(similarity[:, order], owners[order])
    assert shuffled.image_to_text.tolist() == ranks.image_to_text.tolist()
    assert shuffled.text_to_image.tolist() == ranks.text_to_image[order].tolist()


def make_features(rng: np.random.Generator, images: int, dim: int = 16) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Small whole numbers: inner products are exact, so that scores tie and blocks give what one product gives."""
    owners = rng.permutation(np.repeat(np.arange(images), 5))
    image = rng.integers(-2, 3, (images, dim)).astype(np.float32)
    text = image[owners] + rng.integers(-2, 3, (len(owners), dim)).astype(np.float32)
    return image, text, owners


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_features_in_chunks_equal_sorting_every_row(monkeypatch, chunk):
    monkeypatch.setattr(retrieval, "CHUNK", chunk)
    image, text, owners = make_features(np.random.default_rng(0), images=40)
    ranks = ranks_from_features(image, text, owners)
    assert (ranks.image_to_text.tolist(), ranks.text_to_image.tolist()) == brute_force(image @ text.T, owners)
    assert len(set(ranks.text_to_image.tolist())) > 5


def test_half_precision_features_are_widened():
    """Scores 2048 and 2049 are one number in half precision."""
    image = np.array([[32.0, 0.0], [32.0, 0.5]], np.float16)
    text = np.array([[64.0, 0.0], [64.0, 2.0]], np.float16)
    assert ranks_from_features(image, text, [0, 1]).image_to_text.tolist() == [2, 1]


def test_folds_are_searched_on_their_own():
    image, text, owners = make_features(np.random.default_rng(1), images=60)
    parts = []
    for fold in range(3):
        mine = np.flatnonzero(np.isin(owners, np.arange(20 * fold, 20 * fold + 20)))
        similarity = image[20 * fold : 20 * fold + 20] @ text[mine].T
        parts.append(brute_force(similarity, owners[mine] - 20 * fold))
    summary = fold_summary(image, text, owners, folds=3)
    for direction, name in enumerate(["image_to_text", "text_to_image"]):
        by_hand = [np.mean([rank <= 5 for rank in part[direction]]) for part in parts]
        assert summary[f"{name}/recall@5"] == pytest.approx(np.mean(by_hand))
        assert summary[f"{name}/median_rank"] == pytest.approx(np.mean([np.median(part[direction]) for part in parts]))
    assert (
        summary["text_to_image/recall@1"] > ranks_from_features(image, text, owners).summary()["text_to_image/recall@1"]
    )
    with pytest.raises(ArgumentError, match="60 images do not divide into 7 folds"):
        fold_summary(image, text, owners, folds=7)


@pytest.mark.parametrize(
    "similarity, owners, message",
    [
        (np.zeros(4), OWNERS, r"similarity has shape \[4\]"),
        (SIMILARITY, [0, 1, 0], "caption_images must be 4 row numbers"),
        (SIMILARITY, [0.0, 1.0, 0.0, 1.0], "caption_images must be 4 row numbers"),
        (SIMILARITY, [0, 1, 2, 1], "rows of 2 images"),
        (SIMILARITY, [0, 0, 0, 0], "1 of 2 images have no caption, such as row 1"),
        (np.full((2, 4), np.nan), OWNERS, "not a number"),
        (np.zeros((0, 0)), np.zeros(0, int), "no images"),
    ],
)
def test_errors(similarity, owners, message):
    with pytest.raises(DataError, match=message):
        ranks_from_similarity(similarity, owners)


def test_feature_errors():
    with pytest.raises(DataError, match="image features have 3 numbers, text features 4; use one model"):
        ranks_from_features(np.ones((2, 3)), np.ones((2, 4)), [0, 1])
    with pytest.raises(DataError, match=r"text_features has shape \[4\]"):
        ranks_from_features(np.ones((2, 4)), np.ones(4), [0, 1])
