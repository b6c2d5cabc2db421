"""Photos and inputs that do not fit a task are one line, for every task."""

import pytest

import vlm
from vlm.errors import ArgumentError
from vlm.tasks import TASKS
from vlm.tokenizer import train_tokenizer

PHOTO = "datasets/sample/cat.jpg"  # never opened: what is wrong is said before


@pytest.fixture(scope="module")
def model(all_tasks) -> vlm.Model:
    return vlm.load(all_tasks)


def refusal(call, *arguments) -> str:
    with pytest.raises(ArgumentError) as caught:
        call(*arguments)
    assert str(caught.value).isprintable()
    return str(caught.value)


@pytest.mark.parametrize("name", TASKS)
def test_a_photo_is_asked_for_and_refused_where_it_has_no_place(model, name):
    task = TASKS[name]
    columns = [["x"]] * len(task.inputs)
    if task.photo == "needed":
        assert refusal(model.run, name, None, *columns) == f"{name} is about photos; give some"
    if task.photo == "none":
        expected = f"{name} is about text alone; give None instead of photos"
        assert refusal(model.run, name, [PHOTO], *columns) == expected
        assert refusal(model.stream, name, [PHOTO], [("x",)]) == expected


@pytest.mark.parametrize("name", TASKS)
def test_too_few_and_too_many_inputs_are_refused(model, name):
    task = TASKS[name]
    photos = None if task.photo == "none" else [PHOTO]
    most = len(task.inputs) + len(task.optional_inputs)
    for count in {most + 1, len(task.inputs) - 1} - {-1}:
        message = refusal(model.run, name, photos, *[["x"]] * count)
        assert message.startswith(f"{name} takes ") and f"{count} inputs were given" in message
        assert all(word in message for word in task.inputs)
        if photos:
            assert refusal(model.stream, name, photos, [("x",) * count]) == message


@pytest.mark.parametrize("name", [name for name, task in TASKS.items() if task.inputs and task.photo != "none"])
def test_lists_of_several_lengths_are_refused(model, name):
    columns = [["x", "y"]] * len(TASKS[name].inputs)
    assert refusal(model.run, name, [PHOTO], *columns).endswith("lists of 1 and 2 items; give lists of one length")


def test_more_answers_than_beams_are_called_what_the_user_calls_them(model):
    assert "num_captions=9 with beams=5" in refusal(lambda: model.caption(PHOTO, num_captions=9))
    draw = TASKS["generate_image"](train_tokenizer([" a dog"], 260, num_codes=4), 64)
    assert "num_images=3 with beams=2" in refusal(draw.search, {"beams": 2}, 3)


def test_a_model_without_image_codes_says_so(model):
    assert "has no image codes and cannot draw" in refusal(model.image_codes, "a dog")
