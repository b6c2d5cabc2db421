"""What the tasks of a model ask and generate: against the original's scores, and against the decoding they share."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
import torch

import vlm
from vlm.decoding.answer import Answer
from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.errors import ArgumentError, ImageError
from vlm.files.bundle import Bundle
from vlm.image import ImageTransform
from vlm.model import Model
from vlm.models.config import EOS
from vlm.models.vision_language import VisionLanguageModel
from vlm.predictor import Photo, Predictor
from vlm.tokenizer import Tokenizer

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
PHOTOS = [SAMPLE / f"{name}.jpg" for name in ("cat", "coffee", "rocket")]

# The original's nano model: words are called by their ids


@pytest.fixture(scope="module")
def words() -> Tokenizer:
    bpe = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"w{i}": i for i in range(299)}, unk_token="w3"))
    bpe.normalizer = tokenizers.normalizers.Replace("?", "")  # which is put after every question
    bpe.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return Tokenizer(bpe, num_text=295, num_codes=40, num_bins=20)


def nano_model(module: VisionLanguageModel, words: Tokenizer, task: str, settings: dict[str, Any]) -> Model:
    return Model(Bundle(module, words, ImageTransform(48), {task: settings}, "nano"))


def ask_nano(model: Model, data: dict[str, torch.Tensor], **options) -> list[list[Answer]]:
    """Ask the golden questions; one of them is about no photo, where only text is read."""
    grids = model.bundle.module.tower(data["patch_images"])
    found = []
    for ids, grid, has_image in zip(data["src_tokens"].tolist(), grids, data["patch_masks"].tolist(), strict=True):
        ids = ids[1 : ids.index(EOS)]
        question = " ".join(f"w{i}" for i in ids)
        if has_image:
            found += model.run("answer", [Photo(grid, (48, 48))], [question], **options)
        elif options.get("score_all"):
            found += model.predictor.score([ids], None, options["choices"], prefix=options["prefix"])
        else:
            found += model.run("answer", None, [question], **options)
    return found


@pytest.fixture(scope="module")
def cases(golden) -> dict[str, Any]:
    return json.loads((golden / "nano_golden.json").read_text())


@pytest.mark.parametrize("name, prefix", [("prompt_none", "none"), ("prompt_prev_output", "source")])
@torch.inference_mode()
def test_scores_of_all_answers_are_the_originals(nano, words, cases, arrays, name, prefix):
    model = nano_model(nano(), words, "answer", {"allowed": None})
    case = cases["vqa_all_candidate"][name]
    texts = [" ".join(f"w{i}" for i in ids) for ids in case["candidate_ids"]]
    found = ask_nano(model, arrays("nano/loss_inputs"), choices=texts, score_all=True, prefix=prefix)
    for answers, scores, best in zip(found, case["scores"], case["answers"], strict=True):
        by_text = {answer.text: answer.score for answer in answers}
        assert [by_text[text] for text in texts] == pytest.approx(scores, abs=1e-4)
        assert case["candidates"][texts.index(answers[0].text)] == best


@pytest.mark.parametrize("name", ["beam5_unnormalized", "trie_beam5_unnormalized"])
@torch.inference_mode()
def test_answers_are_searched_as_by_the_original(nano, words, cases, arrays, name):
    model = nano_model(nano(), words, "answer", {"allowed": None, "prefix": "none"})
    data, case = arrays("nano/gen_inputs"), cases["generation"][name]
    model.bundle.module.backbone.embed.weight[EOS] = data["eos_row"]
    options: dict[str, Any] = {"beams": 5, "max_tokens": 12, "normalize": False}
    if "trie_sequences" in case:
        options["choices"] = [" ".join(f"w{i}" for i in ids) for ids in case["trie_sequences"]]
    found = ask_nano(model, data, **options)
    for answers, expected in zip(found, case["hypotheses"], strict=True):
        assert [[*answer.ids, EOS] for answer in answers] == [e["tokens"] for e in expected]
        assert [answer.score for answer in answers] == pytest.approx([e["score"] for e in expected], abs=1e-4)


@torch.inference_mode()
def test_image_codes_are_the_originals(nano, words, cases, arrays):
    model = nano_model(nano(), words, "generate_image", {"prompt": "{}", "top_k": 1})
    data, case = arrays("nano/gen_inputs"), cases["generation"]["code_topk1"]
    model.bundle.module.backbone.embed.weight[EOS] = data["eos_row"]
    rows = [ids[1 : ids.index(EOS)] for ids in data["src_tokens_code"].tolist()]
    codes = torch.stack(
        model.run("generate_image", None, [" ".join(f"w{i}" for i in ids) for ids in rows], num_images=3)
    )
    expected = [[h["tokens"][:-1] for h in hypotheses] for hypotheses in case["hypotheses"]]
    assert codes.shape == (len(rows), 3, 4, 4)
    assert (codes.flatten(2) + words.code_start).tolist() == expected


# A small random model of our own


@pytest.fixture(scope="module")
def model(all_tasks) -> Model:
    return vlm.load(str(all_tasks))


CHOICES = ["yes", "no", "two cats", "a dog on a sofa"]


@pytest.mark.parametrize("prefix", ["none", "source", "source_only"])
def test_a_wide_beam_over_given_answers_scores_them_all(model, prefix):
    """Both ways take the softmax over what may follow, so that a beam as wide as the list ends with equal scores."""
    photos, questions = model.encode(PHOTOS[:2]), ["is it red", "what sits on the red sofa?"]
    scored = model.run("answer", photos, questions, choices=CHOICES, score_all=True, prefix=prefix)
    searched = model.run("answer", photos, questions, choices=CHOICES, prefix=prefix, beams=8)
    for every, some in zip(scored, searched, strict=True):
        assert sum(math.exp(answer.score) for answer in every) == pytest.approx(1, abs=1e-5)
        assert [answer.text for answer in some] == [answer.text for answer in every]
        assert [answer.score for answer in some] == pytest.approx([answer.score for answer in every], abs=1e-4)


@pytest.mark.parametrize("prefix", ["none", "source", "source_only"])
def test_answers_do_not_depend_on_neighbours(model, prefix):
    photos = [PHOTOS[0], PHOTOS[1], PHOTOS[0]]
    questions = ["what?", "what does the red dog on the sofa describe?", "is it a cat"]
    options: dict[str, Any] = {"prefix": prefix, "max_tokens": 6, "beams": 3}
    together = model.run("answer", photos, questions, **options)
    for photo, question, answers in zip(photos, questions, together, strict=True):
        (alone,) = model.run("answer", [photo], [question], **options)
        assert [answer.ids for answer in alone] == [answer.ids for answer in answers]
        assert [answer.score for answer in alone] == pytest.approx([answer.score for answer in answers], abs=1e-4)
        assert 1 <= len(answers[0].ids) <= 6
    assert model.answer(photos[1], questions[1], **options) == together[1][0].text


def test_given_answers_are_scored_after_any_prefix(model):
    found = {}
    for prefix in ("none", "source", "source_and_end", "source_only"):
        (answers,) = model.run("answer", PHOTOS[:1], ["is it red?"], choices=CHOICES, score_all=True, prefix=prefix)
        assert sum(math.exp(answer.score) for answer in answers) == pytest.approx(1, abs=1e-5)
        found[prefix] = {answer.text: round(answer.score, 4) for answer in answers}
    assert len({tuple(sorted(scores.items())) for scores in found.values()}) == 4


def test_a_photo_is_read_once_where_the_encoder_reads_no_question(model, monkeypatch):
    one, two = model.encode(PHOTOS[:2])
    photos, questions = [one, two, one, one], ["is it red?", "is it red?", "what?", "where is the cat"]
    backbone, rows = model.bundle.module.backbone, []
    encode = backbone.encode
    monkeypatch.setattr(backbone, "encode", lambda ids, *rest: rows.append(ids.tolist()) or encode(ids, *rest))
    together = model.run("answer", photos, questions, prefix="source_only", choices=CHOICES, score_all=True)
    assert rows == [[[0, 2], [0, 2]]]  # two photos, and nothing else
    for photo, question, answers in zip(photos, questions, together, strict=True):
        (alone,) = model.run("answer", [photo], [question], prefix="source_only", choices=CHOICES, score_all=True)
        assert [a.text for a in alone] == [a.text for a in answers]
        assert [a.score for a in alone] == pytest.approx([a.score for a in answers], rel=1e-5, abs=1e-4)
    assert together[0] != together[2]  # the decoder reads the question


def test_scores_are_those_of_the_answer_without_what_stands_before(model):
    (photo,) = model.encode(PHOTOS[:1])
    (answers,) = model.run("answer", [photo], ["is it red?"], prefix="source", max_tokens=4)
    task = model.task("answer")
    one = task.example(task.source(None, "is it red?"), answers[0].ids)
    assert task.prefix == "source"
    backbone, (start, end) = model.bundle.module.backbone, model.bundle.tokenizer.text_range
    with torch.inference_mode():
        encoded = backbone.encode(torch.tensor([one.source]), photo.patches[None])
        logits = backbone.logits(backbone.decode(torch.tensor([one.previous]), encoded))[0]
        logits[:, end:] = -torch.inf
        assert start == 4
        scores = logits.log_softmax(-1)[len(one.prefix) - 1 :]
    by_hand = scores.gather(1, torch.tensor([*answers[0].ids, EOS])[:, None]).sum().item()
    assert answers[0].score == pytest.approx(by_hand, abs=1e-4)


def test_a_box_is_what_the_locations_say(model):
    (photo,) = model.encode(PHOTOS[:1])
    assert photo.size == (451, 300)
    tokenizer, backbone = model.bundle.tokenizer, model.bundle.module.backbone
    config = GenerationConfig(
        beams=5, min_tokens=4, max_tokens=4, no_repeat_ngram=3, allowed=(tokenizer.bin_start, tokenizer.vocab_size)
    )
    boxes = []
    for asked, cleaned in [("The red-sofa", "the red sofa"), ("A dog.", "a dog."), ("grass", "grass"), ("two", "two")]:
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
    monkeypatch.setitem(model.tasks["ground"].settings, "box_pixels", None)
    assert whole and model.ground(PHOTOS[0], "the sofa") == pytest.approx([value * 8 for value in whole])


def test_an_answer_without_locations_is_no_box(model, monkeypatch):
    monkeypatch.setitem(model.tasks["ground"].settings, "allowed", model.bundle.tokenizer.text_range)
    assert model.run("ground", PHOTOS[:2], ["the sofa", "a dog"]) == [None, None]


def test_photos_are_encoded_once(model, monkeypatch):
    sizes = []
    encode = Predictor.encode_images
    monkeypatch.setattr(
        Predictor, "encode_images", lambda self, pixels: sizes.append(len(pixels)) or encode(self, pixels)
    )
    model.run("answer", [PHOTOS[0]] * 3, ["what?", "who?", "where?"], beams=1, max_tokens=2)
    assert sizes == [1]
    (photo,) = model.encode([PHOTOS[0]])
    sizes.clear()
    model.caption(photo)
    model.ground(photo, "a dog")
    model.describe_region(photo, (0, 0, 10, 10))
    model.entail(photo, "a dog")
    model.classify(photo, ["a", "b"])
    assert sizes == []


def test_labels_and_sentences_are_scored(model):
    (photo,) = model.encode(PHOTOS[:1])
    (labels,) = model.run("classify", [photo], [["cat ", "dog", "cat", "a red sofa"]])
    assert {answer.text for answer in labels} == {"cat", "dog", "a red sofa"}
    assert sum(math.exp(answer.score) for answer in labels) == pytest.approx(1, abs=1e-5)
    assert model.classify(photo, ["cat", "dog", "a red sofa"]) == labels[0].text
    (alone,), (with_caption,) = (model.run("entail", [photo], ["a dog"], *known) for known in ((), (["a red sofa"],)))
    for answers in (alone, with_caption):
        assert {answer.text for answer in answers} == {"entailment", "contradiction", "neutral"}
    assert {a.text: a.score for a in alone} != {a.text: a.score for a in with_caption}
    assert model.entail(photo, "a dog", "a red sofa") == with_caption[0].text


def test_texts_are_written_without_a_photo(model):
    tokenizer, backbone = model.bundle.tokenizer, model.bundle.module.backbone
    ids = tokenizer.encode(' what is the summary of article " two cats on a red sofa. "?')
    with torch.inference_mode():
        encoded = backbone.encode(torch.tensor([[0, *ids, 2]]))
    config = GenerationConfig(
        beams=6, max_tokens=8, length_penalty=0.7, no_repeat_ngram=3, allowed=tokenizer.text_range
    )
    (expected,) = generate(backbone, encoded, config)
    (found,) = model.run("summarize", None, ["Two cats on a red-sofa."], max_tokens=8)
    assert [answer.ids for answer in found] == [hypothesis.ids for hypothesis in expected]
    assert model.complete("A dog <mask> the sofa", max_tokens=5) == model.complete(
        "a dog <mask>  the sofa ", max_tokens=5
    )


def test_settings_that_travel_with_the_weights_are_used(model):
    assert model.tasks["answer"].settings["prefix"] == "source" and model.bundle.tasks["ground"] == {}
    given = model.run("answer", PHOTOS[:1], ["what?"], max_tokens=3)
    assert given == model.run("answer", PHOTOS[:1], ["what?"], max_tokens=3, prefix="source")
    other = model.run("answer", PHOTOS[:1], ["what?"], max_tokens=3, prefix="none")
    assert [answer.score for answer in other[0]] != pytest.approx([answer.score for answer in given[0]])


@pytest.mark.parametrize(
    "ask, words",
    [
        (lambda m: m.answer(PHOTOS[0], " ?"), "question ' .' contains no words"),
        (lambda m: m.answer(PHOTOS[0], "zq" * 200), "takes .* tokens, .* reads 128; shorten it"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices=[]), "there are no answers"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices="yes,no"), "answers are a list of strings"),
        (lambda m: m.answer(PHOTOS[0], "what?", score_all=True), "give choices"),
        (lambda m: m.answer(PHOTOS[0], "what?", beam_width=2), "beam_width"),
        (lambda m: m.answer(PHOTOS[0], "what?", choices=["a"], mask_after_softmax=True), "exclude each other"),
        (lambda m: m.answer(PHOTOS[0], "what?", prefix="source_and_end"), "score given answers instead"),
        (lambda m: m.ground(PHOTOS[0], ",."), "phrase ',.' contains no words"),
        (lambda m: m.describe_region(PHOTOS[0], (9, 9, 5, 20)), "9,9,5,20 is not a box in a photo of 451x300"),
        (lambda m: m.describe_region(PHOTOS[0], (460, 0, 500, 20)), "is not a box in a photo"),
        (lambda m: m.describe_region(PHOTOS[0], (0, 0, 5, math.nan)), "0,0,5,nan is not a box"),
        (lambda m: m.entail(PHOTOS[0], ""), "the sentence '' contains no words"),
        (lambda m: m.classify(PHOTOS[0], ["cat", " "]), "the labels hold an empty one"),
        (lambda m: m.summarize("  "), "the text '  ' contains no words"),
        (lambda m: m.complete("a dog"), "has no gap .*write <mask>"),
        (lambda m: m.complete("<mask>"), "has no gap between words"),
    ],
)
def test_what_cannot_be_asked_is_said_in_one_line(model, ask, words):
    with pytest.raises(ArgumentError, match=words) as caught:
        ask(model)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "does, ask",
    [
        ("answer questions", lambda m: m.answer(PHOTOS[0], "what?")),
        ("find what a phrase names", lambda m: m.ground(PHOTOS[0], "a dog")),
        ("describe regions", lambda m: m.describe_region(PHOTOS[0], (0, 0, 5, 5))),
        ("judge sentences about photos", lambda m: m.entail(PHOTOS[0], "a dog")),
        ("give photos labels", lambda m: m.classify(PHOTOS[0], ["cat"])),
        ("summarise texts", lambda m: m.summarize("a dog")),
        ("fill gaps in texts", lambda m: m.complete("a <mask> dog")),
        ("generate images from text", lambda m: m.image_codes("a dog")),
    ],
)
def test_a_task_that_was_never_learned_is_refused(model, does, ask):
    captioner = Model(replace(model.bundle, tasks={"caption": {}}, name="mine"))
    words = rf"'mine' cannot {does} \(it was trained for: caption\); load a model that can, such as "
    with pytest.raises(ArgumentError, match=f"^{words}(tiny|ofa:OFA-Sys/ofa-base)$"):
        ask(captioner)


# Many photos, several inputs


INPUTS: dict[str, list[tuple[Any, ...]]] = {
    "caption": [()],
    "answer": [("is it red?",), ("what sits on the red sofa?",), ("who?",)],
    "ground": [("the sofa",), ("a dog",), ("two cats on a red sofa",), ("the region of the image",)],
    "describe_region": [((0, 0, 50, 50),), ((10, 20, 200, 150),)],
    "entail": [("a dog", ""), ("a dog", "a red sofa")],
    "classify": [(["cat", "dog"],), (["a red sofa", "cat", "yes"],)],
}
SHORT = {"caption": {"max_tokens": 6}, "answer": {"max_tokens": 4}, "describe_region": {"max_tokens": 6}}


def assert_equal(found: Any, expected: Any) -> None:
    """Two results of a task are equal: answers with their ids exactly, scores and boxes within rounding."""
    if isinstance(expected, list):
        assert [(answer.text, answer.ids) for answer in found] == [(answer.text, answer.ids) for answer in expected]
        found, expected = ([answer.score for answer in answers] for answers in (found, expected))
    assert found == (expected and pytest.approx(expected, abs=1e-4))


@pytest.mark.parametrize("task", INPUTS)
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_stream_equals_photos_and_inputs_one_by_one(model, task, batch_size):
    inputs, options = INPUTS[task], SHORT.get(task, {})
    streamed = list(model.stream(task, PHOTOS, inputs, batch_size=batch_size, **options))
    assert [len(results) for results in streamed] == [len(inputs)] * len(PHOTOS)
    for photo, results in zip(PHOTOS, streamed, strict=True):
        for row, result in zip(inputs, results, strict=True):
            (alone,) = model.run(task, [photo], *([value] for value in row), **options)
            assert_equal(result, alone)
    assert len({str(result) for results in streamed for result in results}) > len(PHOTOS) * (len(inputs) > 1)


def test_a_run_equals_its_photos_one_by_one(model):
    photos = [PHOTOS[0], PHOTOS[1], PHOTOS[0], PHOTOS[2]]
    for task, inputs in INPUTS.items():
        rows = [inputs[number % len(inputs)] for number in range(len(photos))]
        options = SHORT.get(task, {})
        together = model.run(task, photos, *map(list, zip(*rows, strict=True)), **options)
        assert len(together) == len(photos)
        for photo, row, result in zip(photos, rows, together, strict=True):
            (alone,) = model.run(task, [photo], *([value] for value in row), **options)
            assert_equal(result, alone)


@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_a_broken_photo_is_lost_alone(model, tmp_path, batch_size):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(PHOTOS[0].read_bytes()[:3000])
    (encoded,) = model.encode(PHOTOS[2:])
    images = [PHOTOS[0], broken, PHOTOS[1].read_bytes(), tmp_path / "gone.jpg", encoded, broken]
    inputs = INPUTS["answer"]
    found = list(model.stream("answer", images, inputs, batch_size=batch_size, max_tokens=4))
    assert [isinstance(results, ImageError) for results in found] == [False, True, False, True, False, True]
    assert ["broken.jpg" in str(found[1]), "gone.jpg" in str(found[3]), "broken.jpg" in str(found[5])] == [True] * 3
    good = model.stream("answer", PHOTOS, inputs, max_tokens=4)
    for results, expected in zip(found[::2], good, strict=True):
        for result, alone in zip(results, expected, strict=True):
            assert_equal(result, alone)
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.run("answer", images, ["who?"] * len(images))
    with pytest.raises(ImageError, match=r"broken\.jpg"):
        model.captions(images)


def test_nothing_is_asked_of_nothing(model):
    assert list(model.stream("answer", [], [("who?",)])) == list(model.stream("caption", [])) == []
    assert list(model.stream("answer", [PHOTOS[0]], [])) == [[]]
    assert model.run("answer", [], []) == model.run("caption", []) == model.run("classify", [], []) == []
    assert model.run("summarize", None, []) == model.captions([]) == []


def test_what_a_stream_cannot_ask_is_said_at_once(model):
    with pytest.raises(ArgumentError, match="task 'nosuch' is unknown; this version knows answer, caption, "):
        model.stream("nosuch", PHOTOS)
    captioner = Model(replace(model.bundle, tasks={"caption": {}}, name="mine"))
    with pytest.raises(ArgumentError, match="'mine' cannot answer questions"):
        captioner.stream("answer", PHOTOS, [("who?",)])
    with pytest.raises(ArgumentError, match="batch_size=0 is below 1"):
        list(model.stream("caption", PHOTOS, batch_size=0))
    with pytest.raises(ArgumentError, match="contains no words"):
        list(model.stream("answer", PHOTOS, [("who?",), ("?",)]))
    large = list(model.stream("caption", PHOTOS[:1], max_pixels=1000))
    assert isinstance(large[0], ImageError) and "max_pixels=1000" in str(large[0])


@pytest.mark.parametrize("task", ["answer", "ground", "describe_region", "entail", "classify"])
def test_inputs_of_another_number_than_photos_are_refused(model, task):
    columns = [list(values) for values in zip(*INPUTS[task][:2], strict=True)]
    for number in (1, 3):
        lengths = f"{min(number, 2)} and {max(number, 2)}"
        with pytest.raises(ArgumentError, match=f"was given lists of {lengths} items; give lists of one length"):
            model.run(task, PHOTOS[:1] * number, *columns)
