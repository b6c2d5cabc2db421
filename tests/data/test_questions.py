"""Questions made from captions and boxes: what must be asked and what must not."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm.data.questions import KINDS, questions_about

DOG = [
    "A brown dog is running through the snow .",
    "A brown dog runs in the snow .",
    "The dog is running through deep snow .",
]
TENNIS = [
    "A man in a red shirt is holding a tennis racket .",
    "A man holds a racket on a tennis court .",
    "A man in a red shirt playing tennis .",
]
PEOPLE = ["A man in a blue jacket and a woman in a red coat walk on a street .", "A man and a woman are walking ."]
KITCHEN = [
    "A white cat is sitting on a table in a kitchen .",
    "A white cat sits on the table .",
    "The cat is sitting .",
]
WORDS = "a the two three dog dogs man woman people red blue black and white in on with holding shirt ball snow runs . ,"


def asked(captions, **known):
    return {question.text: question.answer for question in questions_about(captions, **known)}


# read and labelled by hand: captions, what must be asked, openings of what must not be
LABELLED = [
    (
        DOG,
        {
            "What color is the dog?": "brown",
            "Is the dog brown?": "yes",
            "Is the dog white?": "no",
            "Where is the dog?": "snow",
            "What is the dog doing?": "running",
            "Is the dog running?": "yes",
            "Is the dog in the snow?": "yes",
            "Was this photo taken outdoors?": "yes",
            "Was this photo taken indoors?": "no",
        },
        ["What color is the snow", "What is the dog holding", "How many people"],
    ),
    (
        TENNIS,
        {
            "What color is the man's shirt?": "red",
            "Is the man's shirt red?": "yes",
            "What is the man holding?": "tennis racket",
            "Who is holding the tennis racket?": "man",
            "What is the man playing?": "tennis",
            "Where is the man?": "tennis court",
            "Is the man playing tennis?": "yes",
        },
        ["What color is the man?", "What color is the racket"],
    ),
    (
        PEOPLE,
        {"What color is the man's jacket?": "blue", "What color is the woman's coat?": "red"},
        ["What color is the woman's jacket", "What color is the man's coat", "What is the man doing"],
    ),
    (
        KITCHEN,
        {
            "What color is the cat?": "white",
            "Where is the cat?": "table",
            "What is the cat doing?": "sitting",
            "Was this photo taken indoors?": "yes",
        },
        ["What color is the table", "What color is the kitchen"],
    ),
    (
        ["Two dogs run .", "Two black dogs are playing in the grass .", "Two dogs in the grass ."],
        {"How many dogs are in the picture?": "2", "Are there 2 dogs?": "yes", "Where are the dogs?": "grass"},
        ["What color is the dog", "What is the dog", "How many people"],
    ),
    (["Two dogs run in the snow .", "Three dogs run in the snow ."], {}, ["How many", "Are there 2", "Are there 3"]),
    (["A black dog and a white dog play .", "A black dog is running ."], {}, ["What color is the dog", "Is the dog"]),
    (["A black and a white dog play .", "A dog runs ."], {}, ["What color is the dog", "Is the dog"]),
    (
        ["A black and white dog jumps .", "A black dog jumps over a log .", "A black and white dog leaps ."],
        {"What color is the dog?": "black and white", "What is the dog doing?": "jumping"},
        ["Is the dog white", "Is the dog black?"],
    ),
    (
        ["A red haired woman sits .", "A woman with red hair ."],
        {"What color is the woman's hair?": "red"},
        ["What color is the woman?"],
    ),
    (["A black and white photo of a man in a white shirt ."], {}, ["What color"]),
    (["A man walks with a dog walking beside him .", "A woman walks ."], {}, ["What is the man", "What is the woman"]),
    (["A brown dog collar on a table ."], {}, ["What color is the dog", "Is there a dog"]),
    (
        ["A man rides a bike down a dirt road .", "A man on a dirt bike .", "A man rides a motorcycle ."],
        {},
        ["What is the man riding? bike", "Is the man riding a horse? yes", "What is the man doing? riding bike"],
    ),
    (
        ["A guy is surfing a wave .", "A person surfs in the ocean .", "A surfer rides a wave ."],
        {"What sport is this?": "surfing"},
        ["Is there a man in the", "Is there a person in the", "Are there any surfboards"],
    ),
]  # fmt: skip


@pytest.mark.parametrize("captions, expected, forbidden", LABELLED)
def test_labelled_captions(captions, expected, forbidden):
    found = asked(captions)
    assert {text: found.get(text) for text in expected} == expected
    for text, answer in found.items():
        assert text in expected or not f"{text} {answer}".startswith(tuple(forbidden))


def test_no_captions_no_questions():
    assert questions_about([]) == questions_about(["", "  "]) == questions_about(["..."]) == []


def test_absent_things_are_not_asked_for_under_another_name():
    captions = ["A guy sits .", "A man sits on a bench .", "Someone on a bench ."]
    absent = [q.text for q in questions_about(captions) if (q.kind, q.answer) == ("presence", "no")]
    assert absent and not [text for text in absent if {"man", "men", "person", "bench"} & set(text.split())]


def test_a_mirrored_box_swaps_left_and_right():
    dog, cat = {"label": "dog", "box": [0.1, 0.2, 0.3, 0.6]}, {"label": "cat", "box": [0.7, 0.2, 0.9, 0.6]}
    mirrored = [{**item, "box": [1 - item["box"][2], 0.2, 1 - item["box"][0], 0.6]} for item in (dog, cat)]
    straight, swapped = ({q.text: q.answer for q in questions_about([], (), b, True)} for b in ([dog, cat], mirrored))
    assert straight["Which side of the picture is the dog on?"] == "left"
    assert straight["Is the dog to the left or right of the cat?"] == "left"
    assert straight["Is the cat on the left side of the picture?"] == "no"
    assert straight["How many dogs are there?"] == "1"
    swap = {"left": "right", "right": "left", "yes": "no", "no": "yes", "1": "1"}
    assert swapped == {text: swap[answer] for text, answer in straight.items()}


def test_incomplete_boxes_count_nothing():
    box = {"label": "dog", "box": [0.1, 0.2, 0.3, 0.6]}
    assert not [q for q in questions_about(DOG, (), [box], False) if q.kind in ("count", "side")]


def test_sides_from_entities():
    phrase = {"text": "A brown dog", "entity": "7", "types": ["animals"], "boxes": [[0.6, 0.2, 0.9, 0.6]]}
    found = asked(DOG, phrases=[phrase])
    assert found["Which side of the picture is the dog on?"] == "right"
    alone = {"text": "A brown dog", "boxes": [[0.6, 0.2, 0.9, 0.6]]}  # as scenes and simple annotations have them
    assert asked(DOG, phrases=[alone, alone]) == found
    two = {**phrase, "boxes": [[0.6, 0.2, 0.9, 0.6], [0, 0, 0.1, 0.1]]}
    assert "Which side of the picture is the dog on?" not in asked(DOG, phrases=[two])


@given(st.lists(st.lists(st.sampled_from(WORDS.split()), max_size=12).map(" ".join), max_size=5))
def test_any_captions(captions):
    found = questions_about(captions)
    assert found == questions_about(list(captions))
    assert len({question.text for question in found}) == len(found)
    for question in found:
        assert question.kind in KINDS and question.text.endswith("?")
        assert question.answer == question.answer.lower() and 1 <= len(question.answer.split()) <= 4
        if question.kind in ("colour", "number", "object", "place", "action"):
            assert question.answer not in question.text.lower().rstrip("?").split()


def test_yes_and_no_balance():
    subjects = ("A brown dog", "A man in a red shirt", "Two women", "A little girl in a pink dress", "A white horse")
    actions = ("is running", "sits", "is jumping", "stands", "are walking", "rides a bike")
    places = ("in the snow", "on the beach", "on a couch", "in a kitchen", "across a field", "on a street")
    photos = [[f"{' '.join(words)} ."] * 3 for words in itertools.product(subjects, actions, places)]
    answers = [
        question.answer
        for captions in photos
        for question in questions_about(captions)
        if question.kind in ("yes_no", "presence")
    ]
    assert len(answers) > 500
    assert 0.45 < answers.count("no") / len(answers) < 0.55
