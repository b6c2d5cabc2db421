"""The figures of a captioning run against the official evaluation, Java tokenizer included."""

import re
import shutil
from typing import Any

import numpy as np
import pytest

from eval.metrics import captions
from eval.metrics.bleu import bleu_of
from eval.metrics.captions import caption_scores
from vlm.errors import ArgumentError, DataError


def test_each_caption_against_the_others(photos, photo_tokenize):
    """All figures of the official path, of the set and of each caption."""
    from pycocoevalcap.bleu import bleu
    from pycocoevalcap.cider import cider
    from pycocoevalcap.rouge import rouge

    keys = [(i, k) for i, photo in enumerate(photos) for k in range(len(photo))]
    hypotheses = {(i, k): photos[i][k] for i, k in keys}
    references = {(i, k): photos[i][:k] + photos[i][k + 1 :] for i, k in keys}
    ours = caption_scores(hypotheses, references)

    words = dict(zip(keys, photo_tokenize(list(hypotheses.values())), strict=True))
    results = {key: [words[key]] for key in keys}
    targets = {(i, k): [words[i, j] for j in range(len(photos[i])) if j != k] for i, k in keys}
    figures = zip(*bleu.Bleu(4).compute_score(targets, results, verbose=0), strict=True)
    official: dict[str, Any] = {f"BLEU-{n + 1}": pair for n, pair in enumerate(figures)}
    official["ROUGE-L"] = rouge.Rouge().compute_score(targets, results)
    official["CIDEr"] = cider.Cider().compute_score(targets, results)

    assert ours.corpus.keys() == ours.per_image.keys() == official.keys()
    assert ours.ids == tuple(keys)
    for name, (corpus, single) in official.items():
        assert ours.corpus[name] == pytest.approx(corpus, abs=1e-9), name
        np.testing.assert_allclose(ours.per_image[name], single, rtol=0, atol=1e-9, err_msg=name)
    assert bleu_of(ours.bleu_statistics.sum(axis=0)).tolist() == [ours.corpus[f"BLEU-{n}"] for n in range(1, 5)]


def test_no_break_spaces_inside_tokens(official_tokenize):
    """`1 1/2` is one word for the official ROUGE-L, and two for its BLEU and CIDEr."""
    from pycocoevalcap.bleu import bleu
    from pycocoevalcap.rouge import rouge

    hypotheses = {1: "add 1 1/2 cups", 2: "a dog"}
    references = {1: ["add 1 cup and 1 1/2 cups"], 2: ["a cat"]}
    ours = caption_scores(hypotheses, references)
    results = {key: official_tokenize([text]) for key, text in hypotheses.items()}
    targets = {key: official_tokenize(texts) for key, texts in references.items()}
    expected = [ours.corpus[f"BLEU-{n}"] for n in range(1, 5)]
    assert bleu.Bleu(4).compute_score(targets, results, verbose=0)[0] == pytest.approx(expected)
    assert rouge.Rouge().compute_score(targets, results)[0] == pytest.approx(ours.corpus["ROUGE-L"])


def test_case_and_punctuation_do_not_count():
    plain = caption_scores({1: "a dog runs", 2: "a cat"}, {1: ["a dog runs fast"], 2: ["the cat", "a cat"]})
    dressed = caption_scores({1: "A dog runs .", 2: "A CAT!"}, {1: ["a dog, runs fast"], 2: ["The cat.", '"A cat"']})
    assert dressed.corpus == plain.corpus


def test_perfect_captions():
    scores = caption_scores(
        {1: "A dog runs fast.", 2: "One cat sits here"}, {1: ["a dog runs fast"], 2: ["one cat sits here"]}
    )
    perfect = {"BLEU-1": 1, "BLEU-2": 1, "BLEU-3": 1, "BLEU-4": 1, "ROUGE-L": 1, "CIDEr": 10}
    assert scores.corpus == pytest.approx(perfect)


def test_captions_without_words():
    scores = caption_scores({1: ".", 2: "a"}, {1: ["..."], 2: ["b"]})
    assert scores.corpus["BLEU-1"] == pytest.approx(0, abs=1e-9) and scores.corpus["CIDEr"] == 0


@pytest.mark.parametrize(
    "hypotheses, references, message",
    [
        ({1: "a"}, {2: ["a"]}, "2 ids have a caption or references but not both, 1 for one"),
        ({1: "a"}, {1: ["a"], "x": ["a"]}, "1 ids have a caption or references but not both, 'x' for one"),
        ({}, {}, "no captions to score"),
        ({7: "a"}, {7: []}, "image 7 has no reference captions"),
        ({7: "a"}, {7: "a dog"}, "references of image 7 are one string"),
        ({7: None}, {7: ["a"]}, "caption None is a NoneType, not text"),
        ({7: "a"}, {7: ["a", ["b"]]}, "caption ['b'] is a list, not text"),
    ],
)
def test_unusable_captions(hypotheses, references, message):
    with pytest.raises(DataError, match=re.escape(message)):
        caption_scores(hypotheses, references)


def test_java_metrics_say_what_they_lack(monkeypatch):
    def ask(name: str):
        return caption_scores({1: "a"}, {1: ["a"]}, java_metrics=[name])

    with pytest.raises(ArgumentError, match="no metric 'BERTScore' in Java; choose from METEOR, SPICE"):
        ask("BERTScore")
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(ArgumentError, match="METEOR needs a `java` command"):
        ask("METEOR")
    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/java")
    monkeypatch.setattr(captions, "STANFORD", "absent-*.jar")
    with pytest.raises(ArgumentError, match=r"SPICE needs Stanford's models; download them once with .*get_stanford"):
        ask("SPICE")
    monkeypatch.setattr(captions, "find_spec", lambda name: None)
    with pytest.raises(ArgumentError, match="METEOR needs pycocoevalcap"):
        ask("METEOR")


def test_java_that_fails_is_one_line(monkeypatch):
    def broken(*sentences):
        raise ValueError("could not convert string to float: ''")

    monkeypatch.setattr(captions, "require_java", lambda name: None)
    monkeypatch.setattr(captions, "meteor_statistics", broken)
    with pytest.raises(ArgumentError, match=r"METEOR failed in Java .*check `java -version`"):
        caption_scores({1: "a"}, {1: ["a"]}, java_metrics=["METEOR"])


def test_meteor_of_the_set_follows_from_its_statistics(monkeypatch):
    """ "a dog runs" and "a cat", by the rows that Java prints of them."""
    rows = np.zeros((2, 23))
    rows[0, [0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22]] = [3, 4, 1, 1, 2, 2, 1, 1, 1, 3, 3]
    rows[1, [0, 1, 2, 3, 4, 5, 6, 7, 20, 21, 22]] = [2, 2, 1, 1, 1, 1, 1, 1, 0, 2, 2]
    monkeypatch.setattr(captions, "require_java", lambda name: None)
    monkeypatch.setattr(captions, "meteor_statistics", lambda *sentences: rows)
    scores = caption_scores({1: "A dog runs.", 2: "a cat"}, {1: ["a dog runs fast"], 2: ["a cat"]}, ["METEOR"])
    assert scores.corpus["METEOR"] == pytest.approx(0.45877890920496)  # recorded from pycocoevalcap 1.2
    assert scores.per_image["METEOR"][1] == pytest.approx(1)


@pytest.mark.slow
@pytest.mark.skipif(not shutil.which("java"), reason="METEOR needs a java command")
def test_meteor():
    hypotheses = {1: "A dog runs.", 2: "a cat"}
    references = {1: ["a dog runs fast"], 2: ["the cat sits", "a cat"]}
    scores = caption_scores(hypotheses, references, java_metrics=["METEOR"])
    assert scores.corpus["METEOR"] == pytest.approx(0.45877890920496)  # recorded from pycocoevalcap 1.2
    assert scores.per_image["METEOR"][1] == pytest.approx(1) and scores.per_image["METEOR"][0] < 0.5
