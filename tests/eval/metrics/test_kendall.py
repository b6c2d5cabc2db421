"""Kendall's tau by hand, and against scipy."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import kendalltau

from eval.metrics.kendall import KendallTau
from vlm.errors import DataError


def test_by_hand():
    # pairs of rows: (1,1) (2,2) agree, (1,1) (3,2) agree, (2,2) (3,2) tied in judgement
    tau = KendallTau([1, 2, 3], [1, 2, 2])
    assert tau("b") == pytest.approx(2 / (3 * 2) ** 0.5)
    assert tau("c") == pytest.approx(2 * 2 / (3**2 * 1 / 2))  # two distinct judgements


def test_reversed_order_is_minus_one():
    assert KendallTau([3, 2, 1], [1, 2, 3])("b") == pytest.approx(-1)
    assert KendallTau([3, 2, 1], [1, 2, 3])("c") == pytest.approx(-1)


rows = st.lists(st.tuples(st.integers(0, 5), st.integers(1, 4)), min_size=2, max_size=30)


@given(rows, st.sampled_from("bc"))
def test_as_scipy(rows, variant):
    scores, judgements = zip(*rows, strict=True)
    expected = kendalltau(scores, judgements, variant=variant)[0]
    if len(set(scores)) < 2 or len(set(judgements)) < 2:
        expected = float("nan")
    assert KendallTau(scores, judgements)(variant) == pytest.approx(expected, nan_ok=True)


@given(rows, st.sampled_from("bc"), st.data())
def test_a_row_counted_twice_is_a_row_listed_twice(rows, variant, data):
    counts = data.draw(st.lists(st.integers(0, 3), min_size=len(rows), max_size=len(rows)))
    repeated = [row for row, count in zip(rows, counts, strict=True) for _ in range(count)]
    found = KendallTau(*zip(*rows, strict=True))(variant, np.array(counts))
    expected = KendallTau(*zip(*repeated, strict=True))(variant) if repeated else float("nan")
    assert found == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("scores, judgements", [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0])])
def test_rows_that_cannot_be_ranked_are_refused(scores, judgements):
    with pytest.raises(DataError):
        KendallTau(scores, judgements)
