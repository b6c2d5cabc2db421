"""VQA accuracy against a second reading of the official script: character by character, without regular expressions."""

import copy
import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from eval.metrics.vqa import CONTRACTIONS, exact_match, normalize_answer, vqa_accuracy, vqa_scores
from vlm.errors import DataError

# --- The second reading. Shares the contraction data with the module under test, nothing else. ---

MARKS = [";", "/", "[", "]", '"', "{", "}", "(", ")", "=", "+", "\\", "_", "-", ">", "<", "@", "`", ",", "?", "!"]
DIGIT_OF = {
    "none": "0",
    "zero": "0",
    "one": "1",
    "two": "2",
    "three": "3",
    "four": "4",
    "five": "5",
    "six": "6",
    "seven": "7",
    "eight": "8",
    "nine": "9",
    "ten": "10",
}
branches: Counter[str] = Counter()  # which rules the generated cases reached


def took(branch: str, condition: bool = True) -> bool:
    branches[branch] += condition
    return condition


def has_digit_comma_digit(text: str) -> bool:
    return any(text[i].isdecimal() and text[i + 1] == "," and text[i + 2].isdecimal() for i in range(len(text) - 2))


def official_punctuation(text: str) -> str:
    """Each mark in turn is deleted or blanked by what the untouched text looks like; then dots."""
    result = text
    for mark in MARKS:
        if mark not in text:
            continue
        before_blank = took("mark before a blank", f"{mark} " in text)
        after_blank = took("mark after a blank", f" {mark}" in text)
        group = took("comma between digits", has_digit_comma_digit(text))
        if before_blank or after_blank or group:
            result = "".join(c for c in result if c != mark)
        else:
            took("mark becomes a blank")
            result = "".join(" " if c == mark else c for c in result)
    kept, deleted = [], 0
    for i, c in enumerate(result):
        digit_follows = i + 1 < len(result) and result[i + 1].isdecimal()
        if c == "." and not digit_follows and deleted < 32:
            deleted += took("dot deleted")
        else:
            took("dot kept before a digit", c == "." and digit_follows)
            took("dot kept, 32 being gone", c == "." and not digit_follows)
            kept.append(c)
    return "".join(kept)


def official_words(text: str) -> str:
    """Lower case; number words, then articles, then contractions."""
    words = []
    for word in text.lower().split():
        took("number word", word in DIGIT_OF)
        word = DIGIT_OF.get(word, word)
        if not took("article", word in ("a", "an", "the")):
            words.append(word)
    for i, word in enumerate(words):
        if took("contraction", word in CONTRACTIONS):
            words[i] = CONTRACTIONS[word]
    took("nothing left", not words)
    return " ".join(words)


def official_strip(text: str) -> str:
    took("line end or tab", "\n" in text or "\t" in text)
    return "".join(" " if c in "\n\t" else c for c in text).strip()


def official_normalize(text: str) -> str:
    return official_words(official_punctuation(official_strip(text)))


def official_evaluate(predictions: dict, annotations: list[dict]) -> tuple[dict, dict]:
    """The official loop over questions: (accuracies in percent, fraction of each question)."""
    every, by_answer, by_question, fractions = [], {}, {}, {}
    for annotation in copy.deepcopy(annotations):
        prediction = official_strip(predictions[annotation["question_id"]])
        people = annotation["answers"]
        for person in people:
            person["answer"] = official_strip(person["answer"])
        if took("people differ", len({person["answer"] for person in people}) > 1):
            for person in people:
                person["answer"] = official_words(official_punctuation(person["answer"]))
            prediction = official_words(official_punctuation(prediction))
        else:
            took("people agree")
        turns = []
        for left_out in people:
            others = [person for person in people if person != left_out]
            agreeing = [person for person in others if person["answer"] == prediction]
            took(f"{min(len(agreeing), 4)} others agree")
            turns.append(min(1, float(len(agreeing)) / 3))
        fraction = float(sum(turns)) / len(turns)
        every.append(fraction)
        by_answer.setdefault(annotation["answer_type"], []).append(fraction)
        by_question.setdefault(annotation["question_type"], []).append(fraction)
        fractions[annotation["question_id"]] = fraction
    accuracy = {
        "overall": round(100 * float(sum(every)) / len(every), 2),
        "perAnswerType": {name: round(100 * float(sum(s)) / len(s), 2) for name, s in by_answer.items()},
        "perQuestionType": {name: round(100 * float(sum(s)) / len(s), 2) for name, s in by_question.items()},
    }
    return accuracy, fractions


# --- Generated cases ---

PLAIN = [
    "yes",
    "no",
    "red",
    "Tennis Racket",
    "don't know",
    "New York",
    "it's",
    "5:30",
    "e.g",
    "Ünïcode",
    "٣",
    "١,٢",
    "im",
]
PIECES = [
    *PLAIN,
    *CONTRACTIONS,
    *(word.capitalize() for word in CONTRACTIONS),
    *DIGIT_OF,
    *("a", "an", "the", "A", "The", "eleven", "None"),
    *("1,000", "2,5", "3.5", ".5", "7.", "U.S.", "...", "1,,2", "," * 3, "." * 40, ".5." * 12, "10", "0"),
    *MARKS,
]
GLUE = ["", " ", " ", " ", "  ", "\n", "\t", "\u2003", "-", "/", ".", ","]


def make_answer(rng: random.Random) -> str:
    """A few pieces with something between them, at times with blanks or line ends around."""
    text = rng.choice(PIECES)
    for _ in range(rng.choice([0, 0, 1, 2, 3])):
        text += rng.choice(GLUE) + rng.choice(PIECES)
    return rng.choice(["", "", "", " ", "\n"]) + text + rng.choice(["", "", "", " ", "\t", ".", "?"])


def make_question(rng: random.Random, question_id: int, people: int) -> dict:
    """Few distinct answers, in several spellings, so that every number of matches occurs."""
    answers = [make_answer(rng) for _ in range(rng.choice([1, 1, 2, 3]))]
    spell = rng.choice([str, str, lambda text: rng.choice([text, text.upper(), f"the {text}", f"{text}."])])
    return {
        "question_id": question_id,
        "question_type": rng.choice(["what is", "is the", "how many", "none of the above"]),
        "answer_type": rng.choice(["yes/no", "number", "other"]),
        "multiple_choice_answer": answers[0],
        "answers": [{"answer": spell(rng.choice(answers)), "answer_id": i + 1} for i in range(people)],
    }


def make_cases(seed: int, questions: int) -> tuple[dict, list[dict]]:
    rng = random.Random(seed)
    people = [10, 10, 10, 1, 2, 3, 5, 12]
    annotations = [make_question(rng, i, people[i % len(people)]) for i in range(questions)]
    predictions = {}
    for annotation in annotations:
        answer = rng.choice(annotation["answers"])["answer"]
        predictions[annotation["question_id"]] = rng.choice(
            [answer, answer, official_normalize(answer), make_answer(rng)]
        )
    return predictions, annotations


def test_normalisation_equals_the_second_reading():
    rng = random.Random(0)
    texts = {make_answer(rng) for _ in range(15_000)}
    assert len(texts) > 10_000
    assert {text: normalize_answer(text) for text in texts} == {text: official_normalize(text) for text in texts}


def test_scores_equal_the_second_reading_and_cases_reach_every_rule():
    branches.clear()
    predictions, annotations = make_cases(seed=1, questions=10_000)
    untouched = copy.deepcopy(annotations)
    accuracy, fractions = official_evaluate(predictions, annotations)
    scores = vqa_scores(predictions, annotations)
    assert annotations == untouched  # the official script overwrites them
    assert dict(zip(scores.question_ids, scores.per_question.tolist(), strict=True)) == fractions  # to the last bit
    assert scores.official() == accuracy
    assert scores.overall == pytest.approx(accuracy["overall"] / 100, abs=5e-5)
    for ours, theirs in [(scores.per_answer_type, "perAnswerType"), (scores.per_question_type, "perQuestionType")]:
        assert ours == pytest.approx({name: value / 100 for name, value in accuracy[theirs].items()}, abs=5e-5)
    expected = {
        "mark before a blank",
        "mark after a blank",
        "comma between digits",
        "mark becomes a blank",
        "dot deleted",
    }
    expected |= {"dot kept before a digit", "dot kept, 32 being gone", "number word", "article", "contraction"}
    expected |= {"nothing left", "line end or tab", "people differ", "people agree"}
    expected |= {f"{n} others agree" for n in range(5)}
    assert {branch for branch, count in branches.items() if count >= 30} == expected


# --- By hand ---


@pytest.mark.parametrize(
    "text, expected",
    [
        ("A Cat.", "cat"),
        ("the", ""),
        ("two  dogs", "2 dogs"),
        ("None", "0"),
        ("eleven", "eleven"),
        ("dont", "don't"),
        ("Im", "im"),
        ("somebody'd", "somebodyd"),
        ("OW'S'AT", "'ow's'at"),
        ("it's 5:30", "it's 5:30"),
        ("a-b", "b"),
        ("b-c", "b c"),
        ("b-c -d", "bc d"),
        ("b-c, d/e", "b c d e"),
        ("1,000", "1000"),
        ("1,000 b/c", "1000 bc"),
        ("b/c 1, 000", "b c 1 000"),
        ("3.5", "3.5"),
        ("3.5.", "3.5"),
        ("u.s.a.", "usa"),
        ("o.n.e", "1"),
        ("the.5", "the.5"),
        ("\tred\nblue ", "red blue"),
        ("." * 33 + "b", ".b"),
        ("", ""),
    ],
)
def test_normalisation_by_hand(text, expected):
    assert normalize_answer(text) == expected


def test_contraction_table():
    """114 of the official table's 120 entries can change a lower-case word, and all only move apostrophes."""
    assert len(CONTRACTIONS) == 114
    sample = {
        "aint": "ain't",
        "couldn'tve": "couldn't've",
        "oclock": "o'clock",
        "twas": "'twas",
        "yall'd've": "y'all'd've",
    }
    assert sample.items() <= CONTRACTIONS.items()
    assert all(word.replace("'", "") == out.replace("'", "") and word != out for word, out in CONTRACTIONS.items())
    assert all(word == word.lower() for word in CONTRACTIONS)


@pytest.mark.parametrize("matches, expected", [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)])
def test_accuracy_with_ten_people(matches, expected):
    assert vqa_accuracy("cat", ["cat"] * matches + ["dog"] * (10 - matches)) == pytest.approx(expected)


@pytest.mark.parametrize(
    "people, expected",
    [
        (["cat"], 0.0),  # nobody else to agree with
        (["cat", "cat"], 1 / 3),
        (["cat", "dog"], 1 / 6),  # with the cat person left out 0, with the dog person left out 1/3
        (["cat"] * 3 + ["dog"], (3 * 2 / 3 + 1) / 4),
        (["cat"] * 2 + ["dog"] * 10, (2 * 1 / 3 + 10 * 2 / 3) / 12),
    ],
)
def test_accuracy_with_other_numbers_of_people(people, expected):
    assert vqa_accuracy("cat", people) == pytest.approx(expected)


def test_nothing_is_normalised_where_people_agree():
    assert vqa_accuracy("Yes", ["yes"] * 10) == 0.0
    assert vqa_accuracy("yes", [" yes\n"] * 5 + ["yes"] * 5) == 1.0  # blanks do not make people differ
    assert vqa_accuracy("the YES.", ["yes"] * 9 + ["no"]) == 1.0


def annotation(question_id, answers, answer_type="other", question_type="what is"):
    people = [{"answer": answer, "answer_id": i} for i, answer in enumerate(answers)]
    return {
        "question_id": question_id,
        "answers": people,
        "answer_type": answer_type,
        "question_type": question_type,
    }


def test_scores_by_type():
    annotations = [
        annotation(7, ["cat"] * 3 + ["dog"] * 7),
        annotation(3, ["yes"] * 10, "yes/no", "is the"),
        annotation(5, ["red"] * 9 + ["blue"], "other", "what color"),
    ]
    scores = vqa_scores({3: "yes", 5: "blue", 7: "cat"}, annotations)
    assert scores.question_ids == [7, 3, 5]
    np.testing.assert_allclose(scores.per_question, [0.9, 1.0, 0.3])
    assert scores.overall == pytest.approx(2.2 / 3)
    assert scores.per_answer_type == pytest.approx({"other": 0.6, "yes/no": 1.0})
    assert scores.per_question_type == pytest.approx({"what is": 0.9, "is the": 1.0, "what color": 0.3})
    assert scores.official()["overall"] == 73.33


def test_exact_match():
    assert exact_match("The  Red.", "red") == 1.0
    assert exact_match("reddish", "red") == 0.0
    assert exact_match("two", ["three", "2"]) == 1.0


@pytest.mark.parametrize(
    "predictions, annotations, message",
    [
        ({1: "a"}, [annotation(1, ["a"]), annotation(2, ["a"])], "no prediction for question 2"),
        ({1: "a", 2: "b"}, [annotation(1, ["a"])], "1 predictions answer questions that are not annotated, such as 2"),
        ({1: "a", 2: "b"}, [annotation(i, ["a"]) for i in (2, 1, 2)], "question 2 is annotated twice"),
        ({1: "a"}, [annotation(1, [])], "question 1 has no human answers"),
        ({1: "a"}, [{"question_id": 1, "answers": [{"answer": "a"}]}], "question 1 has no 'answer_type'"),
        ({}, [], "no annotations"),
    ],
)
def test_errors(predictions, annotations, message):
    with pytest.raises(DataError, match=message):
        vqa_scores(predictions, annotations)


def test_no_human_answers():
    with pytest.raises(DataError, match="no human answers"):
        vqa_accuracy("cat", [])
    with pytest.raises(DataError, match="no answers"):
        exact_match("cat", [])


# --- Properties ---

answers = st.sampled_from(["cat", "Cat", "a cat.", "dog", "2", "two", "", "the"])


@given(answers, st.lists(answers, min_size=1, max_size=12).flatmap(lambda a: st.tuples(st.just(a), st.permutations(a))))
def test_order_of_people_never_matters_and_the_score_is_a_fraction(prediction, people):
    given_order, other_order = people
    score = vqa_accuracy(prediction, given_order)
    assert 0 <= score <= 1
    assert vqa_accuracy(prediction, other_order) == pytest.approx(score)


@given(st.text() | st.lists(st.sampled_from(PIECES + GLUE), max_size=8).map("".join))
@example("somebodyd've ..5 a-The b")
def test_normalising_twice_changes_nothing_and_readings_agree(text):
    once = normalize_answer(text)
    assert once == official_normalize(text)
    if text.count(".") <= 32:
        assert normalize_answer(once) == once
