"""What the tasks of a model ask and answer: against the original's scores, and against the decoding that they share."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tokenizers
import torch

import vlm
from vlm import hub, prompt
from vlm.errors import ArgumentError
from vlm.generation import GenerationConfig, generate
from vlm.image import ImageTransform
from vlm.looking import Photo
from vlm.model import Model
from vlm.models.seq2seq import EOS
from vlm.tokenizer import Tokenizer

GOLDEN = Path(__file__).parents[2] / "shared" / "ofa_golden"
CASES = json.loads((GOLDEN / "nano_golden.json").read_text()) if GOLDEN.is_dir() else {}
SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
PHOTOS = [SAMPLE / f"{name}.jpg" for name in ("cat", "coffee", "rocket")]

# The original's nano model: words are called by their ids


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    bpe = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(299)}, unk_token="w3"))
    bpe.normalizer = tokenizers.normalizers.Replace("?", "")  # which is put behind every question
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(bpe, num_text=295, num_codes=40, num_bins=20)


def ask_nano(model: Model, data: dict[str, torch.Tensor], **options) -> list[list[vlm.model.Answer]]:
    """Ask the golden questions; one of them is about no photo, where only text is read."""
    grids = model.module.tower(data["patch_images"])
    found = []
    for ids, grid, has_image in zip(data["src_tokens"].tolist(), grids, data["patch_masks"].tolist(), strict=True):
        ids = ids[1 : ids.index(EOS)]
        question = " ".join(f"w{i}" for i in ids)
        if has_image:
            found += model.answers([Photo(grid, (48, 48))], [question], **options)
        elif options.pop("score_all", False):
            found += model.weigh("answer", [ids], None, options["choices"], options["prefix"])
            options["score_all"] = True
        else:
            found += model.write("answer", [ids], None, **options)
    return found


def arrays(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(GOLDEN / "nano" / name).items()}


@pytest.mark.parametrize("name, prefix", [("prompt_none", "none"), ("prompt_prev_output", "source")])
@torch.inference_mode()
def test_scores_of_all_answers_are_the_originals(nano, words, name, prefix):
    model = Model(nano(), words, ImageTransform(48), "nano", {"answer": {"allowed": None}})
    case = CASES["vqa_all_candidate"][name]
    texts = [" ".join(f"w{i}" for i in ids) for ids in case["candidate_ids"]]
    found = ask_nano(model, arrays("loss_inputs.npz"), choices=texts, score_all=True, prefix=prefix)
    for answers, scores, best in zip(found, case["scores"], case["answers"], strict=True):
        by_text = {answer.text: answer.score for answer in answers}
        assert [by_text[text] for text in texts] == pytest.approx(scores, abs=1e-4)
        assert case["candidates"][texts.index(answers[0].text)] == best


@pytest.mark.parametrize("name", ["beam5_unnormalized", "trie_beam5_unnormalized"])
@torch.inference_mode()
def test_answers_are_searched_as_by_the_original(nano, words, name):
    model = Model(nano(), words, ImageTransform(48), "nano", {"answer": {"allowed": None, "prefix": "none"}})
    data, case = arrays("gen_inputs.npz"), CASES["generation"][name]
    model.module.backbone.embed.weight[EOS] = data["eos_row"]
    options: dict[str, Any] = {"beams": 5, "max_tokens": 12, "normalize": False}
    if "trie_sequences" in case:
        options["choices"] = [" ".join(f"w{i}" for i in ids) for ids in case["trie_sequences"]]
    found = ask_nano(model, data, **options)
    for answers, expected in zip(found, case["hypotheses"], strict=True):
        assert [[*answer.ids, EOS] for answer in answers] == [e["tokens"] for e in expected]
        assert [answer.score for answer in answers] == pytest.approx([e["score"] for e in expected], abs=1e-4)


@torch.inference_mode()
def test_image_codes_are_the_originals(nano, words):
    model = Model(nano(), words, ImageTransform(48), "nano", {"generate_image": {"prompt": "{}", "top_k": 1}})
    data, case = arrays("gen_inputs.npz"), CASES["generation"]["code_topk1"]
    model.module.backbone.embed.weight[EOS] = data["eos_row"]
    rows = [ids[1 : ids.index(EOS)] for ids in data["src_tokens_code"].tolist()]
    codes = model.image_codes([" ".join(f"w{i}" for i in ids) for ids in rows], num_images=3)
    expected = [[h["tokens"][:-1] for h in hypotheses] for hypotheses in case["hypotheses"]]
    assert codes.shape == (len(rows), 3, 4, 4)
    assert (codes.flatten(2) + words.code_start).tolist() == expected


# A small random model of our own


@pytest.fixture(scope="module")
def model(all_tasks) -> Model:
    return vlm.load(str(all_tasks))


CHOICES = ["yes", "no", "two cats", "a dog on a sofa"]


@pytest.mark.parametrize("prefix", ["none", "source"])
def test_a_wide_beam_over_given_answers_scores_them_all(model, prefix):
    """Both ways take the softmax over what may follow, so that a beam as wide as the list ends with equal scores."""
    photos, questions = model.look(PHOTOS[:2]), ["is it red", "what sits on the red sofa?"]
    weighed = model.answers(photos, questions, choices=CHOICES, score_all=True, prefix=prefix)
    searched = model.answers(photos, questions, choices=CHOICES, prefix=prefix, beams=8)
    for every, some in zip(weighed, searched, strict=True):
        assert sum(math.exp(answer.score) for answer in every) == pytest.approx(1, abs=1e-5)
        assert [answer.text for answer in some] == [answer.text for answer in every]
        assert [answer.score for answer in some] == pytest.approx([answer.score for answer in every], abs=1e-4)


@pytest.mark.parametrize("prefix", ["none", "source"])
def test_answers_do_not_depend_on_neighbours(model, prefix):
    photos = [PHOTOS[0], PHOTOS[1], PHOTOS[0]]
    questions = ["what?", "what does the red dog on the sofa describe?", "is it a cat"]
    options: dict[str, Any] = {"prefix": prefix, "max_tokens": 6, "beams": 3}
    together = model.answers(photos, questions, **options)
    for photo, question, answers in zip(photos, questions, together, strict=True):
        (alone,) = model.answers([photo], [question], **options)
        assert [answer.ids for answer in alone] == [answer.ids for answer in answers]
        assert [answer.score for answer in alone] == pytest.approx([answer.score for answer in answers], abs=1e-4)
        assert 1 <= len(answers[0].ids) <= 6
    assert model.answer(photos[1], questions[1], **options) == together[1][0].text


def test_given_answers_are_weighed_behind_any_prefix(model):
    found = {}
    for prefix in ("none", "source", "source_and_end"):
        (answers,) = model.answers(PHOTOS[:1], ["is it red?"], choices=CHOICES, score_all=True, prefix=prefix)
        assert sum(math.exp(answer.score) for answer in answers) == pytest.approx(1, abs=1e-5)
        found[prefix] = {answer.text: round(answer.score, 4) for answer in answers}
    assert found["none"] != found["source"] != found["source_and_end"]


def test_scores_are_those_of_the_answer_without_what_stands_before(model):
    (photo,) = model.look(PHOTOS[:1])
    (answers,) = model.answers([photo], ["is it red?"], prefix="source", max_tokens=4)
    ids = prompt.question_ids(model.tokenizer, "is it red?")
    one = prompt.example(ids, answers[0].ids, "source")
    backbone, (start, end) = model.module.backbone, model.tokenizer.text_range
    with torch.inference_mode():
        encoded = backbone.encode(torch.tensor([one.source]), photo.patches[None])
        logits = backbone.logits(backbone.decode(torch.tensor([one.previous]), encoded))[0]
        logits[:, end:] = -torch.inf
        assert start == 4
        scores = logits.log_softmax(-1)[len(one.prefix) - 1 :]
    by_hand = scores.gather(1, torch.tensor([*answers[0].ids, EOS])[:, None]).sum().item()
    assert answers[0].score == pytest.approx(by_hand, abs=1e-4)


def test_a_box_is_what_the_locations_say(model):
    (photo,) = model.look(PHOTOS[:1])
    assert photo.size == (451, 300)
    tokenizer, backbone = model.tokenizer, model.module.backbone
    config = GenerationConfig(
        beams=5, min_tokens=4, max_tokens=4, no_repeat_ngram=3, allowed=(tokenizer.bin_start, tokenizer.vocab_size)
    )
    boxes = []
    for asked, cleaned in [("The red-sofa", "the red sofa"), ("A dog.", "a dog"), ("grass", "grass"), ("two", "two")]:
        ids = tokenizer.encode(f' which region does the text " {cleaned} " describe?')
        with torch.inference_mode():
            encoded = backbone.encode(torch.tensor([[0, *ids, 2]]), photo.patches[None])
        (hypotheses,) = generate(backbone, encoded, config)
        bins = [[i - tokenizer.bin_start for i in h.ids] for h in hypotheses]
        best = next((row for row in bins if min(row) >= 0), None)  # an end or a start token is no location
        box = best and [bin / 99 * side for bin, side in zip(best, photo.size * 2, strict=True)]
        assert model.ground(photo, asked) == (box and pytest.approx(box))
        boxes.append(box)
    assert any(boxes)  # random weights may find nothing for one phrase


def test_boxes_in_pixels_of_the_square_that_is_read(model, monkeypatch):
    """OFA's locations end at pixel 512 of the photo as the model reads it, here of 64 x 64."""
    whole = model.ground(PHOTOS[0], "the sofa")
    monkeypatch.setitem(model.tasks, "ground", model.tasks["ground"] | {"box_pixels": None})
    assert whole and model.ground(PHOTOS[0], "the sofa") == pytest.approx([value * 8 for value in whole])


def test_an_answer_without_locations_is_no_box(model, monkeypatch):
    monkeypatch.setitem(model.tasks, "ground", model.tasks["ground"] | {"allowed": model.tokenizer.text_range})
    assert model.boxes(PHOTOS[:2], ["the sofa", "a dog"]) == [None, None]


def test_photos_are_encoded_once(model, monkeypatch):
    sizes = []
    encode = Model.encode_images
    monkeypatch.setattr(Model, "encode_images", lambda self, images: sizes.append(len(images)) or encode(self, images))
    model.answers([PHOTOS[0]] * 3, ["what?", "who?", "where?"], beams=1, max_tokens=2)
    assert sizes == [1]
    (photo,) = model.look([PHOTOS[0]])
    sizes.clear()
    model.caption(photo)
    model.ground(photo, "a dog")
    model.describe_region(photo, (0, 0, 10, 10))
    model.entail(photo, "a dog")
    model.classify(photo, ["a", "b"])
    assert sizes == []


def test_labels_and_sentences_are_weighed(model):
    (photo,) = model.look(PHOTOS[:1])
    (labels,) = model.classes([photo], ["cat ", "dog", "cat", "a red sofa"])
    assert {answer.text for answer in labels} == {"cat", "dog", "a red sofa"}
    assert sum(math.exp(answer.score) for answer in labels) == pytest.approx(1, abs=1e-5)
    assert model.classify(photo, ["cat", "dog", "a red sofa"]) == labels[0].text
    (alone,), (with_caption,) = (model.judgements([photo], ["a dog"], known) for known in (None, ["a red sofa"]))
    for answers in (alone, with_caption):
        assert {answer.text for answer in answers} == {"entailment", "contradiction", "neutral"}
    assert {a.text: a.score for a in alone} != {a.text: a.score for a in with_caption}
    assert model.entail(photo, "a dog", "a red sofa") == with_caption[0].text


def test_texts_are_written_without_a_photo(model):
    tokenizer, backbone = model.tokenizer, model.module.backbone
    ids = tokenizer.encode(' what is the summary of article " two cats on a red sofa. "?')
    with torch.inference_mode():
        encoded = backbone.encode(torch.tensor([[0, *ids, 2]]))
    config = GenerationConfig(
        beams=6, max_tokens=8, length_penalty=0.7, no_repeat_ngram=3, allowed=tokenizer.text_range
    )
    (expected,) = generate(backbone, encoded, config)
    (found,) = model.summaries(["Two cats on a red-sofa."], max_tokens=8)
    assert [answer.ids for answer in found] == [hypothesis.ids for hypothesis in expected]
    assert model.complete("A dog <mask> the sofa", max_tokens=5) == model.complete(
        "a dog <mask>  the sofa ", max_tokens=5
    )


def test_settings_that_travel_with_the_weights_are_used(all_tasks, model):
    assert model.tasks["answer"]["prefix"] == "source" and hub.task_settings(all_tasks)["ground"] == {}
    given = model.answers(PHOTOS[:1], ["what?"], max_tokens=3)
    assert given == model.answers(PHOTOS[:1], ["what?"], max_tokens=3, prefix="source")
    other = model.answers(PHOTOS[:1], ["what?"], max_tokens=3, prefix="none")
    assert [answer.score for answer in other[0]] != pytest.approx([answer.score for answer in given[0]])


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda m: m.answer(PHOTOS[0], " ?"), "question ' .' holds no words"),
        (lambda m: m.answer(PHOTOS[0], "zq" * 200), "takes .* tokens, .* reads 128; shorten it"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices=[]), "there are no answers"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices="yes,no"), "answers are a list of strings"),
        (lambda m: m.answer(PHOTOS[0], "what?", score_all=True), "give choices"),
        (lambda m: m.answer(PHOTOS[0], "what?", beam_width=2), "beam_width"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices=["a"], mask_after_softmax=True), "exclude each other"),
        (lambda m: m.answer(PHOTOS[0], "what?", prefix="source_and_end"), "have given answers weighed"),
        (lambda m: m.ground(PHOTOS[0], ",."), "phrase ',.' holds no words"),
        (lambda m: m.describe_region(PHOTOS[0], (9, 9, 5, 20)), "9,9,5,20 is no box in a photo of 451x300"),
        (lambda m: m.describe_region(PHOTOS[0], (460, 0, 500, 20)), "is no box in a photo"),
        (lambda m: m.describe_region(PHOTOS[0], (0, 0, 5, math.nan)), "0,0,5,nan is no box"),
        (lambda m: m.entail(PHOTOS[0], ""), "the sentence '' holds no words"),
        (lambda m: m.classify(PHOTOS[0], ["cat", " "]), "the labels hold an empty one"),
        (lambda m: m.summarize("  "), "the text '  ' holds no words"),
        (lambda m: m.complete("a dog"), "has no gap .*write <mask>"),
        (lambda m: m.complete("<mask>"), "has no gap between words"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(model, ask, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "task, ask",
    [
        ("answer", lambda m: m.answer(PHOTOS[0], "what?")),
        ("ground", lambda m: m.ground(PHOTOS[0], "a dog")),
        ("describe_region", lambda m: m.describe_region(PHOTOS[0], (0, 0, 5, 5))),
        ("entail", lambda m: m.entail(PHOTOS[0], "a dog")),
        ("classify", lambda m: m.classify(PHOTOS[0], ["cat"])),
        ("summarize", lambda m: m.summarize("a dog")),
        ("complete", lambda m: m.complete("a <mask> dog")),
    ],
)
def test_a_task_that_was_never_learned_is_refused(model, task, ask):
    captioner = Model(model.module, model.tokenizer, model.transform, "mine")
    with pytest.raises(ArgumentError, match=f"'mine' was trained for caption, not for {task}; load a model that was"):
        ask(captioner)
