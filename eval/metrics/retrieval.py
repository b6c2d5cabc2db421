"""Image-text retrieval: recall@k and median rank in both directions.

Images have several captions each (five on Flickr and COCO). From image to text, the rank of an image is that of its
best
caption; from text to image, the rank of a caption is that of its image. Ranks begin at 1; recall@k is the share of
ranks up
to k. Protocols, as Karpathy and Fei-Fei set them and papers since follow them: the whole test split at once (1k
images of
Flickr30k, 5k images of COCO), or COCO 1k, the mean over five folds of 1,000 images in the order of the split.

Ties are settled against the model: a wrong candidate with the same score as the right one ranks before it. So constant
scores give the worst figure, not a perfect one, and the order of candidates never matters.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import ArgumentError, DataError

RECALLS = (1, 5, 10)


@dataclass(frozen=True)
class RetrievalRanks:
    """Rank of the right answer of every query, from 1."""

    image_to_text: NDArray[np.int64]  # [images]
    text_to_image: NDArray[np.int64]  # [captions]

    def summary(self) -> dict[str, float]:
        """`recall@1`, `recall@5`, `recall@10` (fractions) and `median_rank`, under `image_to_text/` and
        `text_to_image/`.
        """
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
    return RetrievalRanks(_ranks(scores, images, owners), _ranks(scores.T, owners, images))


def ranks_from_features(
    image_features: ArrayLike, text_features: ArrayLike, caption_images: ArrayLike, chunk: int = 256
) -> RetrievalRanks:
    """Ranks from features whose inner product is the score, `chunk` queries at a time, so that COCO 5k fits in memory.

    Args:
        image_features: `[images, dim]`; of unit length where cosine similarity is meant.
        text_features: `[captions, dim]`.
        caption_images: `int[captions]`, the row of the image that each caption describes.
        chunk: queries scored together.

    Raises:
        DataError: as `ranks_from_similarity`.
    """
    image, text = _features(image_features, "image_features"), _features(text_features, "text_features")
    if image.shape[1] != text.shape[1]:
        raise DataError(f"image features have {image.shape[1]} numbers, text features {text.shape[1]}; use one model")
    owners = _owners(caption_images, len(image), len(text))
    images = np.arange(len(image))

    def direction(queries: NDArray, query_images: NDArray, candidates: NDArray, candidate_images: NDArray) -> NDArray:
        parts = [slice(start, start + chunk) for start in range(0, len(queries), chunk)]
        return np.concatenate([_ranks(queries[p] @ candidates.T, query_images[p], candidate_images) for p in parts])

    return RetrievalRanks(direction(image, images, text, owners), direction(text, owners, image, images))


def fold_summary(
    image_features: ArrayLike, text_features: ArrayLike, caption_images: ArrayLike, folds: int = 5
) -> dict[str, float]:
    """Figures averaged over consecutive folds of images, each searched on its own with its captions: COCO 1k with 5
    folds.

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


def _ranks(scores: NDArray, query_images: NDArray, candidate_images: NDArray) -> NDArray[np.int64]:
    """`[queries, candidates]` to `int64[queries]`: 1 plus the wrong candidates not below the best right one."""
    if np.isnan(scores).any():
        raise DataError("a similarity is not a number; check the features for NaN")
    right = query_images[:, None] == candidate_images  # bool[queries, candidates]
    best = np.where(right, scores, -np.inf).max(1, keepdims=True)  # [queries, 1]
    return 1 + ((scores >= best) & ~right).sum(1)


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
    if owners.min(initial=0) < 0 or owners.max(initial=0) >= images:
        raise DataError(f"caption_images holds {owners.min()} to {owners.max()}; rows of {images} images are from 0")
    without = np.setdiff1d(np.arange(images), owners)
    if len(without) or not images:
        raise DataError(f"{len(without)} of {images} images have no caption{_first(without)}; leave them out")
    return owners.astype(np.int64)


def _first(rows: NDArray[np.int64]) -> str:
    return f", such as row {rows[0]}" if len(rows) else ""
