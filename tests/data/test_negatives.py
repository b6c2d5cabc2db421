"""Sentences that nearly fit a photo, by hand and by property."""

import random
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.feature_extraction.text import TfidfTransformer

from vlm.data.negatives import GROUPS, PHRASES, alike, changed_sentences


def changes(sentence: str, *known: str) -> set[str]:
    """All that any seed makes of a sentence."""
    return {
        text for seed in range(60) for text in changed_sentences(sentence, known or (sentence,), random.Random(seed))
    }


def test_one_thing_changes_at_a_time():
    found = changes("a red dog on the table")
    assert "a blue dog on the table" in found and "a red cat on the table" in found
    assert "a red dog on the bench" in found
    assert "a red table on the dog" in found  # the nouns exchanged
    assert "a blue cat on the table" not in found
    words = [len(set(text.split()) ^ set(["a", "red", "dog", "on", "the", "table"])) for text in found]
    assert set(words) == {0, 2}  # one word for another, or the same words in another order


@pytest.mark.parametrize(
    "sentence, wrong",
    [
        ("two men run in front of a bus", "two men run behind a bus"),
        ("a cat behind a car", "a cat in front of a car"),
        ("a boy on top of a car", "a boy under a car"),
        ("the left hand", "the right hand"),
        ("three girls", "four girls"),
    ],
)
def test_relations_sides_and_numbers(sentence, wrong):
    assert wrong in changes(sentence)


def test_nothing_true_is_put_in():
    found = changes("a dog on the grass", "a dog on the grass", "A cat and a dog.", "sand, snow and water around a dog")
    assert not any(re.search(r"\b(cat|sand|snow|water)\b", text) for text in found)
    assert "a man and a dog" not in {text.strip() for text in changes("a dog and a man")}  # says the same
    assert changes("something nice happens") == set()


WORDS = [word for row in GROUPS for word in row]


@given(st.lists(st.sampled_from([*WORDS, "a", "the", "on", "and"]), max_size=9), st.integers())
def test_a_changed_sentence_is_another_one(words, seed):
    sentence = " ".join(words)
    found = changed_sentences(sentence, [sentence], random.Random(seed))
    assert sentence not in found
    assert found == changed_sentences(sentence, [sentence], random.Random(seed))


def test_every_word_is_in_one_group():
    assert len(WORDS) == len(set(WORDS))
    assert all(one != other for one, other in PHRASES)


def test_alike_photos_are_those_of_scikit_learn():
    rng = random.Random(0)
    vocabulary = [f"{a}{b}" for a in "bcdfg" for b in "aeiou"]
    captions = [[" ".join(rng.choices(vocabulary, k=6)) for _ in range(3)] for _ in range(40)]
    counts = np.array([[" ".join(texts).split().count(word) for word in vocabulary] for texts in captions])
    counts = counts[:, (counts > 0).sum(0) > 1]
    tfidf = TfidfTransformer(smooth_idf=False, sublinear_tf=True)
    tfidf.fit(counts)
    tfidf.idf_ = tfidf.idf_ - 1  # scikit-learn adds 1
    vectors = np.asarray(tfidf.transform(counts).todense())  # type: ignore[union-attr]
    cosines = vectors @ vectors.T
    np.fill_diagonal(cosines, -1)
    found = alike(captions, 5, block=7)
    for row, photos in enumerate(found):
        assert row not in photos and len(photos) == 5
        assert cosines[row][photos] == pytest.approx(np.sort(cosines[row])[::-1][:5], abs=1e-5)


def test_photos_without_captions_are_like_none():
    assert alike([["a dog"], [], ["a dog"], ["xyz"]], 3) == [[2], [], [0], []]
