"""Instructions word for word, and captions as the model learns them."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm import prompt
from vlm.errors import ArgumentError
from vlm.generation import GenerationConfig
from vlm.prompt import CAPTION, CAPTION_OPTIONS, clean_caption, example
from vlm.tokenizer import Tokenizer, train_tokenizer


def test_instructions_are_those_of_ofa():
    assert CAPTION == " what does the image describe?"
    assert prompt.QUESTION.format("is it {red}?") == " is it {red}?"  # braces of a user are text
    assert prompt.OBJECTS.format("man tree") == " object: man tree"
    assert prompt.GROUND.format("a man") == ' which region does the text " a man " describe?'
    assert prompt.REGION == "  what does the region describe? region:"
    assert prompt.ENTAIL.format("a man") == ' does the image describe " a man "?'
    assert (
        prompt.ENTAIL_WITH_CAPTION.format("a man", "a dog") == ' can image and text1 " a man " imply text2 " a dog "?'
    )
    assert prompt.SUMMARIZE.format("news") == ' what is the summary of article " news "?'
    assert prompt.GENERATE_IMAGE.format("a dog") == " what is the complete image? caption: a dog"
    assert prompt.GROUND_CHINESE.format("狗") == '这段文字" 狗 "描述的是哪个区域？'
    assert prompt.SUMMARIZE_CHINESE.format("狗") == "狗 请用一个句子简单总结上文："


def test_caption_options_are_a_beam_search():
    config = GenerationConfig(**CAPTION_OPTIONS)
    assert (config.beams, config.max_tokens, config.no_repeat_ngram, config.sample) == (5, 20, 3, False)


@pytest.mark.parametrize(
    "caption, expected",
    [
        ("A dog runs through tall grass .", "a dog runs through tall grass"),
        ("Two  dogs\n run.\t", "two dogs run"),
        ("A man's dog -- it's well-trained!", "a man's dog it's well-trained"),
        ("A woman’s hat", "a woman's hat"),
        ("“Hello,” she said…", "hello she said"),
        ("rock 'n' roll", "rock n roll"),
        ("the dogs' toys", "the dogs toys"),
        ("'Stop' it says-", "stop it says"),
        ("a 5-year-old in a t-shirt", "a 5-year-old in a t-shirt"),
        ("wait--what", "wait what"),
        ("snake_case and _'tis_", "snake case and tis"),
        ("a_'b", "a b"),
        ("3,5 & 50%", "3 5 50"),
        ("Ein Mädchen läuft über die Straße.", "ein mädchen läuft über die straße"),
        ("一只狗，在草地上。", "一只狗 在草地上"),
        ("<s> a dog </s>", "s a dog s"),
        ("--- ' _ !", ""),
        ("", ""),
    ],
)
def test_cleaning_by_hand(caption, expected):
    assert clean_caption(caption) == expected


anything = st.text() | st.text(alphabet="aB'-_’. \nİß狗")


@given(anything)
def test_cleaning_twice_changes_nothing(caption):
    assert clean_caption(clean_caption(caption)) == clean_caption(caption)


@given(anything)
def test_what_is_left_are_words(caption):
    letter = r"[^\W_]"
    for word in clean_caption(caption).split(" ") if clean_caption(caption) else ():
        assert re.fullmatch(rf"{letter}+(['-]{letter}+)*", word), word


@given(st.lists(st.text(alphabet="abcdefghijklmnopqrstuvwxyz0123456789", min_size=1), min_size=1))
def test_clean_words_stay(words):
    assert clean_caption(" ".join(words)) == " ".join(words)


# As OFA reads and writes


@pytest.mark.parametrize(
    "text, question, sentence",
    [
        ("What is-this/that?", "what is this that?", "what is this that?"),
        ("!?.,*#:;~Start here", "start here", "start here"),
        ("  ...Hello,   World!!  ", "...hello, world!!", "...hello, world!!"),
        ("A-B/C <person> rides\n", "a b c <person> rides", "a b c person rides"),
        ("<PERSON>", "<person>", "person"),
        ("Tabs\tand  spaces", "tabs\tand spaces", "tabs\tand spaces"),
        ("?", "", ""),
        ("", "", ""),
    ],
)
def test_questions_and_sentences_by_hand(text, question, sentence):
    assert prompt.clean_question(text) == question
    assert prompt.clean_sentence(text) == sentence


def test_long_texts_are_cut_after_a_word():
    assert prompt.clean_question("One two-three four", 3) == "one two three"
    assert prompt.strip_punctuation("A man, riding (a horse)!", 3) == "A man riding"
    assert prompt.strip_punctuation(" it's  a well-known\tcat. ") == "its a wellknown cat"


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
def test_a_question_ends_with_its_mark(question, filled):
    assert prompt.fill_question(question) == filled


@pytest.mark.parametrize("question", ["", " ", "?", " ??", "...", "？"])
def test_a_question_without_words_is_none(question):
    with pytest.raises(ArgumentError, match="holds no words"):
        prompt.fill_question(question)


def test_answers_to_choose_from_stand_once():
    assert prompt.distinct("label", [" cat", "dog ", "cat", "Cat"]) == ["cat", "dog", "Cat"]


@pytest.mark.parametrize("box", [(-5, -5, 30, 10), (10, 0, 110, 60), (99, 49, 200, 200)])
def test_what_lies_outside_of_the_photo_is_cut_off(box):
    left, top, right, bottom = prompt.clip_box(box, 100, 50)
    assert 0 <= left < right <= 100 and 0 <= top < bottom <= 50
    assert all(
        cut == given for cut, given, side in zip((left, top), box, (100, 50), strict=False) if 0 <= given <= side
    )


@pytest.mark.parametrize("box", [(1, 2, 3), (5, 5, 5, 9), (9, 5, 5, 9), (100, 0, 120, 50), (0, 0, float("inf"), 9)])
def test_what_is_no_box_in_the_photo_is_said(box):
    with pytest.raises(ArgumentError, match="is no box in a photo of 100x50 pixels"):
        prompt.clip_box(box, 100, 50)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return train_tokenizer([" a dog"], 260, num_bins=1000)


def test_a_box_by_hand(tokenizer):
    # 100 x 50 pixels to 512 x 512: the last location stands for pixel 512
    ids = prompt.box_locations(tokenizer, (25, 0, 100, 12.5), 100, 50, 512)
    assert [i - tokenizer.bin_start for i in ids] == [250, 0, 999, 250]  # round(0.25 * 999) = 250
    assert prompt.read_box(tokenizer, ids, 100, 50, 512) == pytest.approx((25.025, 0, 100, 12.5125), abs=1e-3)
    # resized to 256, the same photo ends at half of the locations
    ids = prompt.box_locations(tokenizer, (0, 0, 100, 50), 100, 50, 256)
    assert [i - tokenizer.bin_start for i in ids] == [0, 0, 500, 500]  # round(499.5) = 500
    assert prompt.read_box(tokenizer, [*ids, 2], 100, 50, 256) == pytest.approx((0, 0, 100.1, 50.05), abs=1e-2)


@pytest.mark.parametrize("number", [0, 3, 5])
def test_an_answer_without_four_locations_is_no_box(tokenizer, number):
    assert prompt.read_box(tokenizer, [5, *[tokenizer.bin_start] * number, 2], 10, 10, 512) is None


@settings(deadline=None)
@given(st.lists(st.floats(0, 1), min_size=4, max_size=4), st.integers(1, 5000), st.integers(1, 5000))
def test_a_box_comes_back_within_half_a_location(tokenizer, parts, width, height):
    box = [part * side for part, side in zip(parts, (width, height) * 2, strict=True)]
    found = prompt.read_box(tokenizer, prompt.box_locations(tokenizer, box, width, height, 480), width, height, 480)
    for value, expected, side in zip(found or (), box, (width, height) * 2, strict=True):
        assert value == pytest.approx(expected, abs=side * 512 / 480 / 999 / 2 + 1e-6)


def test_examples_by_hand():
    plain = example([7, 8], [9])
    assert (plain.source, plain.prefix, plain.previous, plain.target) == ([0, 7, 8, 2], [0], [0, 9], [9, 2])
    again = example([7, 8], [9], "source")
    assert (again.prefix, again.previous, again.target) == ([0, 7, 8], [0, 7, 8, 9], [1, 1, 9, 2])
    ended = example([7, 8], [9], "source_and_end")
    assert (ended.prefix, ended.previous, ended.target) == ([0, 7, 8, 2], [0, 7, 8, 2, 9], [1, 1, 1, 9, 2])
