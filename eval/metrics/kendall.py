"""Kendall's rank correlation between scores and human judgements, tau-b and tau-c, with counts for a bootstrap.

Two rows agree (are concordant) if score and judgement order them the same way, and disagree if they order them the
other way. With P pairs of rows that agree, Q that disagree, and n rows:

    tau-b = (P - Q) / sqrt((n0 - n1) (n0 - n2))    n0 all pairs, n1 and n2 those tied in score and in judgement
    tau-c = 2 (P - Q) / (n^2 (m - 1) / m)          m the smaller number of distinct scores and of distinct judgements

Judgements have few levels, so that P and Q follow from a table of scores by judgements, without comparing all pairs.
The figures are those of `scipy.stats.kendalltau`.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import DataError


class KendallTau:
    """Correlation of rows that may be counted several times, or not at all.

    Args:
        scores: `[rows]`.
        judgements: `[rows]`, of few levels.

    Raises:
        DataError: different lengths, no rows, or a number that is not finite.
    """

    def __init__(self, scores: ArrayLike, judgements: ArrayLike):
        ours, theirs = np.asarray(scores, np.float64), np.asarray(judgements, np.float64)
        if ours.ndim != 1 or ours.shape != theirs.shape or not len(ours):
            raise DataError(
                f"scores of shape {list(ours.shape)} and judgements of shape {list(theirs.shape)}; give one of each "
                "for every row"
            )
        if not (np.isfinite(ours).all() and np.isfinite(theirs).all()):
            raise DataError("a score or a judgement is not finite; check the model and the data")
        distinct, row = np.unique(ours, return_inverse=True)
        levels, column = np.unique(theirs, return_inverse=True)
        self.shape = len(distinct), len(levels)
        self.cell = row * len(levels) + column  # of the table of scores by judgements

    def __call__(self, variant: str, counts: ArrayLike | None = None) -> float:
        """Tau.

        Args:
            variant: "b" or "c".
            counts: how often each row counts, `[rows]`; once if None.

        Returns:
            -1 to 1; nan where all scores or all judgements are equal.
        """
        assert variant in ("b", "c")
        weights = np.ones(len(self.cell)) if counts is None else np.asarray(counts, np.float64)
        table = np.bincount(self.cell, weights, self.shape[0] * self.shape[1]).astype(np.float64).reshape(self.shape)
        rows, columns = table.sum(1), table.sum(0)  # ties
        least = min(np.count_nonzero(rows), np.count_nonzero(columns))
        if least < 2:
            return float("nan")
        difference, total = _agreement(table), rows.sum()
        if variant == "c":
            return float(2 * difference / (total**2 * (least - 1) / least))
        pairs = total * (total - 1) / 2
        untied = [pairs - (ties * (ties - 1) / 2).sum() for ties in (rows, columns)]
        return float(difference / np.sqrt(untied[0]) / np.sqrt(untied[1]))


def _agreement(table: NDArray[np.float64]) -> float:
    """P - Q of a table `[scores, judgements]`, both in rising order."""
    lower = np.cumsum(table, 0) - table  # [scores, judgements], rows of a lower score
    up_to = np.cumsum(lower, 1)  # ... and of at most this judgement
    agree, disagree = up_to - lower, up_to[:, -1:] - up_to
    return float((table * (agree - disagree)).sum())
