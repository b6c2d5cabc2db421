"""Bootstrap intervals and a paired test: how far a figure would move on other items of the same kind.

Items (photos, questions) are drawn anew with replacement, as many as there are, and the figure is computed again; the
2.5th and 97.5th percentile over many draws bound the 95 % interval (Efron and Tibshirani, "An Introduction to the
Bootstrap", 1993, chapter 13). Figures that are not a mean of scores, such as BLEU, come from sums over items: hits and
lengths, for example. A draw is a vector of counts, so that all of them are one matrix product.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from vlm.errors import DataError

RESAMPLES = 2000
_DRAWS_AT_ONCE = 1 << 22  # bounds the memory: so many counts are held together

Metric = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""From sums over items, `float64[draws, statistics]`, to the figure of each draw, `float64[draws]`."""


class Interval(NamedTuple):
    """A figure and the interval around it."""

    value: float
    low: float
    high: float


class Comparison(NamedTuple):
    """Figure of run A minus that of run B on the same items, its interval, and the two-sided p-value."""

    difference: float
    low: float
    high: float
    p_value: float


def _ratio(sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """First sum over second, the metric of a mean (scores, ones) and of a ratio of sums (hits, totals)."""
    with np.errstate(divide="ignore", invalid="ignore"):  # a draw without any total is reported by the caller
        return sums[:, 0] / sums[:, 1]


def bootstrap_metric(
    statistics: ArrayLike,
    metric: Metric,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a figure that is computed from sums over items.

    Args:
        statistics: `[items, statistics]`, what each item adds to the sums.
        metric: the figure from the sums; called with many draws at once.
        rng: where the draws come from; the same seed gives the same interval.
        resamples: number of draws.
        confidence: share of draws inside the interval.

    Raises:
        DataError: there are no items, a number is not finite, or the figure is undefined on a draw.
    """
    items = _check(statistics, "statistics", ndim=2)
    (sums,) = _resample([items], rng, resamples)
    figures = _finite(metric(sums), "metric")
    low, high = _percentiles(figures, confidence)
    return Interval(float(metric(items.sum(0, keepdims=True))[0]), low, high)


def bootstrap_mean(
    scores: ArrayLike, rng: np.random.Generator, resamples: int = RESAMPLES, confidence: float = 0.95
) -> Interval:
    """Percentile interval of the mean of one score an item, `[items]`; arguments and errors as `bootstrap_metric`."""
    values = _check(scores, "scores", ndim=1)
    return bootstrap_ratio(values, np.ones_like(values), rng, resamples, confidence)


def bootstrap_ratio(
    numerators: ArrayLike,
    denominators: ArrayLike,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of `sum(numerators) / sum(denominators)`, both `[items]`, such as hits and questions of a
    photo.

    Other arguments and errors as `bootstrap_metric`; numerators and denominators must be as many.
    """
    top, bottom = _check(numerators, "numerators", ndim=1), _check(denominators, "denominators", ndim=1)
    _same_items(top, bottom)
    return bootstrap_metric(np.stack([top, bottom], 1), _ratio, rng, resamples, confidence)


def bootstrap_counts(
    figure: Callable[[NDArray[np.int64]], float],
    items: int,
    rng: np.random.Generator,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Interval:
    """Percentile interval of a figure that does not follow from sums over items, such as a rank correlation.

    Args:
        figure: from how often each item is drawn, `int64[items]`, to the figure; called once a draw.
        items: how many there are.
        rng: where the draws come from; the same seed gives the same interval.
        resamples: number of draws.
        confidence: share of draws inside the interval.

    Raises:
        DataError: there are no items, or the figure is undefined on a draw.
    """
    if not items:
        raise DataError("there are no items; there is nothing to resample")
    drawn = (np.bincount(rng.integers(items, size=items), minlength=items) for _ in range(resamples))
    figures = _finite(np.array([figure(counts) for counts in drawn]), "figure")
    return Interval(figure(np.ones(items, np.int64)), *_percentiles(figures, confidence))


def paired_bootstrap(
    a: ArrayLike,
    b: ArrayLike,
    rng: np.random.Generator,
    metric: Metric | None = None,
    resamples: int = RESAMPLES,
    confidence: float = 0.95,
) -> Comparison:
    """Compare two runs that answered the same items; every draw takes the same items of both.

    The p-value is twice the smaller share of draws on either side of no difference, draws of no difference counting on
    both sides, with one draw added to each so that it is never 0. It is below 0.05 where the 95 % interval leaves
    out 0, but for draws near that edge.

    Args:
        a: run A, `[items]` scores whose mean is compared, or `[items, statistics]` for `metric`.
        b: run B on the same items in the same order.
        rng: where the draws come from.
        metric: the figure from the sums, as in `bootstrap_metric`; None compares means.
        resamples: number of draws.
        confidence: share of draws inside the interval.

    Raises:
        DataError: as `bootstrap_metric`, or the two runs have different items.
    """
    ours, theirs = _check(a, "a", ndim=1 if metric is None else 2), _check(b, "b", ndim=1 if metric is None else 2)
    _same_items(ours, theirs)
    if metric is None:
        metric, ours, theirs = _ratio, _with_ones(ours), _with_ones(theirs)
    sums_a, sums_b = _resample([ours, theirs], rng, resamples)
    # rounded, since scores such as 0.3 and 0.6 seldom cancel to exactly 0, and a draw of no difference counts on
    # both sides
    differences = np.round(_finite(metric(sums_a) - metric(sums_b), "metric"), 12)
    below, above = (differences <= 0).sum(), (differences >= 0).sum()
    p_value = min(1.0, 2 * (1 + min(below, above)) / (1 + resamples))
    low, high = _percentiles(differences, confidence)
    difference = metric(ours.sum(0, keepdims=True))[0] - metric(theirs.sum(0, keepdims=True))[0]
    return Comparison(float(difference), low, high, float(p_value))


def _resample(runs: list[NDArray[np.float64]], rng: np.random.Generator, resamples: int) -> list[NDArray[np.float64]]:
    """Sums over drawn items, the same draws for every run: each `[items, statistics]` to `[draws, statistics]`."""
    items = len(runs[0])
    chunk = max(1, _DRAWS_AT_ONCE // items)
    sums: list[list[NDArray[np.float64]]] = [[] for _ in runs]
    for start in range(0, resamples, chunk):
        draws = min(chunk, resamples - start)
        drawn = rng.integers(items, size=(draws, items)) + items * np.arange(draws)[:, None]
        counts = np.bincount(drawn.ravel(), minlength=draws * items).reshape(draws, items).astype(np.float64)
        for run, parts in zip(runs, sums, strict=True):
            parts.append(counts @ run)
    return [np.concatenate(parts) for parts in sums]


def _percentiles(figures: NDArray[np.float64], confidence: float) -> tuple[float, float]:
    low, high = np.quantile(figures, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


def _with_ones(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([scores, np.ones_like(scores)], 1)


def _check(values: ArrayLike, name: str, ndim: int) -> NDArray[np.float64]:
    array = np.asarray(values, np.float64)
    if array.ndim != ndim:
        raise DataError(
            f"{name} has shape {list(array.shape)}; it must be {['[items]', '[items, statistics]'][ndim - 1]}"
        )
    if not len(array):
        raise DataError(f"{name} is empty; there is nothing to resample")
    return _finite(array, name)


def _finite(array: NDArray[np.float64], name: str) -> NDArray[np.float64]:
    bad = int((~np.isfinite(array)).sum())
    if bad:
        raise DataError(f"{name}: {bad} of {array.size} values are not finite; remove such items or use more of them")
    return array


def _same_items(a: NDArray[np.float64], b: NDArray[np.float64]) -> None:
    if len(a) != len(b):
        raise DataError(f"{len(a)} items against {len(b)}; both must list the same items in the same order")
