"""What samples teach: captions and questions by hand."""

import random
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.data.shards import Sample
from vlm.errors import DataError
from vlm.tasks import TASKS, TrainingRules
from vlm.tasks.answer import choose_answer, questions
from vlm.tasks.base import choose
from vlm.tasks.caption import Caption
from vlm.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer([" a dog runs", " a cat"], 280)


def caption_ids(captions: list[str], max_tokens: int, ofa_captions: bool = False) -> list[list[int]]:
    rules = TrainingRules(max_tokens=max_tokens, ofa_captions=ofa_captions)
    return Caption(TOKENIZER, 64, rules=rules).caption_ids(captions)


def test_captions_are_cleaned_and_each_counts_once():
    ids = caption_ids(["A dog .", "a dog", "  A CAT!", "", " . "], 20)
    assert ids == [TOKENIZER.encode(" a dog"), TOKENIZER.encode(" a cat")]


def test_long_captions_are_left_out_while_a_shorter_one_exists():
    short, long = TOKENIZER.encode(" a cat"), TOKENIZER.encode(" a dog runs and barks")
    assert len(short) < 6 < len(long)
    assert caption_ids(["a dog runs and barks", "a cat"], 6) == [short]
    assert caption_ids(["a dog runs and barks"], 6) == [long[:6]]
    assert caption_ids(["a cat"], len(short)) == [short]


def test_captions_as_ofa_learns_them():
    ids = caption_ids(["A dog's, run!", "A dog's run"], 20, ofa_captions=True)
    assert ids == [TOKENIZER.encode(" A dogs run")]


@given(st.integers(1, 6), st.integers(0, 20), st.integers())
def test_captions_are_chosen_evenly(captions, count, seed):
    chosen = choose([[i] for i in range(captions)], count, random.Random(seed))
    times = Counter(i for [i] in chosen)
    assert len(chosen) == count
    assert not count or max(times.values()) - min(times[i] for i in range(captions)) <= 1


def test_choice_depends_on_its_seed_alone():
    captions = [[i] for i in range(5)]
    first, second, other = (choose(captions, 5, random.Random(seed)) for seed in (1, 1, 3))
    assert first == second != other


def test_nothing_is_lost_in_a_round_trip():
    [ids] = caption_ids(["A dog runs!"], 20)
    assert TOKENIZER.decode(ids) == " a dog runs"


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
    assert TASKS["answer"].in_sample(sample) and not TASKS["caption"].in_sample(sample)
    captioned = Sample("photo", b"", (" . ", "a dog"))
    assert (
        TASKS["caption"].in_sample(captioned)
        and not TASKS["answer"].in_sample(captioned)
        and questions(captioned) == []
    )


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


def test_examples_hold_what_the_decoder_reads_and_generates():
    task = TASKS["answer"](TOKENIZER, 64, {"prefix": "source"}, TrainingRules(weighted_answers=True))
    sample = asked({"question": "A dog?", "answers": ["a dog", "a dog", "a cat", "no", "no", "no", "no"]})
    (example,) = task.examples(sample, random.Random(0), 1)
    source, answer = TOKENIZER.encode(" a dog?"), TOKENIZER.encode(" no")
    assert example.source == [0, *source, 2] and example.previous == [0, *source, *answer]
    assert example.target == [1] * len(source) + [*answer, 2]
    assert example.weight == 1.0 and example.num_tokens == len(answer) + 1


def test_a_sample_with_nothing_to_learn_gives_no_examples():
    nothing = Sample("photo", b"", (" . ",))
    for name, kind in TASKS.items():
        assert kind(TOKENIZER, 64).examples(nothing, random.Random(0), 3) == [], name
        assert not kind.in_sample(nothing) and not list(kind(TOKENIZER, 64).answers(nothing))
