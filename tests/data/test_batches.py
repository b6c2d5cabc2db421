"""Samples to batches, by hand."""

import random
from collections import Counter

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.asking import pad
from vlm.candidates import Trie
from vlm.data.batches import (
    IGNORED,
    Lesson,
    allowed_words,
    caption_ids,
    choose_answer,
    choose_captions,
    prompt_ids,
    questions,
    says,
    teacher_forcing,
)
from vlm.data.shards import Sample
from vlm.errors import DataError
from vlm.prompt import example, strip_punctuation
from vlm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([" a dog runs", " a cat"], 280)


def test_padding_by_hand():
    assert pad([[5, 6, 7], [8], []]).tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert pad([[5, 6], [8]], -100).tolist() == [[5, 6], [8, -100]]
    assert pad([[5]]).dtype == torch.int64


def test_a_prompt_stands_between_start_and_end():
    assert prompt_ids(TOKENIZER, " a dog") == [0, *TOKENIZER.encode(" a dog"), 2]


def test_captions_are_cleaned_and_each_counts_once():
    ids = caption_ids(TOKENIZER, ["A dog .", "a dog", "  A CAT!", "", " . "], 20)
    assert ids == [TOKENIZER.encode(" a dog"), TOKENIZER.encode(" a cat")]


def test_long_captions_are_left_out_while_a_shorter_one_exists():
    short, long = TOKENIZER.encode(" a cat"), TOKENIZER.encode(" a dog runs and barks")
    assert len(short) < 6 < len(long)
    assert caption_ids(TOKENIZER, ["a dog runs and barks", "a cat"], 6) == [short]
    assert caption_ids(TOKENIZER, ["a dog runs and barks"], 6) == [long[:6]]
    assert caption_ids(TOKENIZER, ["a cat"], len(short)) == [short]


def test_captions_as_ofa_learns_them():
    ids = caption_ids(TOKENIZER, ["A dog's, run!", "A dog's run"], 20, strip_punctuation)
    assert ids == [TOKENIZER.encode(" A dogs run")]


@given(st.integers(1, 6), st.integers(0, 20), st.integers())
def test_captions_are_chosen_evenly(captions, count, seed):
    chosen = choose_captions([[i] for i in range(captions)], count, random.Random(seed))
    times = Counter(i for [i] in chosen)
    assert len(chosen) == count
    assert not count or max(times.values()) - min(times[i] for i in range(captions)) <= 1


def test_choice_depends_on_its_seed_alone():
    captions = [[i] for i in range(5)]
    first, second, other = (choose_captions(captions, 5, random.Random(seed)) for seed in (1, 1, 3))
    assert first == second != other


def test_teacher_forcing_by_hand():
    previous, labels = teacher_forcing([example([4], ids) for ids in ([7, 8, 9], [5])])
    assert previous.tolist() == [[0, 7, 8, 9], [0, 5, 1, 1]]
    assert labels.tolist() == [[7, 8, 9, 2], [5, 2, -100, -100]]
    assert torch.nn.CrossEntropyLoss().ignore_index == IGNORED


def test_nothing_is_learned_before_the_answer():
    asked = [Lesson(example([7, 8], [9], "source")), Lesson(example([6], [4, 5], "source"))]
    previous, labels = teacher_forcing([lesson.example for lesson in asked])
    assert previous.tolist() == [[0, 7, 8, 9], [0, 6, 4, 5]]
    assert labels.tolist() == [[-100, -100, 9, 2], [-100, 4, 5, 2]]
    assert [lesson.words for lesson in asked] == [2, 3] == (labels != IGNORED).sum(1).tolist()


@given(st.lists(st.lists(st.integers(4, 99), min_size=1, max_size=6), min_size=1, max_size=5))
def test_each_position_predicts_the_next_token(captions):
    previous, labels = teacher_forcing([example([4, 5], ids) for ids in captions])
    for row, ids in enumerate(captions):
        assert previous[row, : len(ids) + 1].tolist() == [0, *ids]
        assert labels[row, : len(ids) + 1].tolist() == [*ids, 2]
        assert (labels[row, len(ids) + 1 :] == IGNORED).all()


def test_nothing_is_lost_in_a_round_trip():
    [ids] = caption_ids(TOKENIZER, ["A dog runs!"], 20)
    assert TOKENIZER.decode(ids) == " a dog runs"
    with pytest.raises(ValueError):
        pad([])


# Questions


def asked(*items: object) -> Sample:
    return Sample("photo", b"", (), fields={"vqa": list(items)})


def test_questions_by_hand():
    sample = asked(
        {"question": "What is it?", "answers": [" A  Dog", "cat ", "", " "], "source": "vqa2"},
        {"question": "What is on it?", "answers": ["cup", "Lamp"], "source": "daquar"},
        {"question": "One?", "answers": "Yes"},
        {"question": "Nobody knows?", "answers": []},
    )
    found = questions(sample, ["daquar"])
    assert [(q.text, q.answers) for q in found] == [
        ("What is it?", ("a dog", "cat")), ("What is on it?", ("cup, lamp",)), ("One?", ("yes",))
    ]  # fmt: skip
    assert questions(sample)[1].answers == ("cup", "lamp")
    assert says(sample, "answer") and not says(sample, "caption")
    captioned = Sample("photo", b"", (" . ", "a dog"))
    assert says(captioned, "caption") and not says(captioned, "answer") and questions(captioned) == []


@pytest.mark.parametrize("item", ["what?", {"question": "What?"}, {"question": "What?", "answers": [3]}, {}])
def test_a_damaged_question_names_its_sample(item):
    with pytest.raises(DataError, match=r"sample 'photo': vqa holds .*; give objects of question and answers"):
        questions(asked(item))


def test_answers_are_drawn_as_often_as_people_gave_them():
    draws = [choose_answer(["dog"] * 7 + ["cat"] * 3, False, random.Random(seed)) for seed in range(1000)]
    assert {weight for _, weight in draws} == {1.0}
    assert 650 < sum(answer == "dog" for answer, _ in draws) < 750


@pytest.mark.parametrize("times, weight", [(1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (10, 1.0)])
def test_the_most_common_answer_weighs_what_ofa_gives_it(times, weight):
    others = [f"other{i}" for i in range(10 - times)]
    answer, found = choose_answer([*others[:1], *["dog"] * times, *others[1:]], True, random.Random(0))
    assert found == pytest.approx(weight) and answer == ("dog" if times > 1 else "other0")


def test_a_single_answer_weighs_all():
    assert choose_answer(["dog"], True, random.Random(0)) == ("dog", 1.0)


def test_what_may_be_written_follows_the_answers_by_hand():
    trie = Trie([[10, 20], [10, 21, 22], [30]])
    labels = torch.tensor([[-100, 10, 20, 2], [30, 2, -100, -100]])
    found = [row.nonzero().flatten().tolist() for row in allowed_words(trie, labels, 40)]
    assert found == [[10, 30], [20, 21], [2], [10, 30], [2]]


@given(st.lists(st.lists(st.integers(4, 9), min_size=1, max_size=4), min_size=1, max_size=6), st.integers(0, 3))
def test_every_answer_of_the_set_is_allowed(answers, before):
    _, labels = teacher_forcing([example([5] * before, ids, "source") for ids in answers])
    allowed = allowed_words(Trie(answers), labels, 12)
    words = labels[labels != IGNORED]
    assert allowed.shape == (len(words), 12) and bool(allowed.gather(1, words[:, None]).all())
    first = {ids[0] for ids in answers}
    starts = torch.tensor([len(ids) + 1 for ids in answers]).cumsum(0).roll(1)
    starts[0] = 0
    assert all({*row.nonzero().flatten().tolist()} == first for row in allowed[starts])
