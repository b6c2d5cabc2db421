"""Questions made from captions and boxes: what must be asked and what must not."""

from vlm.data.questions import KINDS, MadeQuestion, questions_about

DOG = [
    "A brown dog is running through the snow .",
    "A brown dog runs in the snow .",
    "The dog is running through deep snow .",
]


def asked(captions, **known):
    return {question.text: question.answer for question in questions_about(captions, **known)}


def test_a_brown_dog_runs_in_the_snow():
    found = asked(DOG)
    assert found["What color is the dog?"] == "brown"
    assert found["Where is the dog?"] == "snow"
    assert found["What is the dog doing?"] == "running"


def test_no_captions_no_questions():
    assert questions_about([]) == questions_about(["", "  "]) == []


def test_same_captions_same_questions():
    assert questions_about(DOG) == questions_about(DOG)
    assert all(isinstance(question, MadeQuestion) and question.kind in KINDS for question in questions_about(DOG))


def test_captions_that_disagree_on_a_number_make_no_question():
    found = asked(["Two dogs run in the snow .", "Three dogs run in the snow ."])
    assert not [text for text in found if text.startswith("How many dogs")]


def test_a_mirrored_box_swaps_left_and_right():
    box = {"label": "dog", "box": [0.1, 0.2, 0.3, 0.6]}
    mirrored = {"label": "dog", "box": [0.7, 0.2, 0.9, 0.6]}
    question = "Which side of the picture is the dog on?"
    assert asked(DOG, boxes=[box], boxes_complete=True)[question] == "left"
    assert asked(DOG, boxes=[mirrored], boxes_complete=True)[question] == "right"
