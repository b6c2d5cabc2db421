"""What the methods of a model ask, against items that the original's data sets made from the same texts."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm import prompt
from vlm.asking import Answer
from vlm.convert.ofa import task_settings
from vlm.convert.ofa_config import PREFIXES
from vlm.image import ImageTransform
from vlm.looking import Photo
from vlm.model import Model
from vlm.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[3] / "shared" / "ofa_golden"
DATA = json.loads((GOLDEN / "data" / "data_golden.json").read_text(encoding="utf-8")) if GOLDEN.is_dir() else {}


class Listener(Model):
    """Keeps what the networks would read, and answers nothing of its own.

    Attributes:
        heard: the prompt, and what the decoder is given.
        choices: the answers that may be given.
    """

    def __init__(self, tokenizer: Tokenizer, prompt_type: str | None, size: int = 480):
        tasks = task_settings(tokenizer, PREFIXES[prompt_type])
        super().__init__(SimpleNamespace(), tokenizer, ImageTransform(size), "listener", tasks)  # type: ignore[arg-type]

    def look(self, images, **options) -> list[Photo]:
        return [Photo(SimpleNamespace(), size) for size in images]  # type: ignore[arg-type]

    def write(self, task, instructions, patches=None, *, prefix=None, choices=None, **options):
        kind = prefix or self.tasks[task].get("prefix") or "none"
        self.heard, self.choices = prompt.example(instructions[0], (), kind), list(choices or ())
        return [[Answer("", 0.0)]]

    def weigh(self, task, instructions, patches, choices, prefix=None):
        self.write(task, instructions, patches, prefix=prefix, choices=choices)
        return [[Answer(choices[0], 0.0)]]


def items(name: str) -> list[Any]:
    found = [
        pytest.param(item, id=f"{name}-{i}") for i, item in enumerate(DATA.get("items", [])) if item["name"] == name
    ]
    return found or [pytest.param({}, id="absent")]  # the fixture skips it


def check(model: Listener, item: dict[str, Any]) -> None:
    assert model.heard.source == item["source"]
    assert model.heard.prefix == item.get("decoder_prompt", [0])


@pytest.mark.parametrize("item", items("caption"))
def test_captions(tokenizer, item):
    model = Listener(tokenizer, None)
    model.caption_patches([None])  # type: ignore[arg-type]
    check(model, item)


@pytest.mark.parametrize("item", items("vqa"))
def test_questions(tokenizer, item):
    given = item["input"]
    model = Listener(tokenizer, given["options"].get("prompt_type"))
    objects = given["objects"].split("&&") if given["options"].get("add_object") else ()
    model.answer((40, 80), given["question"], objects=objects, choices=["yes"])  # type: ignore[arg-type]
    check(model, item)


@pytest.mark.parametrize("item", items("refcoco"))
def test_phrases_and_regions(tokenizer, item):
    given = item["input"]
    model = Listener(tokenizer, None, given["patch_image_size"])
    size = (97, 61) if "97x61" in given["image"] else (40, 80)
    model.ground(size, given["text"])  # type: ignore[arg-type]
    check(model, item)
    # the four locations are those that the original wants for this box
    model.describe_region(size, [float(value) for value in given["box"].split(",")])  # type: ignore[arg-type]
    locations = item["target"][:4]
    assert model.heard.source == [0, *tokenizer.encode("  what does the region describe? region:"), *locations, 2]


@pytest.mark.parametrize("item", items("snli_ve"))
def test_sentences(tokenizer, item):
    given = item["input"]
    model = Listener(tokenizer, given["prompt_type"])
    caption = given["caption"] if given["add_caption"] else None
    model.entail((57, 33), given["hypothesis"], caption)  # type: ignore[arg-type]
    check(model, item)
    assert set(model.choices) == set(given["trie_answers"])


@pytest.mark.parametrize("item", items("image_classify"))
def test_classes(tokenizer, item):
    model = Listener(tokenizer, None)
    model.classify((97, 61), item["input"]["trie_answers"])  # type: ignore[arg-type]
    check(model, item)
    ids = model.answer_ids(model.choices)[model.choices.index(item["input"]["label"])]
    assert [*ids, 2] == item["target"]


@pytest.mark.parametrize("item", items("gigaword"))
def test_articles(tokenizer, item):
    model = Listener(tokenizer, None)
    model.summarize(item["input"]["source"])
    check(model, item)


def test_gaps_stand_where_the_original_puts_them(tokenizer):
    """Masked ids before the last two of the instruction."""
    model = Listener(tokenizer, None)
    model.complete("A dog <mask> the snow<mask>.")
    whole = tokenizer.encode(' what is the complete text of " "?')
    text = [*tokenizer.encode(" a dog"), 50264, *tokenizer.encode(" the snow"), 50264, *tokenizer.encode(".")]
    assert model.heard.source == [0, *whole[:-2], *text, *whole[-2:], 2]
