"""What OFA reads and writes in each task, against items that the original's data sets made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm import prompt
from vlm.candidates import Trie
from vlm.convert.ofa_config import IMAGENET
from vlm.image import ImageTransform, load_image
from vlm.prompt import Example, example
from vlm.tokenizer import BOS, PAD, Tokenizer

GOLDEN = Path(__file__).parents[3] / "shared" / "ofa_golden"
DATA = json.loads((GOLDEN / "data" / "data_golden.json").read_text(encoding="utf-8")) if GOLDEN.is_dir() else {}
ITEMS: list[dict[str, Any]] = DATA.get("items", [])
PREFIXES: dict[str, Any] = {"none": "none", "src": "source_and_end", "prev_output": "source"}
MAX_WORDS = 80  # of questions and phrases, in the original's recipes


def items(name: str) -> list[Any]:
    found = [pytest.param(item, id=f"{name}-{i}") for i, item in enumerate(ITEMS) if item["name"] == name]
    return found or [pytest.param({}, id="absent")]  # the fixture skips it


def check(found: Example, item: dict[str, Any]) -> None:
    assert found.source == item["source"]
    assert found.target == item["target"]
    assert found.previous == item["prev_output_tokens"]
    assert found.prefix == item.get("decoder_prompt", [BOS])


def check_image(item: dict[str, Any], size: int, **colours: Any) -> None:
    pixels = ImageTransform(size, **colours)(load_image(GOLDEN / "data" / item["input"]["image"]))
    expected = item["patch_image"]
    assert list(pixels.shape) == expected["shape"]
    step = 1 / 255 / min(colours.get("std", (0.5,)))  # one grey level, for other releases of Pillow
    sample = pixels.flatten()[expected["sample_flat_index"]]
    torch.testing.assert_close(sample, torch.tensor(expected["sample"]), atol=step, rtol=0)
    figures = [pixels.mean(), pixels.std(), pixels.min(), pixels.max(), *pixels.mean(dim=(1, 2))]
    values = [expected[name] for name in ("mean", "std", "min", "max")] + expected["channel_mean"]
    torch.testing.assert_close(torch.stack(figures), torch.tensor(values), atol=1e-5, rtol=0)


def check_answers(tokenizer: Tokenizer, found: Example, item: dict[str, Any]) -> None:
    """What may be written at each place of the answer, by the trie that decoding and losses share."""
    if "constraint_mask_allowed_ids" not in item:
        return
    trie = Trie([tokenizer.encode(f" {answer}") for answer in item["input"]["trie_answers"]])
    node, allowed = torch.zeros(1, dtype=torch.long), []
    for target in found.target:
        if target == PAD:
            allowed.append([])
            continue
        allowed.append(trie.children(node, tokenizer.vocab_size)[0].nonzero().flatten().tolist())
        node = trie.advance(node, torch.tensor([target]))
    assert allowed == item["constraint_mask_allowed_ids"]


@pytest.mark.parametrize("item", items("caption"))
def test_captions(tokenizer, item):
    given = item["input"]
    if given["split"] == "train" and not given["options"]:
        caption = prompt.strip_punctuation(given["caption"], given["max_tgt_length"])
    else:  # the original keeps all references in one string
        caption = "&&".join(map(prompt.strip_punctuation, given["caption"].split("&&")))
    check(example(tokenizer.encode(prompt.CAPTION), tokenizer.encode(f" {caption}")), item)
    check_image(item, 480)


@pytest.mark.parametrize("item", items("vqa"))
def test_questions(tokenizer, item):
    given = item["input"]
    question = prompt.clean_question(given["question"], MAX_WORDS)
    source = tokenizer.encode(prompt.QUESTION.format(question if question.endswith("?") else question + "?"))
    if given["options"].get("add_object"):
        source += tokenizer.encode(prompt.OBJECTS.format(" ".join(given["objects"].split("&&")[:30])))
    answer = max(item["ref_dict"], key=item["ref_dict"].__getitem__)  # the most certain of the references
    found = example(source, tokenizer.encode(f" {answer}"), PREFIXES[given["options"].get("prompt_type", "none")])
    check(found, item)
    check_answers(tokenizer, found, item)
    check_image(item, 480)


@pytest.mark.parametrize("item", items("refcoco"))
def test_grounding(tokenizer, item):
    given = item["input"]
    size = given["patch_image_size"]
    image = load_image(GOLDEN / "data" / given["image"])
    box = [float(value) for value in given["box"].split(",")]
    assert given["max_image_size"] == prompt.LOCATION_PIXELS
    locations = prompt.box_locations(tokenizer, box, *image.size, size)
    phrase = prompt.clean_sentence(given["text"], MAX_WORDS)
    check(example(tokenizer.encode(prompt.GROUND.format(phrase)), locations), item)
    check_image(item, size)
    assert (size / image.width, size / image.height) == pytest.approx((item["w_resize_ratio"], item["h_resize_ratio"]))
    found = prompt.read_box(tokenizer, [BOS, *locations, 2], *image.size, size)
    half = max(image.size) / size * 512 / 999 / 2  # a location stands for so many pixels on either side
    assert found == pytest.approx(item["region_coord"], abs=half + 1e-6)


@pytest.mark.parametrize("item", items("snli_ve"))
def test_entailment(tokenizer, item):
    given = item["input"]
    hypothesis = prompt.clean_sentence(given["hypothesis"], MAX_WORDS)
    instruction = prompt.ENTAIL.format(hypothesis)
    if given["add_caption"]:
        instruction = prompt.ENTAIL_WITH_CAPTION.format(prompt.clean_sentence(given["caption"], MAX_WORDS), hypothesis)
    answer = tokenizer.encode(prompt.ENTAIL_ANSWERS[given["label"]])
    found = example(tokenizer.encode(instruction), answer, PREFIXES[given["prompt_type"]])
    check(found, item)
    check_answers(tokenizer, found, item)
    check_image(item, 480)


@pytest.mark.parametrize("item", items("image_gen"))
def test_image_generation(tokenizer, item):
    step = 37 if "code_rule" in item["input"] else 0
    codes = [tokenizer.code_start + step * i % tokenizer.num_codes for i in range(1024)]
    check(example(tokenizer.encode(prompt.image_instruction(item["input"]["text"])), codes), item)


@pytest.mark.parametrize("item", items("image_classify"))
def test_classification(tokenizer, item):
    found = example(tokenizer.encode(prompt.CLASSIFY), tokenizer.encode(f" {item['input']['label']}"))
    check(found, item)
    check_answers(tokenizer, found, item)
    check_image(item, 480, **IMAGENET)


@pytest.mark.parametrize("item", items("gigaword"))
def test_summaries(tokenizer, item):
    # the original writes unknown words otherwise
    article, summary = (
        prompt.clean_sentence(item["input"][name], words).replace("<unk>", "unk")
        for name, words in (("source", 512), ("target", 64))
    )
    check(example(tokenizer.encode(prompt.SUMMARIZE.format(article)), tokenizer.encode(summary)), item)


@pytest.mark.parametrize("sample", DATA.get("normalisation", []), ids=lambda sample: repr(sample["text"][:20]))
def test_normalisation(sample):
    """The first column of each kind was cut to eight words."""
    text = sample["text"]
    assert prompt.clean_question(text, 8) == sample["pre_question"]
    assert prompt.clean_question(text) == sample["pre_question_nolimit"]
    assert prompt.clean_sentence(text, 8) == sample["pre_caption"]
    assert prompt.clean_sentence(text) == sample["pre_caption_nolimit"]
