"""Grounding, questions, captions in other languages, SugarCrepe and human judgements, each worked out by hand."""

import json
from pathlib import Path

import numpy as np
import pytest
from scipy.stats import kendalltau

from eval.benchmark import check_items
from eval.benchmarks import BENCHMARKS
from eval.run import Options, evaluate
from vlm.errors import DataError


def read(name: str, folder: Path, data, split: str | None = None):
    """Items of a benchmark whose one file holds `data`."""
    benchmark = BENCHMARKS[name]
    (folder / benchmark.needs.split(",")[0]).write_text(json.dumps(data, ensure_ascii=False), "utf-8")
    items = benchmark.read(folder, split or benchmark.splits[0])
    check_items(items, name)
    return items


def run(name: str, folder: Path, model, split: str | None = None, limit: int | None = None):
    benchmark = BENCHMARKS[name]
    options = Options(benchmark, folder, "fake", folder / "run", split or benchmark.splits[0], limit=limit)
    results = evaluate(options, lambda *_: model)
    assert results is not None
    return results


# Grounding


PHRASES = [
    {"image": "images/a.jpg", "phrase": "a man", "types": ["people"], "box": [0, 0, 0.5, 1]},
    {"image": "a.jpg", "phrase": "his guitar", "types": ["instruments", "other"], "box": [0.25, 0.25, 0.75, 0.75]},
    {"image": "a.jpg", "phrase": "two dogs", "box": [0.5, 0.5, 1, 1]},
]


def test_grounding_by_hand_and_by_type(tmp_path, put_photo, fake):
    put_photo(tmp_path / "images/a.jpg")
    items = read("grounding_json", tmp_path, PHRASES)
    assert {item.image for item in items} == {tmp_path / "images/a.jpg"}  # named with the folder or without
    model = fake()
    # the whole photo overlaps the left half by exactly one half, and the others by a quarter
    model.ground = lambda images, phrases: [[0.0, 0.0, 1.0, 1.0]] * len(phrases)
    results = run("grounding_json", tmp_path, model)
    assert results["figures"]["accuracy@0.5"]["value"] == pytest.approx(100 / 3)
    groups = {name: (group["value"], group["n"]) for name, group in results["groups"]["type"].items()}
    assert groups == {"instruments": (0, 1), "other": (0, 1), "people": (100, 1)}
    stored = json.loads((tmp_path / "run/items.json").read_text("utf-8"))
    assert stored[1]["box"] == pytest.approx([0.25, 0.25, 0.75, 0.75])


@pytest.mark.parametrize("box", [[0, 0, 200, 100], [0.5, 0, 0.2, 1], [0, 0, 1]])
def test_grounding_boxes_that_are_no_fractions_are_named(tmp_path, box):
    with pytest.raises(DataError, match=r"grounding\.json"):
        read("grounding_json", tmp_path, [PHRASES[0] | {"box": box}])


# Questions


def test_daquar_compares_sets_of_answers(tmp_path):
    asked = [{"question": "what?", "answers": ["chair", "table"]}, {"question": "where?", "answers": ["bunk bed"]}]
    items = read("daquar", tmp_path, [{"file": "images/a.jpg", "vqa": asked}])
    scores = BENCHMARKS["daquar"].score(items, ["table, chair", "bed"])
    assert scores.items["accuracy"] == [100, 0]
    assert [item.groups["answer"] for item in items] == ["several", "one"]


@pytest.mark.parametrize("answer, points", [("Meal.", 100), ("the meal", 100), ("meals", 0), ("meal, plate", 0)])
def test_one_right_answer_is_matched_exactly_after_normalisation(tmp_path, answer, points):
    (tmp_path / "cocoqa.json").write_text(json.dumps([{"image": "a.jpg", "question": "what?", "answer": "meal"}]))
    items = BENCHMARKS["vqa_json"].read(tmp_path, "cocoqa")
    assert BENCHMARKS["vqa_json"].score(items, [answer]).figures["accuracy"] == points


# Captions


CAPTIONS = [
    {"file": "images/a.jpg", "captions": ["A dog."], "zh": ["一只狗在草地上。"], "de": ["Ein weißer Hund läuft."]},
    {"file": "images/b.jpg", "captions": ["A man."], "zh": ["男孩穿着T恤。"], "de": ["Ein Mann in blau-grüner Jacke."]},
    {"file": "images/c.jpg", "captions": ["A cat."], "zh": ["两个人。"], "de": []},
]


def test_chinese_captions_by_characters(tmp_path):
    items = read("captions_json_zh", tmp_path, CAPTIONS)
    scores = BENCHMARKS["captions_json_zh"].score(items, ["一只狗在沙地上", "男孩穿着t恤", "两个人"])
    assert list(scores.figures) == ["CIDEr (characters)", "BLEU-4 (characters)"]
    # the second caption is the reference but for the case of a letter and the full stop
    cider = scores.items["CIDEr (characters)"]
    assert cider[1] == pytest.approx(1000)
    assert 0 < cider[0] < 1000
    # matched n-grams of the three captions: 6 + 6 + 3 of 7 + 6 + 3, 4 + 5 + 2 of 6 + 5 + 2, 2 + 4 + 1 of 5 + 4 + 1,
    # and 1 + 3 of 4 + 3; the captions are as long as their references
    expected = (15 / 16 * 11 / 13 * 7 / 10 * 4 / 7) ** (1 / 4)
    assert scores.figures["BLEU-4 (characters)"] == pytest.approx(100 * expected)


def test_german_captions_have_the_tokens_of_english_ones(tmp_path):
    items = read("captions_json_de", tmp_path, CAPTIONS)
    assert [item.id for item in items] == ["images/a.jpg", "images/b.jpg"]  # the third photo has none
    texts = ["ein weißer hund läuft", "ein mann in blau-grüner jacke"]
    scores = BENCHMARKS["captions_json_de"].score(items, texts)
    assert scores.figures["BLEU-4"] == pytest.approx(100)
    assert list(scores.figures) == ["CIDEr", "BLEU-4"]


def test_a_language_has_a_task_of_its_own(tmp_path, put_photo, fake):
    for record in CAPTIONS:
        put_photo(tmp_path / record["file"])
    read("captions_json_zh", tmp_path, CAPTIONS)
    model = fake()
    model.caption_zh = lambda images: ["两个人"] * len(images)
    results = run("captions_json_zh", tmp_path, model)
    assert (results["task"], results["n"]) == ("caption_zh", 3)
    assert "low" in results["figures"]["CIDEr (characters)"]
    assert "low" in results["figures"]["BLEU-4 (characters)"]


# SugarCrepe


PAIRS = [
    {"file": "a.jpg", "caption": "a red car", "negative": "a blue car", "kind": "replace_att"},
    {"file": "a.jpg", "caption": "a car", "negative": "a car and a dog", "kind": "add_obj"},
    {"file": "b.jpg", "caption": "a dog", "negative": "two dogs", "kind": "replace_att"},
]
SENTENCES = [sentence for pair in PAIRS for sentence in (pair["caption"], pair["negative"])]


class Pair:
    """Encoders of two photos and of sentences, as unit vectors in a plane."""

    name, weights = "pair", "0" * 64

    def __init__(self, cosines: dict[str, float] | None = None):
        self.cosines = cosines or dict(zip(SENTENCES, (0.8, 0.6, 0.6, 0.6, 0.6, 0.0), strict=True))
        self.asked: list[str] = []

    def prepare(self, image):
        return image

    def settings(self, task):
        return {}

    def encode_image(self, images):
        return np.array([[1.0, 0.0]] * len(images))

    def encode_text(self, texts):
        self.asked += texts
        return np.array([[self.cosines[text], (1 - self.cosines[text] ** 2) ** 0.5] for text in texts])


@pytest.fixture
def pairs(tmp_path, put_photo):
    put_photo(tmp_path / "images/a.jpg")
    put_photo(tmp_path / "images/b.jpg", "coffee")
    (tmp_path / "sugarcrepe.json").write_text(json.dumps(PAIRS))
    return tmp_path


def test_sugarcrepe_by_a_pair(pairs):
    results = run("sugarcrepe", pairs, Pair())
    # attributes are both right; the added object ties, which counts as wrong
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    assert figures == {"mean over kinds": pytest.approx((100 + 0) / 2), "all pairs": pytest.approx(200 / 3)}
    assert all("low" in figure for figure in results["figures"].values())
    assert results["groups"]["kind"]["replace_att"] == {"value": 100, "n": 2}
    assert results["n"] == 3


def test_a_sentence_is_embedded_once(tmp_path, put_photo):
    put_photo(tmp_path / "a.jpg")
    put_photo(tmp_path / "b.jpg", "coffee")
    (tmp_path / "sugarcrepe.json").write_text(json.dumps([PAIRS[0], PAIRS[0] | {"file": "b.jpg"}]))
    model = Pair()
    run("sugarcrepe", tmp_path, model)
    assert model.asked == ["a red car", "a blue car"]


def test_sugarcrepe_by_match(pairs, fake):
    model = fake()
    likely = dict(zip(SENTENCES, (0.9, 0.2, 0.7, 0.6, 0.1, 0.3), strict=True))
    model.match = lambda images, sentences: [likely[sentence] for sentence in sentences]
    results = run("sugarcrepe_match", pairs, model)
    figures = {name: figure["value"] for name, figure in results["figures"].items()}
    assert figures == {"mean over kinds": pytest.approx((50 + 100) / 2), "all pairs": pytest.approx(200 / 3)}
    assert results["n"] == 3
    assert run("sugarcrepe_match", pairs, model, limit=3)["n"] == 1  # the third sentence alone makes no pair


def test_pairs_listed_twice_are_the_refined_ones(tmp_path):
    other = PAIRS[0] | {"negative": "a car red"}
    items = read("sugarcrepe", tmp_path, [*PAIRS[:2], PAIRS[0], other, PAIRS[1]], "refined")
    assert [item.references[1] for item in items] == ["a blue car", "a car and a dog"]


def test_an_unknown_kind_is_named(tmp_path):
    with pytest.raises(DataError, match="kind 'swap' is none of replace_obj"):
        read("sugarcrepe", tmp_path, [PAIRS[0] | {"kind": "swap"}])


# Human judgements


EXPERT = [
    {"image": "images/a.jpg", "caption": "a cat", "scores": [4, 4, 3]},
    {"image": "images/a.jpg", "caption": "a dog", "scores": [1, 2, 1]},
    {"image": "images/b.jpg", "caption": "a cup", "scores": [3, 4, 2]},
    {"image": "images/b.jpg", "caption": "a cat", "scores": [1, 1, 1]},
]
CROWD = [
    {"image": record["image"], "caption": record["caption"], "yes_share": sum(record["scores"]) / 12, "votes": 3}
    for record in EXPERT
]


def test_each_expert_is_a_row(tmp_path):
    items = read("flickr8k_expert", tmp_path, EXPERT)
    assert items[0].references == ("A photo depicts a cat", "A photo depicts a dog")
    assert items[0].ratings == ((4, 4, 3), (1, 2, 1))
    scores = BENCHMARKS["flickr8k_expert"].score(items, [[0.5, -0.2], [0.3, 0.1]])
    # a cosine below 0 scores 0; 2.5 max(cos, 0) of each caption stands beside each of its three scores
    expected, _ = np.asarray(
        kendalltau([1.25] * 3 + [0] * 3 + [0.75] * 3 + [0.25] * 3, [4, 4, 3, 1, 2, 1, 3, 4, 2, 1, 1, 1], variant="c")
    )
    assert scores.figures["Kendall tau-c"] == pytest.approx(100 * expected)
    low, high = scores.intervals["Kendall tau-c"]
    assert low <= scores.figures["Kendall tau-c"] <= high
    assert (scores.settings["captions"], scores.settings["judgements"]) == (4, 12)


def test_crowdflower_takes_shares_of_yes(tmp_path, put_photo):
    put_photo(tmp_path / "images/a.jpg")
    put_photo(tmp_path / "images/b.jpg", "coffee")
    read("flickr8k_crowdflower", tmp_path, CROWD)
    cosines = {"a cat": 0.4, "a dog": 0.1, "a cup": 0.5}
    model = Pair({f"A photo depicts {name}": value for name, value in cosines.items()})
    results = run("flickr8k_crowdflower", tmp_path, model)
    expected, _ = np.asarray(kendalltau([0.4, 0.1, 0.5, 0.4], [record["yes_share"] for record in CROWD], variant="b"))
    figure = results["figures"]["Kendall tau-b"]
    assert figure["value"] == pytest.approx(100 * expected)
    assert figure["low"] <= figure["value"] <= figure["high"]
    assert (results["n"], results["settings"]["judgements"]) == (2, 4)


def test_other_ratings_are_other_items(tmp_path):
    from eval.run import _digest

    items = read("flickr8k_expert", tmp_path, EXPERT)
    changed = read("flickr8k_expert", tmp_path, [EXPERT[0] | {"scores": [1, 1, 1]}, *EXPERT[1:]])
    assert _digest(items) != _digest(changed)
