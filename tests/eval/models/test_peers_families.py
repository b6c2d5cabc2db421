"""Predictions of the families against transformers itself, each called as its documentation does."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from PIL import Image

from eval import models
from eval.benchmark import Item
from eval.benchmarks import BENCHMARKS
from eval.models import peers
from vlm.errors import ArgumentError
from vlm.tasks import TASKS

tf: Any = transformers  # its names appear on first use
QUESTIONS = ["is it a cat?", "what colour is the cup of coffee on the table?", "how many dogs?", "is it a cat?"]
TOKENS = 12  # random weights never end a text of their own accord


@cache
def parts(folder: Path, architecture: str) -> tuple[Any, Any]:
    return tf.AutoProcessor.from_pretrained(folder), getattr(tf, architecture).from_pretrained(folder)


def blip_caption(folder, photo, question):
    processor, model = parts(folder, "BlipForConditionalGeneration")
    inputs = processor(photo, "a picture of ", return_tensors="pt")
    out = model.generate(**inputs, num_beams=3, max_length=20, min_length=5)
    text = processor.decode(out[0], skip_special_tokens=True)
    assert text.startswith("a picture of ")
    return text.removeprefix("a picture of ")


def blip_vqa(folder, photo, question):
    processor, model = parts(folder, "BlipForQuestionAnswering")
    inputs = processor(photo, question, return_tensors="pt")
    return processor.decode(
        model.generate(**inputs, num_beams=3, max_length=10, min_length=1)[0], skip_special_tokens=True
    )


def git_caption(folder, photo, question):
    processor, model = parts(folder, "GitForCausalLM")
    pixels = processor(images=photo, return_tensors="pt").pixel_values
    out = model.generate(pixel_values=pixels, num_beams=4, length_penalty=0.6, max_new_tokens=TOKENS)
    return processor.batch_decode(out, skip_special_tokens=True)[0]


def git_vqa(folder, photo, question):
    processor, model = parts(folder, "GitForCausalLM")
    pixels = processor(images=photo, return_tensors="pt").pixel_values
    ids = [processor.tokenizer.cls_token_id, *processor(text=question, add_special_tokens=False).input_ids]
    options = {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": TOKENS}
    out = model.generate(pixel_values=pixels, input_ids=torch.tensor([ids]), **options)
    return processor.decode(out[0, len(ids) :], skip_special_tokens=True)


def florence2(folder, photo, task, text):
    processor, model = parts(folder, "Florence2ForConditionalGeneration")
    inputs = processor(text=task + text, images=photo, return_tensors="pt")
    out = model.generate(**inputs, num_beams=3, max_new_tokens=TOKENS, do_sample=False)
    written = processor.batch_decode(out, skip_special_tokens=False)[0]
    return processor.post_process_generation(written, task=task, image_size=photo.size)[task]


def florence2_caption(folder, photo, question):
    return florence2(folder, photo, "<CAPTION>", "")


def florence2_ground(folder, photo, question):
    found = florence2(folder, photo, "<CAPTION_TO_PHRASE_GROUNDING>", question)["bboxes"]
    return [x / side for x, side in zip(found[0], photo.size * 2, strict=True)] if found else [0, 0, 0, 0]


def chat(folder, photo, text):
    architecture = json.loads((folder / "config.json").read_text())["architectures"][0]
    processor, model = parts(folder, architecture)
    messages = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}]
    prompt = processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = processor(text=prompt, images=[photo], return_tensors="pt")
    out = model.generate(**inputs, max_new_tokens=TOKENS)
    return processor.decode(out[0], skip_special_tokens=True).split("Assistant:", 1)[1].strip()


def chat_caption(folder, photo, question):
    return chat(folder, photo, "Provide a one-sentence caption for the provided image.")


def chat_vqa(folder, photo, question):
    return chat(folder, photo, f"{question}\nGive a very brief answer.")


CASES = [
    ("blip-caption", "caption", blip_caption),
    ("blip-vqa", "answer", blip_vqa),
    ("git", "caption", git_caption),
    ("git", "answer", git_vqa),
    ("florence2", "caption", florence2_caption),
    ("florence2", "ground", florence2_ground),
    ("smolvlm", "caption", chat_caption),
    ("smolvlm", "answer", chat_vqa),
    ("idefics3", "caption", chat_caption),
    ("idefics3", "answer", chat_vqa),
]


@pytest.mark.parametrize("family, task, direct", CASES, ids=[f"{family}-{task}" for family, task, _ in CASES])
def test_alone_and_in_a_batch_a_photo_gives_what_transformers_gives(
    family, task, direct, checkpoint, photos, monkeypatch
):
    folder = checkpoint(family)
    model = peers.load(f"hf:{folder}", "cpu")
    if "max_new_tokens" in model.options[task]:
        monkeypatch.setitem(model.options[task], "max_new_tokens", TOKENS)
    predict = models.predictor(model, BY_TASK[task], [])
    items = [Item(place, Path(), question=question) for place, question in enumerate(QUESTIONS)]
    expected = [direct(folder, photo, question) for photo, question in zip(photos[:3], QUESTIONS, strict=False)]
    assert predict(items, photos) == [*expected, expected[0]]
    assert predict(items[1:2], photos[1:2]) == expected[1:2]
    assert len(set(map(str, expected))) == 3, "photo and question make no difference"


# What publishers give: the sources are named in docs/peers.md
GIT = {"num_beams": 4, "length_penalty": 0.6, "max_new_tokens": 40}
FLORENCE2 = {"num_beams": 3, "max_new_tokens": 1024}
CHAT = {
    "caption": {"prompt": "Provide a one-sentence caption for the provided image.", "max_new_tokens": 64},
    "answer": {"prompt": "{}\nGive a very brief answer.", "max_new_tokens": 32},
}
SETTINGS = {
    "blip-caption": {"caption": {"prompt": "a picture of", "num_beams": 3, "max_length": 20, "min_length": 5}},
    "blip-vqa": {"answer": {"prompt": "{}", "num_beams": 3, "max_length": 10, "min_length": 1}},
    "git": {"caption": {"prompt": "", **GIT}, "answer": {"prompt": "{}", **GIT}},
    "florence2": {
        "caption": {"prompt": "<CAPTION>", **FLORENCE2},
        "ground": {"prompt": "<CAPTION_TO_PHRASE_GROUNDING>{}", **FLORENCE2},
    },
    "smolvlm": CHAT,
    "idefics3": CHAT,
}
# a benchmark of each task: what it asks of a model
BY_TASK = {benchmark.task: benchmark for benchmark in BENCHMARKS.values()}
SHARED = {"dtype", "image_processor", "configuration_sha256", "transformers"}


@pytest.mark.parametrize("family", SETTINGS)
def test_a_family_looks_able_to_do_its_own_tasks_and_says_how(family, checkpoint):
    model = peers.load(f"hf:{checkpoint(family)}", "cpu")
    able = {task for task in (*TASKS, *models.ABILITIES) if models.able(model, task)}
    assert able == set(SETTINGS[family])
    for task in able:
        settings = model.settings(task)
        assert json.loads(json.dumps(settings)) == settings
        assert {name: value for name, value in settings.items() if name not in SHARED} == SETTINGS[family][task]
        assert settings.keys() >= SHARED


@pytest.mark.parametrize(
    "text, box",
    [
        # the middles of bins 100, 200, 499 and 999 of a thousand, in whole pixels of a photo of 640 x 480
        ("the cat<loc_100><loc_200><loc_499><loc_999>", (64 / 640, 96 / 480, 319 / 640, 479 / 480)),
        (
            "a<loc_0><loc_0><loc_9><loc_9><loc_1><loc_1><loc_2><loc_2>dog<loc_3><loc_3><loc_4><loc_4>",
            (0, 0, 6 / 640, 4 / 480),
        ),
        ("the cat<loc_100><loc_200>", (0, 0, 0, 0)),
        ("no box", (0, 0, 0, 0)),
    ],
)
def test_the_first_box_that_florence2_writes_counts(text, box, checkpoint, monkeypatch):
    model: Any = peers.load(f"hf:{checkpoint('florence2')}", "cpu")
    ids = model.processor.tokenizer(f"</s><s>{text}</s><pad>", add_special_tokens=False, return_tensors="pt").input_ids
    monkeypatch.setattr(model.model, "generate", lambda **inputs: ids)
    assert model.ground([Image.new("RGB", (640, 480))], ["the cat"]) == [pytest.approx(box)]


@pytest.mark.parametrize("family, task, marker", [("smolvlm", "answer", "<image>"), ("florence2", "ground", "<OD>")])
def test_a_question_with_a_marker_of_the_model_is_one_line(family, task, marker, checkpoint, photos):
    model = peers.load(f"hf:{checkpoint(family)}", "cpu")
    predict = models.predictor(model, BY_TASK[task], [])
    with pytest.raises(ArgumentError, match=rf"cannot read one of .*{marker}.*; leave that text out$") as raised:
        predict([Item(0, Path(), question=f"what is {marker} here?")], photos[:1])
    assert "\n" not in str(raised.value)
