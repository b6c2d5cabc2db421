"""BLEU: worked by hand, and against pycocoevalcap."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.bleu import bleu_of, bleu_statistics
from eval.metrics.ngrams import NgramTable

sentences = st.lists(st.sampled_from("abcd"), max_size=9)
images = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=1, max_size=6)


def statistics(*pairs: tuple[str, list[str]]) -> np.ndarray:
    return bleu_statistics(NgramTable([h.split() for h, _ in pairs], [[r.split() for r in rs] for _, rs in pairs]))


def test_counts_are_clipped_by_the_best_single_reference():
    rows = statistics(("the cat the cat on the mat", ["the cat is on the mat", "there is a cat on the mat"]))
    # the: 2 of 3, cat: 1 of 2, on, mat; "the cat" once, "cat on" in the second only; ...; "cat on the mat"
    assert rows.tolist() == [[5, 4, 2, 1, 7, 6, 5, 4, 7, 7]]
    expected = [
        5 / 7,
        (5 / 7 * 4 / 6) ** (1 / 2),
        (5 / 7 * 4 / 6 * 2 / 5) ** (1 / 3),
        (5 / 7 * 4 / 6 * 2 / 5 / 4) ** 0.25,
    ]
    assert bleu_of(rows[0]) == pytest.approx(expected)


def test_brevity():
    short = statistics(("a b c d", ["a b c d e f g h"]))
    assert bleu_of(short[0]) == pytest.approx([np.exp(1 - 8 / 4)] * 4)
    longer = statistics(("a b c d", ["a b c"]))
    assert bleu_of(longer[0])[0] == pytest.approx(3 / 4)


def test_of_two_equally_close_references_the_shorter_counts():
    assert statistics(("a b c d", ["a b c d e", "a b c"]))[0, -1] == 3


def test_a_set_is_not_the_mean_of_its_images():
    rows = statistics(("a b c d", ["a b c d"]), ("a x y z", ["a b c d"]))
    assert bleu_of(rows.sum(axis=0))[:2] == pytest.approx([5 / 8, (5 / 8 * 3 / 6) ** 0.5])
    assert bleu_of(rows)[:, 0] == pytest.approx([1, 1 / 4])


def test_counts_of_one_caption():
    rows = bleu_statistics(NgramTable([["a", "a", "b"]], [[["a", "b", "c", "d"], ["a"]]]))
    assert rows.tolist() == [[2, 1, 0, 0, 3, 2, 1, 0, 3, 4]]


def test_no_words():
    assert bleu_of(statistics(("", ["a b", "a"]))[0]) == pytest.approx([0, 0, 0, 0], abs=1e-12)


@given(images)
def test_against_pycocoevalcap(pairs):
    from pycocoevalcap.bleu.bleu import Bleu

    official = Bleu(4)
    results = {i: [" ".join(h)] for i, (h, _) in enumerate(pairs)}
    references = {i: [" ".join(r) for r in rs] for i, (_, rs) in enumerate(pairs)}
    corpus, single = official.compute_score(references, results, verbose=0)
    rows = bleu_statistics(NgramTable([h for h, _ in pairs], [rs for _, rs in pairs]))
    np.testing.assert_allclose(bleu_of(rows.sum(axis=0)), corpus, rtol=1e-12)
    np.testing.assert_allclose(bleu_of(rows).T, single, rtol=1e-12)


@given(images, st.randoms())
def test_order_of_references_never_matters(pairs, rng):
    rows = bleu_statistics(NgramTable([h for h, _ in pairs], [rs for _, rs in pairs]))
    shuffled = bleu_statistics(NgramTable([h for h, _ in pairs], [rng.sample(rs, len(rs)) for _, rs in pairs]))
    assert rows.tolist() == shuffled.tolist()


@given(st.lists(st.sampled_from("abcd"), min_size=4, max_size=9), st.lists(sentences, max_size=3))
def test_a_reference_itself_is_perfect(words, others):
    assert bleu_of(bleu_statistics(NgramTable([words], [[*others, words]]))[0]) == pytest.approx([1] * 4)
