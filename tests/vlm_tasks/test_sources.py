"""What the encoder reads of each task, word for word; examples to learn; and boxes as locations."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.decoding.config import GenerationConfig
from vlm.errors import ArgumentError
from vlm.models.config import BOS, EOS, PAD
from vlm.predictor import Photo
from vlm.tasks import (
    TASKS,
    answer,
    caption,
    classify,
    complete,
    describe_region,
    entail,
    generate_image,
    ground,
    summarize,
)
from vlm.tasks.base import SENTENCE_SEARCH
from vlm.tasks.boxes import box_locations, clip_box, read_box
from vlm.tokenizer import Tokenizer, train_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" a dog"], 260, num_bins=1000)


def test_instructions_are_those_of_ofa():
    assert caption.PROMPT == " what does the image describe?"
    assert classify.Classify.defaults["prompt"] == " what does the image describe?"
    assert answer.PROMPT.format("is it {red}?") == " is it {red}?"  # braces of a user are text
    assert answer.OBJECTS.format("man tree") == " object: man tree"
    assert ground.PROMPT.format("a man") == ' which region does the text " a man " describe?'
    assert describe_region.PROMPT == "  what does the region describe? region:"
    assert entail.PROMPT.format("a man") == ' does the image describe " a man "?'
    assert (
        entail.PROMPT_WITH_CAPTION.format("a man", "a dog") == ' can image and text1 " a man " imply text2 " a dog "?'
    )
    assert summarize.PROMPT.format("news") == ' what is the summary of article " news "?'
    assert complete.PROMPT.format(" a dog") == ' what is the complete text of " a dog "?'
    assert generate_image.PROMPT.format("a dog") == " what is the complete image? caption: a dog"
    assert ground.PROMPT_CHINESE.format("狗") == '这段文字" 狗 "描述的是哪个区域？'
    assert summarize.PROMPT_CHINESE.format("狗") == "狗 请用一个句子简单总结上文："


def test_captions_are_found_by_a_beam_search(tokenizer):
    config = GenerationConfig(**SENTENCE_SEARCH)
    assert (config.beams, config.max_tokens, config.no_repeat_ngram, config.sample) == (5, 20, 3, False)
    found = caption.Caption(tokenizer, 64).search()
    assert (found.beams, found.max_tokens, found.no_repeat_ngram, found.sample) == (5, 20, 3, False)


@pytest.mark.parametrize(
    "task, inputs, filled",
    [
        ("caption", (), " what does the image describe?"),
        ("classify", (), " what does the image describe?"),
        ("ground", ("The red-sofa.",), ' which region does the text " the red sofa. " describe?'),
        ("entail", ("A dog", ""), ' does the image describe " a dog "?'),
        ("entail", ("A dog", "Two-cats"), ' can image and text1 " two cats " imply text2 " a dog "?'),
        ("summarize", ("A dog <unk> runs",), ' what is the summary of article " a dog unk runs "?'),
        ("summarize", ("w " * 600,), f' what is the summary of article " {("w " * 512).strip()} "?'),
        ("generate_image", ("A {red} <dog>",), " what is the complete image? caption: A {red} <dog>"),
        ("generate_image", ("w " * 70,), f" what is the complete image? caption: {('w ' * 64).strip()}"),
    ],
)
def test_an_instruction_is_filled_with_its_input(tokenizer, task, inputs, filled):
    assert TASKS[task](tokenizer, 64).source(None, *inputs) == tokenizer.encode(filled)


def test_instructions_of_more_than_text(tokenizer):
    encode = tokenizer.encode
    ask = answer.AnswerQuestion(tokenizer, 64).source
    assert ask(None, "Is it red", ["man", "tree"]) == encode(" is it red?") + encode(" object: man tree")
    assert ask(None, "Is it red", ["a"] * 40) == encode(" is it red?") + encode(" object:" + " a" * 30)
    assert ask(None, "Is it red", []) == encode(" is it red?")
    with_gap = [*encode(' what is the complete text of "'), *encode(" a dog"), tokenizer.mask_id, *encode(", they say")]
    assert complete.Complete(tokenizer, 64).source(None, "A  dog <mask>, they say ") == with_gap + encode(' "?')
    photo = Photo(torch.zeros(1, 1, 1), (100, 50))
    bins = [tokenizer.bin_start + number for number in (250, 0, 999, 250)]
    region = describe_region.DescribeRegion(tokenizer, 64).source(photo, (25, -5, 120, 12.5))
    assert region == encode("  what does the region describe? region:") + bins


@pytest.mark.parametrize(
    "question, filled",
    [
        ("What is-this", " what is this?"),
        ("Is it {red}?", " is it {red}?"),
        ("it is red. Why? ", " it is red. why?"),
        ("这是什么？", " 这是什么？"),
        ("?! why", " why?"),
    ],
)
def test_a_question_ends_with_its_mark(tokenizer, question, filled):
    assert answer.PROMPT.format(answer.with_mark(question)) == filled
    assert answer.AnswerQuestion(tokenizer, 64).source(None, question) == tokenizer.encode(filled)


@pytest.mark.parametrize("question", ["", " ", "?", " ??", "...", "？"])
def test_a_question_without_words_is_refused(tokenizer, question):
    with pytest.raises(ArgumentError, match="contains no words"):
        answer.AnswerQuestion(tokenizer, 64).source(None, question)


@pytest.mark.parametrize("box", [(-5, -5, 30, 10), (10, 0, 110, 60), (99, 49, 200, 200)])
def test_what_lies_outside_of_the_photo_is_cut_off(box):
    left, top, right, bottom = clip_box(box, 100, 50)
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 50
    assert all(
        cut == given for cut, given, side in zip((left, top), box, (100, 50), strict=False) if 0 <= given <= side
    )


@pytest.mark.parametrize("box", [(1, 2, 3), (5, 5, 5, 9), (9, 5, 5, 9), (100, 0, 120, 50), (0, 0, float("inf"), 9)])
def test_what_is_no_box_in_the_photo_is_said(box):
    with pytest.raises(ArgumentError, match="is not a box in a photo of 100x50 pixels"):
        clip_box(box, 100, 50)


def test_a_box_by_hand(tokenizer):
    # 100 x 50 pixels to 512 x 512: the last location stands for pixel 512
    ids = box_locations(tokenizer, (25, 0, 100, 12.5), 100, 50, 512)
    assert [i - tokenizer.bin_start for i in ids] == [250, 0, 999, 250]  # round(0.25 * 999) = 250
    assert read_box(tokenizer, ids, 100, 50, 512) == pytest.approx((25.025, 0, 100, 12.5125), abs=1e-3)
    # resized to 256, the same photo ends at half of the locations
    ids = box_locations(tokenizer, (0, 0, 100, 50), 100, 50, 256)
    assert [i - tokenizer.bin_start for i in ids] == [0, 0, 500, 500]  # round(499.5) = 500
    assert read_box(tokenizer, [*ids, 2], 100, 50, 256) == pytest.approx((0, 0, 100.1, 50.05), abs=1e-2)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_an_answer_without_four_locations_is_no_box(tokenizer, number):
    assert read_box(tokenizer, [5, *[tokenizer.bin_start] * number, 2], 10, 10, 512) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 5000), st.integers(1, 5000))
def test_a_box_comes_back_within_half_a_location(tokenizer, parts, width, height):
    box = [part * side for part, side in zip(parts, (width, height) * 2, strict=True)]
    found = read_box(tokenizer, box_locations(tokenizer, box, width, height, 480), width, height, 480)
    for value, expected, side in zip(found or (), box, (width, height) * 2, strict=True):
        assert value == pytest.approx(expected, abs=side * 512 / 480 / 999 / 2 + 1e-6)


def test_examples_by_hand(tokenizer):
    assert (BOS, PAD, EOS) == (0, 1, 2)
    plain = caption.Caption(tokenizer, 64).example([7, 8], [9])
    assert (plain.source, plain.prefix, plain.previous, plain.target) == ([0, 7, 8, 2], [0], [0, 9], [9, 2])
    again = answer.AnswerQuestion(tokenizer, 64, {"prefix": "source"}).example([7, 8], [9])
    assert (again.prefix, again.previous, again.target) == ([0, 7, 8], [0, 7, 8, 9], [1, 1, 9, 2])
    ended = answer.AnswerQuestion(tokenizer, 64, {"prefix": "source_and_end"}).example([7, 8], [9], 0.5)
    assert (ended.prefix, ended.previous, ended.target) == ([0, 7, 8, 2], [0, 7, 8, 2, 9], [1, 1, 1, 9, 2])
    assert again.source == ended.source == [0, 7, 8, 2]
    assert (plain.num_tokens, again.num_tokens, ended.num_tokens) == (2, 2, 2)
    assert (plain.weight, ended.weight) == (1.0, 0.5)
