"""ROUGE-L: worked by hand, and against pycocoevalcap."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.rouge import rouge_l

words = st.lists(st.sampled_from("abcd"), max_size=9)


@pytest.mark.parametrize(
    "caption, references, precision, recall",
    [
        ("a b c d", ["a b c d"], 1, 1),
        ("a b c d", ["a x c d e"], 3 / 4, 3 / 5),
        ("a b c d", ["d c b a"], 1 / 4, 1 / 4),
        ("a b a b", ["b a b a"], 3 / 4, 3 / 4),
        ("a b c d", ["a b c x y z", "d"], 3 / 4, 1),  # the best precision and the best recall of different references
    ],
)
def test_by_hand(caption, references, precision, recall):
    expected = (1 + 1.44) * precision * recall / (recall + 1.44 * precision)
    assert rouge_l(caption.split(), [reference.split() for reference in references]) == pytest.approx(expected)


def test_nothing_in_common():
    assert rouge_l(["a"], [["b"], []]) == 0
    assert rouge_l([], [["a"]]) == 0
    assert rouge_l([], [[], ["a"]]) == 1  # pycocoevalcap's one empty word


@given(words, st.lists(words, min_size=1, max_size=4))
def test_against_pycocoevalcap(caption, references):
    from pycocoevalcap.rouge.rouge import Rouge

    official = Rouge()
    expected = official.calc_score([" ".join(caption)], [" ".join(reference) for reference in references])
    assert rouge_l(caption, references) == pytest.approx(expected, abs=1e-12)


@given(words, st.lists(words, min_size=1, max_size=4), st.randoms())
def test_order_of_references_never_matters(caption, references, rng):
    assert rouge_l(caption, references) == rouge_l(caption, rng.sample(references, len(references)))
