"""What the methods of a model ask, against items that the original's data sets made from the same texts."""

import json
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from vlm.convert.ofa.checkpoint import task_settings
from vlm.convert.ofa.config import PREFIXES
from vlm.decoding.answer import Answer
from vlm.files.bundle import Bundle
from vlm.image import ImageTransform
from vlm.model import Model
from vlm.predictor import Photo, Predictor, Prefix, decoder_prefix, encoder_ids
from vlm.tokenizer import Tokenizer


class Listener(Predictor):
    """Keeps what the networks would read, and answers nothing of its own.

    Attributes:
        source: what the encoder reads.
        prefix: what the decoder is given.
        choices: the answers that may be given.
    """

    def encode(self, images, **options) -> list[Photo]:
        return [Photo(SimpleNamespace(), size) for size in images]  # type: ignore[arg-type]

    def generate(self, sources, patches, config, *, prefix="none", choices=None, codes=False, seed=None):
        self._keep(sources[0], prefix, choices or ())
        return [[Answer("", 0.0)]]

    def score(self, sources, patches, choices, *, prefix="none"):
        self._keep(sources[0], prefix, choices)
        return [[Answer(choices[0], 0.0)]]

    def _keep(self, source: Sequence[int], prefix: Prefix, choices: Sequence[str]) -> None:
        self.source, self.prefix = encoder_ids(source), decoder_prefix(source, prefix)
        self.choices = list(choices)


def listening(tokenizer: Tokenizer, prompt_type: str | None, size: int = 480) -> tuple[Model, Listener]:
    """A model as `load_ofa` makes it, without networks."""
    tasks = task_settings(tokenizer, PREFIXES[prompt_type])
    bundle = Bundle(SimpleNamespace(), tokenizer, ImageTransform(size), tasks, "listener")  # type: ignore[arg-type]
    model = Model(bundle)
    model.predictor = listener = Listener(bundle)
    return model, listener


def items(name: str) -> Any:
    """Run a test with each item of a task."""

    def find(golden: Path) -> dict[str, dict[str, Any]]:
        data = json.loads((golden / "data" / "data_golden.json").read_text(encoding="utf-8"))
        return {f"{name}-{i}": item for i, item in enumerate(data["items"]) if item["name"] == name}

    return pytest.mark.cases(find=find)


def check(listener: Listener, item: dict[str, Any]) -> None:
    assert listener.source == item["source"]
    assert listener.prefix == item.get("decoder_prompt", [0])


@items("caption")
def test_captions(tokenizer, case):
    model, listener = listening(tokenizer, None)
    model.caption(listener.encode([(40, 80)])[0])
    check(listener, case)


@items("vqa")
def test_questions(tokenizer, case):
    given = case["input"]
    model, listener = listening(tokenizer, given["options"].get("prompt_type"))
    objects = given["objects"].split("&&") if given["options"].get("add_object") else ()
    model.answer((40, 80), given["question"], objects=objects, choices=["yes"])  # type: ignore[arg-type]
    check(listener, case)


@items("refcoco")
def test_phrases_and_regions(tokenizer, case):
    given = case["input"]
    model, listener = listening(tokenizer, None, given["patch_image_size"])
    size = (97, 61) if "97x61" in given["image"] else (40, 80)
    model.ground(size, given["text"])  # type: ignore[arg-type]
    check(listener, case)
    # the four locations are those that the original wants for this box
    model.describe_region(size, [float(value) for value in given["box"].split(",")])  # type: ignore[arg-type]
    locations = case["target"][:4]
    assert listener.source == [0, *tokenizer.encode("  what does the region describe? region:"), *locations, 2]


@items("snli_ve")
def test_sentences(tokenizer, case):
    given = case["input"]
    model, listener = listening(tokenizer, given["prompt_type"])
    caption = given["caption"] if given["add_caption"] else None
    model.entail((57, 33), given["hypothesis"], caption)  # type: ignore[arg-type]
    check(listener, case)
    assert set(listener.choices) == set(given["trie_answers"])


@items("image_classify")
def test_classes(tokenizer, case):
    model, listener = listening(tokenizer, None)
    model.classify((97, 61), case["input"]["trie_answers"])  # type: ignore[arg-type]
    check(listener, case)
    ids = listener.answer_ids(listener.choices)[listener.choices.index(case["input"]["label"])]
    assert [*ids, 2] == case["target"]


@items("gigaword")
def test_articles(tokenizer, case):
    model, listener = listening(tokenizer, None)
    model.summarize(case["input"]["source"])
    check(listener, case)


def test_gaps_stand_where_the_original_puts_them(tokenizer):
    """Masked ids before the last two of the instruction."""
    model, listener = listening(tokenizer, None)
    model.complete("A dog <mask> the snow<mask>.")
    whole = tokenizer.encode(' what is the complete text of " "?')
    gap = tokenizer.mask_id
    text = [*tokenizer.encode(" a dog"), gap, *tokenizer.encode(" the snow"), gap, *tokenizer.encode(".")]
    assert listener.source == [0, *whole[:-2], *text, *whole[-2:], 2]
