"""Bootstrap intervals: against scipy, against cases whose distribution is known, and the paired test's error rates."""

import numpy as np
import pytest
import scipy.stats
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics import bootstrap
from eval.metrics.bootstrap import bootstrap_mean, bootstrap_metric, bootstrap_ratio, paired_bootstrap
from vlm.errors import DataError


def generator(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def assert_close_to_scipy(interval, data, statistic, **options):
    """Both intervals are random; they must agree within a tenth of their width."""
    expected = scipy.stats.bootstrap(
        data, statistic, n_resamples=10_000, method="percentile", rng=generator(99), **options
    ).confidence_interval
    assert interval[1:] == pytest.approx(tuple(expected), abs=(expected.high - expected.low) / 10)


@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_mean_agrees_with_scipy(confidence):
    scores = generator(1).exponential(size=150)  # skewed: the two sides differ
    interval = bootstrap_mean(scores, generator(), resamples=10_000, confidence=confidence)
    assert interval.value == pytest.approx(scores.mean())
    assert_close_to_scipy(interval, (scores,), np.mean, confidence_level=confidence)


def test_ratio_agrees_with_scipy():
    totals = generator(2).integers(1, 30, 120).astype(float)
    hits = generator(3).binomial(totals.astype(int), 0.3)
    interval = bootstrap_ratio(hits, totals, generator(), resamples=10_000)
    assert interval.value == pytest.approx(hits.sum() / totals.sum())
    assert_close_to_scipy(
        interval, (hits, totals), lambda h, t, axis=-1: h.sum(axis) / t.sum(axis), paired=True, vectorized=True
    )


def geometric_precision(sums):
    """A figure as BLEU builds it: geometric mean of two precisions, each a ratio of sums."""
    return np.sqrt(sums[:, 0] / sums[:, 1] * sums[:, 2] / sums[:, 3])


def test_corpus_metric_agrees_with_scipy():
    rng = generator(4)
    totals = rng.integers(5, 20, (100, 2))
    hits = rng.binomial(totals, [0.7, 0.4])
    statistics = np.stack([hits[:, 0], totals[:, 0], hits[:, 1], totals[:, 1]], 1)
    interval = bootstrap_metric(statistics, geometric_precision, generator(), resamples=10_000)
    sums = statistics.sum(0)
    assert interval.value == pytest.approx((sums[0] / sums[1] * sums[2] / sums[3]) ** 0.5)

    def recompute(*columns, axis=-1):
        a, b, c, d = (column.sum(axis) for column in columns)
        return np.sqrt(a / b * c / d)

    assert_close_to_scipy(interval, tuple(statistics.T), recompute, paired=True, vectorized=True)


def test_two_items_by_hand():
    """Means of two draws from {0, 1} are 0, 1/2, 1 with probabilities 1/4, 1/2, 1/4."""
    assert bootstrap_mean([0, 1], generator()) == (0.5, 0.0, 1.0)
    assert bootstrap_mean([0, 1], generator(), confidence=0.4) == (0.5, 0.5, 0.5)


def test_one_item_and_equal_items_have_no_width():
    assert bootstrap_mean([0.3], generator()) == pytest.approx((0.3, 0.3, 0.3))
    assert bootstrap_mean([0.3] * 50, generator()) == pytest.approx((0.3, 0.3, 0.3))


def test_wide_sample_follows_the_normal_law():
    scores = generator(5).normal(2.0, 1.0, 4000)
    interval = bootstrap_mean(scores, generator(), resamples=4000)
    half = 1.96 * scores.std() / np.sqrt(4000)
    assert interval == pytest.approx((scores.mean(), scores.mean() - half, scores.mean() + half), abs=half / 10)


def test_a_seed_repeats_the_interval_and_blocks_of_draws_do_not_change_it(monkeypatch):
    scores = generator(6).random(30)
    once = bootstrap_mean(scores, generator(7), resamples=500)
    assert bootstrap_mean(scores, generator(7), resamples=500) == once
    assert bootstrap_mean(scores, generator(8), resamples=500) != once
    monkeypatch.setattr(bootstrap, "_DRAWS_AT_ONCE", 100)  # three draws of 30 items
    assert bootstrap_mean(scores, generator(7), resamples=500) == pytest.approx(once)


@given(st.lists(st.floats(-100, 100), min_size=1, max_size=20))
def test_the_interval_stays_among_the_scores(scores):
    interval = bootstrap_mean(scores, generator(), resamples=50)
    assert min(scores) - 1e-9 <= interval.low <= interval.high <= max(scores) + 1e-9


def test_equal_runs_do_not_differ():
    scores = generator(9).random(40)
    assert paired_bootstrap(scores, scores, generator()) == (0.0, 0.0, 0.0, 1.0)


def test_a_run_better_on_every_item():
    """No draw lies on the other side: p is twice one draw in 1,000 + 1."""
    scores = generator(10).random(40)
    comparison = paired_bootstrap(scores + 0.1, scores, generator(), resamples=999)
    assert comparison == pytest.approx((0.1, 0.1, 0.1, 2 / 1000))
    assert paired_bootstrap(scores, scores + 0.1, generator(), resamples=999) == pytest.approx(
        (-0.1, -0.1, -0.1, 0.002)
    )


def test_one_item_in_two_differs_by_hand():
    """Differences {0, 1}: a quarter of the draws show none, no draw shows a negative one."""
    comparison = paired_bootstrap([1, 1], [1, 0], generator(), resamples=20_000)
    assert comparison[:3] == (0.5, 0.0, 1.0)
    assert comparison.p_value == pytest.approx(2 * 0.25, abs=0.02)


def test_a_draw_of_no_difference_counts_although_decimals_do_not_cancel():
    """Differences {0.2, 0.2, -0.1}: 6 of 27 draws cancel, 1 is negative; in floats 0.8 + 0.4 > 0.6 + 0.6."""
    comparison = paired_bootstrap([0.8, 0.8, 0.2], [0.6, 0.6, 0.3], generator(), resamples=20_000)
    assert comparison.p_value == pytest.approx(2 * 7 / 27, abs=0.02)


def test_pairs_count_even_where_items_vary_more_than_runs():
    """Runs that differ by 0.05 on items spread over 0 to 100: unpaired intervals overlap, the paired test sees it."""
    items = generator(11).uniform(0, 100, 200)
    noise = generator(12).normal(0.05, 0.1, 200)
    a, b = items + noise, items
    assert bootstrap_mean(a, generator()).low < bootstrap_mean(b, generator()).high
    comparison = paired_bootstrap(a, b, generator())
    assert comparison.p_value < 0.01
    assert_close_to_scipy((0, comparison.low, comparison.high), (noise,), np.mean)


def test_p_values_of_equal_models_are_small_as_often_as_they_say():
    """400 comparisons of runs from one distribution, with the scores that VQA gives: about 5 % fall below 0.05."""
    rng = generator(13)
    values = np.array([0, 0.3, 0.6, 0.9, 1])
    p_values = [
        paired_bootstrap(rng.choice(values, 80), rng.choice(values, 80), rng, resamples=300).p_value for _ in range(400)
    ]
    assert 0.02 < np.mean(np.array(p_values) < 0.05) < 0.09


def test_paired_metric_from_sums():
    rng = generator(14)
    totals = rng.integers(5, 20, 100)
    weak, strong = rng.binomial(totals, 0.4), rng.binomial(totals, 0.6)
    a, b = np.stack([strong, totals], 1), np.stack([weak, totals], 1)

    def precision(sums):
        return sums[:, 0] / sums[:, 1]

    comparison = paired_bootstrap(a, b, generator(), precision)
    assert comparison.difference == pytest.approx((strong.sum() - weak.sum()) / totals.sum())
    assert 0 < comparison.low < comparison.difference < comparison.high
    assert comparison.p_value < 0.01
    assert paired_bootstrap(a, a, generator(), precision) == (0.0, 0.0, 0.0, 1.0)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: bootstrap_mean([], generator()), "scores is empty"),
        (lambda: bootstrap_mean([[1.0]], generator()), r"scores has shape \[1, 1\]; it must be \[items\]"),
        (lambda: bootstrap_mean([1.0, float("nan")], generator()), "scores: 1 of 2 values are not finite"),
        (lambda: bootstrap_ratio([1, 2], [1], generator()), "2 items against 1"),
        (lambda: bootstrap_ratio([1, 0], [1, 0], generator()), "metric: .* of 2000 values are not finite"),
        (lambda: paired_bootstrap([1, 2], [1], generator()), "2 items against 1"),
    ],
)
def test_errors(call, message):
    with pytest.raises(DataError, match=message):
        call()
