"""METEOR's formula by hand, and against Java: of each caption, and of the set."""

import shutil

import numpy as np
import pytest

from eval.metrics.meteor import COLUMNS, meteor_of, meteor_statistics


def row(words, functions, equal, chunks, matched, stems=(0, 0, 0, 0)) -> np.ndarray:
    found = np.array([*words, *functions, *equal, *stems, *[0] * 8, chunks, *matched], float)
    assert len(found) == COLUMNS
    return found


def test_the_formula_by_hand():
    # "a dog runs" against "a dog runs fast": content words count 0.75, function words 0.25
    precision, recall = (0.75 * 2 + 0.25) / (0.75 * 2 + 0.25), (0.75 * 2 + 0.25) / (0.75 * 3 + 0.25)
    mean = 1 / (0.15 / precision + 0.85 / recall)
    found = row((3, 4), (1, 1), (2, 2, 1, 1), 1, (3, 3))
    assert meteor_of(found) == pytest.approx(mean * (1 - 0.6 * (1 / 3) ** 0.2))
    # a match of stems counts 0.6, and three chunks of four words on average cost more
    precision, recall = (0.75 * 1.6) / (0.75 * 2), (0.75 * 1.6) / (0.75 * 3)
    mean = 1 / (0.15 / precision + 0.85 / recall)
    found = row((2, 3), (0, 0), (1, 1, 0, 0), 3, (3, 5), stems=(1, 1, 0, 0))
    assert meteor_of(found) == pytest.approx(mean * (1 - 0.6 * 0.75**0.2))


def test_sums_recorded_from_java():
    """ "a dog runs" against "a dog runs fast", and "a cat" against itself, whose one chunk does not count."""
    partly, whole = row((3, 4), (1, 1), (2, 2, 1, 1), 1, (3, 3)), row((2, 2), (1, 1), (1, 1, 1, 1), 0, (2, 2))
    assert meteor_of(whole) == pytest.approx(1)
    assert meteor_of(partly + whole) == pytest.approx(0.45877890920496)


def test_nothing_in_common_and_nothing_at_all():
    assert meteor_of(np.stack([row((2, 2), (1, 1), (0, 0, 0, 0), 0, (0, 0)), np.zeros(COLUMNS)])).tolist() == [0, 0]


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs a java command")
def test_against_java():
    """Equal, partly equal and different captions, one without words; stems, synonyms and paraphrases among them."""
    from pycocoevalcap.meteor import meteor as official

    pairs = [
        ("a kitten plays with the ball", ["the kittens are playing with a red ball", "small cats play with balls"]),
        ("a dog runs", ["a dog runs fast", "an animal"]),
        ("a cat", ["the cat sits", "a cat"]),
        ("zebra", ["zebra"]),
        ("zebra", ["a house"]),
        ("", ["a house"]),
    ]
    hypotheses, references = [pair[0] for pair in pairs], [pair[1] for pair in pairs]
    statistics = meteor_statistics(hypotheses, references)
    java = official.Meteor()
    of_set, of_each = java.compute_score(dict(enumerate(references)), {i: [text] for i, text in enumerate(hypotheses)})
    java.meteor_p.communicate()
    assert meteor_of(statistics) == pytest.approx(of_each, abs=1e-12)
    assert meteor_of(statistics.sum(0)) == pytest.approx(of_set, abs=1e-12)
    assert meteor_of(statistics[:2].sum(0)) != pytest.approx(np.mean(of_each[:2]), abs=1e-3)  # no mean over captions
