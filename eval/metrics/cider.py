"""CIDEr and CIDEr-D (Vedantam et al. 2015): agreement with the references, rare n-grams counting more.

Each caption becomes four vectors, one for each n-gram order, of n-gram count times log(images / images whose references
hold the n-gram). CIDEr is the mean cosine between a caption and its references. CIDEr-D cannot be gamed by repeating
words: counts are clipped to the reference's, and a caption of another length is worth less (a Gaussian of sigma 6).
Both are scaled by 10.

What pycocoevalcap, and so every published table, prints as "CIDEr" is CIDEr-D. Two habits of that script are kept: the
length of a caption is its number of two-word n-grams, and an n-gram that no reference holds counts as held by one
image's. The figure depends on the whole set of references: the same caption scores differently in a subset.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

from eval.metrics.ngrams import NgramTable
from vlm.errors import DataError

_SIGMA = 6.0


def cider(table: NgramTable, idf: np.ndarray | None = None) -> np.ndarray:
    """CIDEr as first published, without clipping or length penalty.

    Args:
        table: captions and references.
        idf: weight of each n-gram, `float64[grams]`; by default that of the set itself, each hypothesis an image.

    Returns:
        `float64[hypotheses]`; the figure of a set is the mean.
    """
    return _score(table, idf, clipped=False)


def cider_d(table: NgramTable, idf: np.ndarray | None = None) -> np.ndarray:
    """CIDEr-D, the figure that pycocoevalcap calls CIDEr; arguments and result as for `cider`."""
    return _score(table, idf, clipped=True)


def inverse_frequency(frequency: np.ndarray, num_documents: float) -> np.ndarray:
    """log(images / images whose references hold the n-gram), where none counts as one."""
    return math.log(num_documents) - np.log(np.maximum(1.0, frequency))


def _score(table: NgramTable, idf: np.ndarray | None, *, clipped: bool) -> np.ndarray:
    if idf is None:
        idf = inverse_frequency(table.document_frequency(), len(table.hypothesis))
    weights = table.entry_count * idf[table.entry_gram]  # [entries]
    entries = np.arange(len(weights))
    norms = np.sqrt(
        table.sum_by_order(table.entry_caption, entries, weights**2, len(table.words))
    )  # [captions, ORDERS]
    ours, theirs = weights[table.own_entry[table.match_own]], weights[table.match_entry]  # [matches]
    products = (np.minimum(ours, theirs) if clipped else ours) * theirs
    dots = table.sum_by_order(
        table.match_pair, table.match_entry, products, len(table.pair_reference)
    )  # [pairs, ORDERS]
    caption = table.hypothesis[table.pair_hypothesis]  # [pairs]
    lengths = norms[caption] * norms[table.pair_reference]
    similarity = np.divide(dots, lengths, out=np.zeros_like(dots), where=lengths > 0).mean(axis=1)  # [pairs]
    if clipped:
        pairs_of_words = np.maximum(0, table.words - 1)
        gap = pairs_of_words[caption] - pairs_of_words[table.pair_reference]
        similarity *= np.exp(-(gap**2) / (2 * _SIGMA**2))
    return 10 * np.bincount(table.pair_hypothesis, similarity) / np.bincount(table.pair_hypothesis)


class CiderD:
    """CIDEr-D with a given table of document frequencies, as self-critical training scores its samples.

    Args:
        document_frequency: for each n-gram, a tuple of one to four words, the number of images whose references hold
            it.
        num_documents: the number of images that the table was made from.

    Raises:
        DataError: `num_documents` is below 1.
    """

    def __init__(self, document_frequency: Mapping[tuple[str, ...], float], num_documents: float):
        if num_documents < 1:
            raise DataError(f"CIDEr-D: num_documents={num_documents}; give the number of counted images")
        self.document_frequency = document_frequency
        self.num_documents = num_documents

    def score(self, hypotheses: Sequence[Sequence[str]], references: Sequence[Sequence[Sequence[str]]]) -> np.ndarray:
        """Score captions, any number of them for an image.

        Args:
            hypotheses: the words of each caption.
            references: for each caption, the words of its image's references.

        Returns:
            `float64[captions]`.

        Raises:
            DataError: there is no caption, the two lists differ in length, or a caption has no reference.
        """
        table = NgramTable(hypotheses, references)
        frequency = np.fromiter((self.document_frequency.get(gram, 0) for gram in table.grams()), np.float64)
        return cider_d(table, inverse_frequency(frequency, self.num_documents))


class CiderScorer:
    """CIDEr-D of captions of a fixed set of images, with the document frequencies of that set.

    Args:
        references: for each image, the words of its references.

    Raises:
        DataError: there is no image, or one has no reference.
    """

    def __init__(self, references: Sequence[Sequence[Sequence[str]]]):
        self.references = references
        table = NgramTable([()] * len(references), references)
        self.metric = CiderD(
            dict(zip(table.grams(), table.document_frequency().tolist(), strict=True)), len(references)
        )

    def score(self, image: int, words: Sequence[str]) -> float:
        """Score of one caption of image number `image`; many at once are quicker by `scores`."""
        return float(self.scores([image], [words])[0])

    def scores(self, images: Sequence[int], hypotheses: Sequence[Sequence[str]]) -> np.ndarray:
        """Scores of captions, each of the image whose number stands at the same place: `float64[captions]`."""
        return self.metric.score(hypotheses, [self.references[image] for image in images])
