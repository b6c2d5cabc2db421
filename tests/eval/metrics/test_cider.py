"""CIDEr and CIDEr-D: worked by hand, against pycocoevalcap, and against OFA's self-critical rewards."""

import json
import math
import string

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.metrics.cider import CiderD, CiderScorer, cider, cider_d
from eval.metrics.ngrams import NgramTable
from vlm.errors import DataError

sentences = st.lists(st.sampled_from("abcd"), max_size=9)
images = st.lists(st.tuples(sentences, st.lists(sentences, min_size=1, max_size=4)), min_size=1, max_size=6)


def table(hypotheses: list[str], references: list[list[str]]) -> NgramTable:
    return NgramTable([h.split() for h in hypotheses], [[r.split() for r in rs] for rs in references])


@pytest.mark.parametrize(
    "caption, plain, clipped",
    [
        # "a" stands for both images and weighs nothing; "dog" and "a dog" weigh log 2; of longer n-grams there are none
        ("a dog", 10 * (1 + 1) / 4, 10 * (1 + 1) / 4),
        # "dog" twice: the same direction, but clipped to one
        ("dog dog", 10 * 1 / 4, 10 * 0.5 / 4),
        # one word of two, one pair of two; the length differs by one
        ("a dog runs", 10 * (0.5**0.5 + 0.5**0.5) / 4, 10 * (0.5**0.5 + 0.5**0.5) / 4 * math.exp(-1 / 72)),
        ("a cat", 0, 0),
        ("", 0, 0),
    ],
)
def test_by_hand(caption, plain, clipped):
    pairs = table([caption, "a cat"], [["a dog"], ["a cat"]])
    assert cider(pairs)[0] == pytest.approx(plain)
    assert cider_d(pairs)[0] == pytest.approx(clipped)


def test_the_mean_over_references():
    pairs = table(["a dog", "a cat"], [["a dog", "a bird", "a dog"], ["a cat"]])
    assert cider_d(pairs)[0] == pytest.approx(2 / 3 * 5)


def test_ofa_rewards(golden):
    golden = json.loads((golden / "nano_golden.json").read_text(encoding="utf-8"))["losses"]["scst"]
    no_punctuation = str.maketrans("", "", string.punctuation)

    def clean(text: str) -> list[str]:
        return [*text.strip().translate(no_punctuation).split(), "<eos>"]

    metric = CiderD({tuple(key.split(" ")): n for key, n in golden["document_frequency"].items()}, golden["ref_len"])
    references = [[clean(text) for text in image] for image in golden["references"]]
    beams = len(golden["generated"]) // len(references)
    scores = metric.score(
        [clean(text) for text in golden["generated"]], [image for image in references for _ in range(beams)]
    )
    np.testing.assert_allclose(scores, golden["cider_d"], rtol=0, atol=1e-9)
    others = (scores.reshape(-1, beams).sum(1, keepdims=True) - scores.reshape(-1, beams)) / (beams - 1)
    np.testing.assert_allclose(scores - others.ravel(), golden["reward"], rtol=0, atol=1e-9)


@given(images)
def test_against_pycocoevalcap(pairs):
    from pycocoevalcap.cider.cider import Cider

    official = Cider()
    results = {i: [" ".join(h)] for i, (h, _) in enumerate(pairs)}
    references = {i: [" ".join(r) for r in rs] for i, (_, rs) in enumerate(pairs)}
    if not any(r for rs in references.values() for r in rs):
        return  # the official script fails where no reference has a word
    mean, single = official.compute_score(references, results)
    scores = cider_d(NgramTable([h for h, _ in pairs], [rs for _, rs in pairs]))
    np.testing.assert_allclose(scores, single, rtol=0, atol=1e-9)
    assert scores.mean() == pytest.approx(mean, abs=1e-9)


@given(images)
def test_a_scorer_of_fixed_images_says_the_same(pairs):
    scorer = CiderScorer([rs for _, rs in pairs])
    expected = cider_d(NgramTable([h for h, _ in pairs], [rs for _, rs in pairs]))
    np.testing.assert_allclose([scorer.score(i, h) for i, (h, _) in enumerate(pairs)], expected, rtol=0, atol=1e-12)
    order = [*reversed(range(len(pairs))), 0]
    np.testing.assert_allclose(scorer.scores(order, [pairs[i][0] for i in order]), expected[order], rtol=0, atol=1e-12)


@given(images, st.randoms())
def test_order_of_references_never_matters(pairs, rng):
    hypotheses, references = [h for h, _ in pairs], [rs for _, rs in pairs]
    shuffled = NgramTable(hypotheses, [rng.sample(rs, len(rs)) for rs in references])
    for metric in (cider, cider_d):
        np.testing.assert_allclose(metric(NgramTable(hypotheses, references)), metric(shuffled), rtol=0, atol=1e-12)


@given(images)
def test_the_reference_itself_is_best(pairs):
    references = [[rs[0]] for _, rs in pairs]
    for metric in (cider, cider_d):
        best = metric(NgramTable([image[0] for image in references], references))
        assert (metric(NgramTable([h for h, _ in pairs], references)) <= best + 1e-9).all()
        assert (best <= 10 + 1e-9).all()


def test_clipping_and_length_only_ever_lower_the_score(photos):
    pairs = NgramTable(
        [photo[0].split() for photo in photos], [[text.split() for text in photo[1:]] for photo in photos]
    )
    assert (cider_d(pairs) <= cider(pairs) + 1e-9).all() and cider_d(pairs).mean() < cider(pairs).mean() - 0.01


def test_errors():
    metric = CiderD({("a",): 1}, 2)
    with pytest.raises(DataError, match="caption 1 has no references"):
        metric.score([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(DataError, match="1 captions and 2 lists"):
        metric.score([["a"]], [[["a"]], [["a"]]])
    with pytest.raises(DataError, match="num_documents=0"):
        CiderD({}, 0)
    with pytest.raises(DataError, match="0 captions"):
        CiderScorer([])
