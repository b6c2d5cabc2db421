"""Image-text retrieval: recall@k and median rank in both directions.

Images have several captions each (five on Flickr and COCO). From image to text, the rank of an image is that of its
best caption; from text to image, the rank of a caption is that of its image. Ranks begin at 1; recall@k is the share of
ranks up to k. Protocols, as Karpathy and Fei-Fei set them and papers since follow them: the whole test split at once
(1k images of Flickr30k, 5k images of COCO), or COCO 1k, the mean over five folds of 1,000 images in the order of the
split.

Ties are settled against the model: a wrong candidate with the same score as the right one ranks before it. So constant
scores give the worst figure, not a perfect one, and the order of candidates never matters.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import ArgumentError, DataError

RECALLS = (1, 5, 10)
CHUNK = 256  # queries scored together


@dataclass(frozen=True)
class RetrievalRanks:
    """Rank of the right answer of every query, from 1."""

    image_to_text: NDArray[np.int64]  # [images]
    text_to_image: NDArray[np.int64]  # [captions]

    def summary(self) -> dict[str, float]:
        """Recall (fractions) and median rank, as `image_to_text/recall@1`, `text_to_image/median_rank` and so on."""
        figures = {}
        for direction, ranks in [("image_to_text", self.image_to_text), ("text_to_image", self.text_to_image)]:
            figures |= {f"{direction}/recall@{k}": recall(ranks, k) for k in RECALLS}
            figures[f"{direction}/median_rank"] = float(np.median(ranks))
        return figures


def recall(ranks: NDArray[np.int64], k: int) -> float:
    """Share of queries whose right answer is among the first `k`."""
    return float((ranks <= k).mean())


def ranks_from_similarity(similarity: ArrayLike, caption_images: ArrayLike) -> RetrievalRanks:
    """Ranks from all scores at once.

    Args:
        similarity: `[images, captions]`, larger for a better match.
        caption_images: `int[captions]`, the row of the image that each caption describes.

    Raises:
        DataError: shapes do not fit, an image has no caption, or a score is not a number.
    """
    scores = np.asarray(similarity)
    if scores.ndim != 2:
        raise DataError(f"similarity has shape {list(scores.shape)}; it must be [images, captions]")
    owners = _owners(caption_images, *scores.shape)
    images = np.arange(len(scores))
    return RetrievalRanks(
        _ranks(lambda rows: scores[rows], images, owners), _ranks(lambda rows: scores.T[rows], owners, images)
    )


def ranks_from_features(
    image_features: ArrayLike, text_features: ArrayLike, caption_images: ArrayLike
) -> RetrievalRanks:
    """Ranks from features whose inner product is the score; never all scores at once, so that COCO 5k fits.

    Args:
        image_features: `[images, dim]`; of unit length where cosine similarity is meant.
        text_features: `[captions, dim]`.
        caption_images: `int[captions]`, the row of the image that each caption describes.

    Raises:
        DataError: as `ranks_from_similarity`.
    """
    image, text = _features(image_features, "image_features"), _features(text_features, "text_features")
    if image.shape[1] != text.shape[1]:
        raise DataError(f"image features have {image.shape[1]} numbers, text features {text.shape[1]}; use one model")
    owners = _owners(caption_images, len(image), len(text))
    images = np.arange(len(image))
    return RetrievalRanks(
        _ranks(lambda rows: image[rows] @ text.T, images, owners),
        _ranks(lambda rows: text[rows] @ image.T, owners, images),
    )


def fold_summary(
    image_features: ArrayLike, text_features: ArrayLike, caption_images: ArrayLike, folds: int = 5
) -> dict[str, float]:
    """Means over consecutive folds of images, each searched on its own with its captions: COCO 1k with 5 folds.

    Raises:
        ArgumentError: the images do not divide into as many folds.
        DataError: as `ranks_from_similarity`.
    """
    image, text = _features(image_features, "image_features"), _features(text_features, "text_features")
    owners = _owners(caption_images, len(image), len(text))
    if len(image) % folds:
        raise ArgumentError(f"{len(image)} images do not divide into {folds} folds; give all 5,000 images for COCO 1k")
    size = len(image) // folds
    summaries = []
    for fold in range(folds):
        mine = owners // size == fold
        part = ranks_from_features(image[fold * size :][:size], text[mine], owners[mine] - fold * size)
        summaries.append(part.summary())
    return {name: float(np.mean([summary[name] for summary in summaries])) for name in summaries[0]}


def _ranks(scores: Callable[[slice], NDArray], query_images: NDArray, candidate_images: NDArray) -> NDArray[np.int64]:
    """Rank of every query, `int64[queries]`: wrong candidates that score no less than the best right one, plus 1.

    Args:
        scores: the rows of `[queries, candidates]` in a slice of queries.
        query_images: `int64[queries]`.
        candidate_images: `int64[candidates]`; those with the image of the query are right.
    """
    ranks = np.empty(len(query_images), np.int64)
    for start in range(0, len(ranks), CHUNK):
        rows = slice(start, start + CHUNK)
        block = scores(rows)  # [chunk, candidates]
        if np.isnan(block).any():
            raise DataError("a similarity is not a number; check the features for NaN")
        right = query_images[rows, None] == candidate_images
        best = np.where(right, block, -np.inf).max(1, keepdims=True)  # [chunk, 1]
        ranks[rows] = 1 + ((block >= best) & ~right).sum(1)
    return ranks


def _features(values: ArrayLike, name: str) -> NDArray:
    features = np.asarray(values)
    if features.ndim != 2:
        raise DataError(f"{name} has shape {list(features.shape)}; it must be [items, dim]")
    # half precision has so few values that different candidates would tie
    return features.astype(np.float32) if features.dtype == np.float16 else features


def _owners(caption_images: ArrayLike, images: int, captions: int) -> NDArray[np.int64]:
    owners = np.asarray(caption_images)
    if owners.shape != (captions,) or not np.issubdtype(owners.dtype, np.integer):
        raise DataError(
            f"caption_images must be {captions} row numbers, one for each caption; got shape {owners.shape}"
        )
    if not images:
        raise DataError("there are no images to retrieve")
    if owners.min(initial=0) < 0 or owners.max(initial=0) >= images:
        raise DataError(f"caption_images holds {owners.min()} to {owners.max()}; rows of {images} images are from 0")
    without = np.setdiff1d(np.arange(images), owners)
    if len(without):
        raise DataError(f"{len(without)} of {images} images have no caption, such as row {without[0]}; leave them out")
    return owners.astype(np.int64)
