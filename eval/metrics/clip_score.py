"""CLIPScore and RefCLIPScore (Hessel et al., 2021): how well texts fit images, from the embeddings of an encoder pair.

The figures depend on the pair: the paper's are of ViT-B/32. Its prefix "A photo depicts", meant for captions, is no
part of the formula; whoever wants it puts it before the texts.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import DataError

WEIGHT = 2.5  # spreads the cosines of matching pairs over 0 to 1


def clip_scores(images: ArrayLike, texts: ArrayLike) -> NDArray[np.float64]:
    """`2.5 max(cos, 0)` of each image and its text.

    Args:
        images: embeddings of any length, `[pairs, dim]`.
        texts: of the same shape.

    Returns:
        `float64[pairs]`, fractions (0.78 is printed as 78).

    Raises:
        DataError: shapes that differ, or a vector without direction.
    """
    return WEIGHT * np.maximum((_unit(images, texts) * _unit(texts, images)).sum(1), 0)


def ref_clip_score(image: ArrayLike, text: ArrayLike, references: ArrayLike) -> float:
    """Harmonic mean of a pair's CLIPScore and the text's largest cosine with a reference caption, section 3.

    Args:
        image: `[dim]`.
        text: `[dim]`.
        references: `[references, dim]`, at least one.

    Returns:
        A fraction; 0 where one of the two is 0.

    Raises:
        DataError: as `clip_scores`.
    """
    captions = np.asarray(references)
    texts = np.broadcast_to(text, captions.shape)
    closest = max(float((_unit(texts, captions) * _unit(captions, texts)).sum(1).max()), 0.0)
    score = float(clip_scores(np.asarray(image)[None], np.asarray(text)[None])[0])
    return 2 * score * closest / (score + closest) if score and closest else 0.0


def _unit(vectors: ArrayLike, others: ArrayLike) -> NDArray[np.float64]:
    """The rows divided by their lengths, checked against what they are compared with."""
    rows = np.asarray(vectors, np.float64)
    if rows.ndim != 2 or rows.shape != np.shape(others):
        raise DataError(f"embeddings of shape {list(rows.shape)} against {list(np.shape(others))}; give pairs")
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise DataError("an embedding is zero or not finite, and has no direction; check the model")
    return rows / lengths
