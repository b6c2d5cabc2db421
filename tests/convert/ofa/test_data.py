"""What OFA reads and writes in each task, against items that the original's data sets made."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from vlm.convert.ofa.config import IMAGENET
from vlm.decoding.trie import Trie
from vlm.image import ImageTransform, load_image
from vlm.models.config import BOS, PAD
from vlm.tasks import TrainingExample
from vlm.tasks.answer import AnswerQuestion
from vlm.tasks.boxes import LOCATION_PIXELS, box_locations, read_box
from vlm.tasks.caption import Caption
from vlm.tasks.classify import Classify
from vlm.tasks.entail import LABELS, Entail
from vlm.tasks.generate_image import GenerateImage
from vlm.tasks.ground import Ground
from vlm.tasks.summarize import Summarize
from vlm.tasks.text import clean_question, clean_sentence, strip_punctuation
from vlm.tokenizer import Tokenizer

PREFIXES: dict[str, Any] = {"none": "none", "src": "source_and_end", "prev_output": "source"}


def read(golden: Path) -> dict[str, Any]:
    return json.loads((golden / "data" / "data_golden.json").read_text(encoding="utf-8"))


def items(name: str) -> Any:
    """Run a test with each item of a task."""

    def find(golden: Path) -> dict[str, dict[str, Any]]:
        return {f"{name}-{i}": item for i, item in enumerate(read(golden)["items"]) if item["name"] == name}

    return pytest.mark.cases(find=find)


def normalisation(golden: Path) -> dict[str, dict[str, str]]:
    return {repr(sample["text"][:20]): sample for sample in read(golden)["normalisation"]}


def check(found: TrainingExample, item: dict[str, Any]) -> None:
    assert found.source == item["source"]
    assert found.target == item["target"]
    assert found.previous == item["prev_output_tokens"]
    assert found.prefix == item.get("decoder_prompt", [BOS])


def check_image(golden: Path, item: dict[str, Any], size: int, **colours: Any) -> None:
    pixels = ImageTransform(size, **colours)(load_image(golden / "data" / item["input"]["image"]))
    expected = item["patch_image"]
    assert list(pixels.shape) == expected["shape"]
    step = 1 / 255 / min(colours.get("std", (0.5,)))  # one grey level, for other releases of Pillow
    sample = pixels.flatten()[expected["sample_flat_index"]]
    torch.testing.assert_close(sample, torch.tensor(expected["sample"]), atol=step, rtol=0)
    figures = [pixels.mean(), pixels.std(), pixels.min(), pixels.max(), *pixels.mean(dim=(1, 2))]
    values = [expected[name] for name in ("mean", "std", "min", "max")] + expected["channel_mean"]
    torch.testing.assert_close(torch.stack(figures), torch.tensor(values), atol=1e-5, rtol=0)


def check_answers(tokenizer: Tokenizer, found: TrainingExample, item: dict[str, Any]) -> None:
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


@items("caption")
def test_captions(golden, tokenizer, case):
    given = case["input"]
    if given["split"] == "train" and not given["options"]:
        caption = strip_punctuation(given["caption"], given["max_tgt_length"])
    else:  # the original keeps all references in one string
        caption = "&&".join(map(strip_punctuation, given["caption"].split("&&")))
    task = Caption(tokenizer, 480)
    check(task.example(task.source(None), tokenizer.encode(f" {caption}")), case)
    check_image(golden, case, 480)


@items("vqa")
def test_questions(golden, tokenizer, case):
    given = case["input"]
    task = AnswerQuestion(tokenizer, 480, {"prefix": PREFIXES[given["options"].get("prompt_type", "none")]})
    objects = given["objects"].split("&&") if given["options"].get("add_object") else ()
    answer = max(case["ref_dict"], key=case["ref_dict"].__getitem__)  # the most certain of the references
    found = task.example(task.source(None, given["question"], objects), tokenizer.encode(f" {answer}"))
    check(found, case)
    check_answers(tokenizer, found, case)
    check_image(golden, case, 480)


@items("refcoco")
def test_grounding(golden, tokenizer, case):
    given = case["input"]
    size = given["patch_image_size"]
    image = load_image(golden / "data" / given["image"])
    box = [float(value) for value in given["box"].split(",")]
    assert given["max_image_size"] == LOCATION_PIXELS
    locations = box_locations(tokenizer, box, *image.size, size)
    task = Ground(tokenizer, size)
    check(task.example(task.source(None, given["text"]), locations), case)
    check_image(golden, case, size)
    assert (size / image.width, size / image.height) == pytest.approx((case["w_resize_ratio"], case["h_resize_ratio"]))
    found = read_box(tokenizer, [BOS, *locations, 2], *image.size, size)
    half = max(image.size) / size * 512 / 999 / 2  # a location stands for so many pixels on either side
    assert found == pytest.approx(case["region_coord"], abs=half + 1e-6)


@items("snli_ve")
def test_entailment(golden, tokenizer, case):
    given = case["input"]
    task = Entail(tokenizer, 480, {"prefix": PREFIXES[given["prompt_type"]]})
    source = task.source(None, given["hypothesis"], given["caption"] if given["add_caption"] else "")
    (answer,) = (text for text, label in LABELS.items() if label == given["label"])
    found = task.example(source, tokenizer.encode(f" {answer}"))
    check(found, case)
    check_answers(tokenizer, found, case)
    check_image(golden, case, 480)


@items("image_gen")
def test_image_generation(golden, tokenizer, case):
    step = 37 if "code_rule" in case["input"] else 0
    codes = [tokenizer.code_start + step * i % tokenizer.num_codes for i in range(len(case["target"]) - 1)]
    task = GenerateImage(tokenizer, 480)
    check(task.example(task.source(None, case["input"]["text"]), codes), case)


@items("image_classify")
def test_classification(golden, tokenizer, case):
    task = Classify(tokenizer, 480)
    found = task.example(task.source(None), tokenizer.encode(f" {case['input']['label']}"))
    check(found, case)
    check_answers(tokenizer, found, case)
    check_image(golden, case, 480, **IMAGENET)


@items("gigaword")
def test_summaries(golden, tokenizer, case):
    # the original writes unknown words otherwise
    task = Summarize(tokenizer, 480)
    summary = clean_sentence(case["input"]["target"], 64).replace("<unk>", "unk")
    check(task.example(task.source(None, case["input"]["source"]), tokenizer.encode(summary)), case)


@pytest.mark.cases(find=normalisation)
def test_normalisation(golden, case):
    """The first column of each kind was cut to eight words."""
    text = case["text"]
    assert clean_question(text, 8) == case["pre_question"]
    assert clean_question(text) == case["pre_question_nolimit"]
    assert clean_sentence(text, 8) == case["pre_caption"]
    assert clean_sentence(text) == case["pre_caption_nolimit"]
