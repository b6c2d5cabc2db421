"""Text as models read and learn it: captions, questions and sentences cleaned."""

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.errors import ArgumentError
from vlm.tasks.text import clean_caption, clean_input, clean_question, clean_sentence, distinct, strip_punctuation


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
    assert clean_question(text) == question
    assert clean_sentence(text) == sentence


def test_long_texts_are_cut_after_a_word():
    assert clean_question("One two-three four", 3) == "one two three"
    assert strip_punctuation("A man, riding (a horse)!", 3) == "A man riding"
    assert strip_punctuation(" it's  a well-known\tcat. ") == "its a wellknown cat"


def test_answers_to_choose_from_stand_once():
    assert distinct("label", [" cat", "dog ", "cat", "Cat"]) == ["cat", "dog", "Cat"]


@pytest.mark.parametrize(
    "given, reason",
    [([], "there are no labels"), (["cat", " "], "the labels hold an empty one"), ("cat,dog", "are a list of strings")],
)
def test_answers_that_cannot_be_chosen_from(given, reason):
    with pytest.raises(ArgumentError, match=reason):
        distinct("label", given)


def test_input_of_a_user_keeps_eighty_words():
    assert clean_input("phrase", "A red-sofa <person>") == "a red sofa person"
    assert clean_input("phrase", "w " * 100).split() == ["w"] * 80
    assert clean_input("text", "w " * 100, 90).split() == ["w"] * 90
    with pytest.raises(ArgumentError, match=r"the phrase ',\.' contains no words; write some"):
        clean_input("phrase", ",.")
