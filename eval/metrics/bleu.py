"""Corpus BLEU-1..4 with the figures of pycocoevalcap's `Bleu(4)`.

BLEU (Papineni et al. 2002) multiplies the geometric mean of clipped n-gram precisions with a brevity penalty. The
official script's own choices are kept to the digit: the reference length of an image is the one closest to its
caption's (the shorter of two equally close), and counts are kept from zero by 1e-15 above and 1e-9 below the fraction
line, so that an image without a single four-gram in common scores almost, but not exactly, zero.
"""

import numpy as np

from eval.metrics.ngrams import ORDERS, NgramTable

_ABOVE, _BELOW = 1e-15, 1e-9


def bleu_statistics(table: NgramTable) -> np.ndarray:
    """What BLEU needs to know of each hypothesis.

    Rows can be summed over any images, a bootstrap resample say, and given to `bleu_of`.

    Returns:
        `int64[hypotheses, 10]`: matched n-grams of each order, n-grams of each order, words, words of the closest
        reference.
    """
    # an n-gram is matched as often as any one reference holds it, but not more often than the hypothesis does
    most = np.zeros(len(table.own_entry), dtype=np.int64)
    np.maximum.at(most, table.match_own, table.entry_count[table.match_entry])
    matched = np.minimum(most, table.entry_count[table.own_entry])
    words = table.words[table.hypothesis]  # [hypotheses]
    reference_words = table.words[table.pair_reference]  # [pairs]
    base = reference_words.max() + 1
    distance = np.abs(reference_words - words[table.pair_hypothesis])
    first_pair = np.searchsorted(table.pair_hypothesis, np.arange(len(words)))
    closest = np.minimum.reduceat(distance * base + reference_words, first_pair) % base
    return np.column_stack(
        [
            table.sum_by_order(table.own_hypothesis, table.own_entry, matched, len(words)).astype(np.int64),
            np.maximum(0, words[:, None] - np.arange(ORDERS)),
            words,
            closest,
        ]
    )


def bleu_of(statistics: np.ndarray) -> np.ndarray:
    """BLEU-1..4 of rows of `bleu_statistics`, or of their sum: `int64[..., 10]` to `float64[..., 4]`."""
    matched, guessed = statistics[..., :ORDERS], statistics[..., ORDERS : 2 * ORDERS]
    words, reference_words = statistics[..., -2:-1], statistics[..., -1:]
    products = np.cumprod((matched + _ABOVE) / (guessed + _BELOW), axis=-1)
    ratio = (words + _ABOVE) / (reference_words + _BELOW)
    brevity = np.exp(np.minimum(0, 1 - 1 / ratio))
    return products ** (1 / np.arange(1, ORDERS + 1)) * brevity
