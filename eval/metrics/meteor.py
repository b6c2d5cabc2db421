"""METEOR 1.5 (Denkowski and Lavie, 2014) in pycocoevalcap's Java program, and its formula over sums of statistics.

Java aligns each caption with its references and counts; the figure of a set follows from the sums of these counts, so
that it is no mean over images, and a bootstrap draw needs no Java.
"""

from collections.abc import Sequence

import numpy as np

COLUMNS = 23
# METEOR's settings for English: content against function words, precision against recall, and the penalty
DELTA, ALPHA, BETA, GAMMA = 0.75, 0.85, 0.2, 0.6
MATCHERS = np.array([1.0, 0.6, 0.8, 0.6])  # weights of equal words, equal stems, synonyms, paraphrases


def meteor_statistics(hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> np.ndarray:
    """What METEOR counts of each caption against the reference that fits it best.

    Args:
        hypotheses: captions of tokens joined by blanks.
        references: of each caption.

    Returns:
        `float64[images, 23]`, columns as `meteor_of` takes them.

    Raises:
        OSError: Java cannot be run, or ended.
        ValueError: it printed something else.
    """
    from pycocoevalcap.meteor.meteor import Meteor

    meteor = Meteor()
    try:
        lines = [meteor._stat(*pair) for pair in zip(hypotheses, references, strict=True)]
        rows = np.array([[float(number) for number in line.split()] for line in lines])
        if rows.shape != (len(lines), COLUMNS):
            raise ValueError(f"{COLUMNS} numbers were expected for each caption, not {lines[0]!r}")
        # a caption matched as a whole and in one piece has no breaks, and Java adds none to a set's chunks
        matches = rows[:, 4:20].reshape(-1, 2 * len(MATCHERS), 2).sum(1)
        rows[(rows[:, 20] == 1) & (matches == rows[:, :2]).all(1), 20] = 0
        return rows
    finally:
        meteor.meteor_p.communicate()  # ends it and closes its pipes, which its own clean-up leaves open


def meteor_of(statistics: np.ndarray) -> np.ndarray:
    """METEOR of rows of `meteor_statistics`, or of their sums: `float64[..., 23]` to `float64[...]`.

    The columns: words of caption and reference, function words of both; for each of the four matchers the content words
    it matched in both and the function words in both; chunks, and words matched in both.
    """
    words, function_words = statistics[..., 0:2], statistics[..., 2:4]
    matches = statistics[..., 4:20].reshape(*statistics.shape[:-1], len(MATCHERS), 2, 2)  # matcher, kind, side
    chunks, matched = statistics[..., 20], statistics[..., 21:23]
    kinds = np.array([DELTA, 1 - DELTA])
    weighted = np.einsum("...mks,m,k->...s", matches, MATCHERS, kinds)
    totals = DELTA * (words - function_words) + (1 - DELTA) * function_words
    with np.errstate(divide="ignore", invalid="ignore"):
        precision, recall = np.moveaxis(weighted / totals, -1, 0)
        mean = precision * recall / (ALPHA * precision + (1 - ALPHA) * recall)
        return np.nan_to_num(mean * (1 - GAMMA * (chunks / matched.mean(-1)) ** BETA))  # 0 where nothing matches
