"""Instructions word for word, and captions as the model learns them."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.generation import GenerationConfig
from vlm.prompt import CAPTION, CAPTION_OPTIONS, clean_caption


def test_instructions_are_those_of_ofa():
    assert CAPTION == " what does the image describe?"


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
