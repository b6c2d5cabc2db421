"""The protocols between harness and models: each task, asked for through a whole run."""

import json
import pickle
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from eval import models, report
from eval.benchmarks import find
from eval.run import Options, evaluate
from vlm.errors import ArgumentError, ModelError
from vlm.tasks import TASKS

COLOURS = {"cat": 0, "rocket": 1, "stairs": 2}


class Pair:
    """Encoders whose vectors say which of three photos, or names of photos, they were given."""

    name, weights = "pair", "0" * 64

    def prepare(self, image: Path) -> int:
        return COLOURS[image.stem]

    def settings(self, task: str) -> dict:
        return {}

    def encode_image(self, images):
        return np.eye(3, dtype=np.float32)[list(images)]

    def encode_text(self, texts):
        import torch

        self.texts = list(texts)
        return torch.tensor([[float(name in text) for name in COLOURS] for text in texts]).bfloat16()


def measure(model, name: str, data: Path, split: str) -> dict:
    chosen = Options(find(name), data, "m", data.parent / "out", split, batch_size=2)
    results = evaluate(chosen, load=lambda *args: model)
    assert results is not None
    return results


@pytest.fixture
def data(tmp_path, put_photo) -> Path:
    for name in COLOURS:
        put_photo(tmp_path / f"data/{name}/{name}.jpg", name)
    return tmp_path / "data"


def test_an_open_clip_pair_embeds_and_classifies_like_its_own_calls(data, small_clip):
    import torch

    import vlm

    name = f"open_clip:small/{small_clip / 'small.pt'}"
    encoders = vlm.load_encoders(name)
    texts = [f"a photo of a {word}." for word in COLOURS]
    photos = [data / word / f"{word}.jpg" for word in COLOURS]
    with torch.no_grad():
        expected = (encoders.encode_image(photos) @ encoders.encode_text(texts).T).argmax(1)
    model = models.load(name, "classify", "cpu")
    results = measure(model, "class_folders", data, "all")
    assert results["weights_sha256"] == model.weights and len(model.weights) == 64
    right = (expected == torch.arange(3)).float().mean().item()
    assert results["figures"]["accuracy"]["value"] == pytest.approx(100 * right)
    with torch.no_grad():
        features = np.asarray(models.image_features(model, [model.prepare(photo) for photo in photos]))
        np.testing.assert_allclose(features, encoders.image_vectors(encoders.pixels(photos)), atol=1e-6)


def test_a_timm_model_gives_features_and_is_no_pair(small_clip):
    name = f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}"
    assert isinstance(models.load(name, "featurize", "cpu"), models.Featurizer)
    with pytest.raises(ArgumentError, match=r"cannot embed photos and sentences .* it can do: featurize"):
        models.load(name, "embed", "cpu")


def test_retrieval_by_a_pair(data):
    records = [{"file": f"{name}/{name}.jpg", "captions": [f"a {name}", "a rocket"]} for name in COLOURS]
    (data / "captions.json").write_text(json.dumps(records))
    results = measure(Pair(), "retrieval_json", data, "all")
    # "a rocket" is said of all three photos and finds one of them; "a cat" and its like find theirs
    assert results["figures"]["text-to-image recall@1"]["value"] == pytest.approx(100 * 4 / 6)
    assert results["figures"]["image-to-text recall@1"]["value"] == pytest.approx(
        200 / 3
    )  # the rocket ties with others
    assert results["n"] == 3


def test_zero_shot_by_a_pair_puts_names_into_sentences(data):
    pair = Pair()
    assert measure(pair, "class_folders", data, "all")["figures"]["accuracy"]["value"] == 100
    assert pair.texts == ["a photo of a cat.", "a photo of a rocket.", "a photo of a stairs."]


def test_zero_shot_by_a_model_that_classifies(data):
    class Naming(Pair):
        def classify(self, images, labels):
            assert [list(row) for row in labels] == [list(COLOURS)] * len(images)
            return np.zeros(len(images), int)

    results = measure(Naming(), "class_folders", data, "all")
    assert results["figures"]["mean per class"]["value"] == pytest.approx(100 / 3)
    assert {item["prediction"] for item in report.read(data.parent / "out")[1]} == {"cat"}


def test_grounding_gets_phrases_and_gives_boxes(data):
    class Grounding(Pair):
        def ground(self, images, phrases):
            assert list(phrases) == ["the cat"] * len(images)
            return np.array([[0.1, 0.1, 0.6, 0.6]] * len(images), np.float32)

    instances = {
        "images": [{"id": 1, "file_name": "cat.jpg", "width": 200, "height": 100}],
        "annotations": [{"id": 2, "bbox": [20, 10, 100, 50]}],
    }
    sentences = [{"sent_id": 7, "sent": "the cat"}]
    refs = [{"split": "val", "image_id": 1, "ann_id": 2, "sentences": sentences}]
    (data / "refcoco").mkdir()
    (data / "refcoco/instances.json").write_text(json.dumps(instances))
    (data / "refcoco/refs(unc).p").write_bytes(pickle.dumps(refs))
    (data / "cat").rename(data / "train2014")
    assert measure(Grounding(), "refcoco", data, "val")["figures"]["accuracy@0.5"]["value"] == 100
    (item,) = report.read(data.parent / "out")[1]
    assert item["box"] == pytest.approx([0.1, 0.1, 0.6, 0.6]) == item["predicted_box"]


@pytest.mark.parametrize("name, premises", [("snli_ve", [""]), ("snli_ve_premise", ["A cat sits."])])
def test_entailment_gets_the_premise_where_the_benchmark_says_so(data, name, premises):
    class Judging(Pair):
        def entail(self, images, hypotheses, premises):
            self.asked = list(hypotheses), list(premises)
            return ["neutral"] * len(images)

    record = {"Flickr30K_ID": "cat", "pairID": "p", "sentence1": "A cat sits.", "sentence2": "An animal."}
    (data / "snli_ve_test.jsonl").write_text(json.dumps(record | {"gold_label": "neutral"}))
    (data / "cat").rename(data / "flickr30k-images")
    model = Judging()
    assert measure(model, name, data, "test")["figures"]["accuracy"]["value"] == 100
    assert model.asked == (["An animal."], premises)


def test_a_model_is_refused_with_what_it_can_do():
    with pytest.raises(ArgumentError, match=r"'pair' cannot caption photos.*it can do: classify, embed"):
        models.check(Pair(), "caption")


def test_names_may_say_where_the_model_is_from(random_model):
    model = models.load(f"vlm:{random_model}", "caption", "cpu")
    assert model.name == str(random_model)


def test_a_model_of_every_task_gives_what_its_library_gives(all_tasks, data):
    import vlm

    photos = [data / "cat/cat.jpg", data / "rocket/rocket.jpg"]
    library = vlm.load(str(all_tasks))
    tasks = ("answer", "ground", "entail", "classify")
    loaded: dict[str, Any] = {task: models.load(str(all_tasks), task, "cpu") for task in tasks}
    cat, rocket = map(loaded["answer"].prepare, photos)
    prepared = [cat, cat, rocket]
    asked = [photos[0], *photos]

    questions = ["is it red?", "what is it?", "is it red?"]
    sizes = []
    predictor = loaded["answer"].model.predictor
    encode = predictor.encode_images
    predictor.encode_images = lambda images: sizes.append(len(images)) or encode(images)
    found = loaded["answer"].answer(prepared, questions)
    assert found == [library.answer(photo, question) for photo, question in zip(asked, questions, strict=True)]
    assert sizes == [2]  # the cat once

    phrases = ["the sofa", "a dog", "a dog"]
    boxes = loaded["ground"].ground(prepared, phrases)
    for box, photo, phrase in zip(boxes, asked, phrases, strict=True):
        width, height = library.encode([photo])[0].size
        pixels = library.ground(photo, phrase) or (0, 0, 0, 0)
        assert [x * side for x, side in zip(box, (width, height) * 2, strict=True)] == pytest.approx(pixels)

    premises = ["", "a red sofa", ""]
    labels = loaded["entail"].entail(prepared, phrases, premises)
    assert labels == [library.entail(*given) for given in zip(asked, phrases, premises, strict=True)]
    names = list(COLOURS)
    assert [names[i] for i in loaded["classify"].classify(prepared, [names] * 3)] == [
        library.classify(photo, names) for photo in asked
    ]
    assert loaded["answer"].settings("answer")["prefix"] == "source"
    assert loaded["ground"].settings("featurize") == {}


def test_a_model_of_every_task_runs_the_benchmarks(all_tasks, data):
    import vlm

    (data / "vqa.json").write_text(json.dumps([{"image": "cat/cat.jpg", "question": "what?", "answer": "x"}]))
    results = measure(models.load(str(all_tasks), "answer", "cpu"), "vqa_json", data, "vqa")
    assert results["prompt"] == " {}" and results["settings"]["normalize"] is False
    (item,) = report.read(data.parent / "out")[1]
    assert item["prediction"] == vlm.load(str(all_tasks)).answer(data / "cat/cat.jpg", "what?")


def test_a_model_that_only_captions_has_no_other_methods(random_model):
    model = models.load(str(random_model), "caption", "cpu")
    assert [task for task in TASKS if models.able(model, task)] == ["caption"]


def test_the_pair_of_a_folder_embeds_and_classifies(random_model, tmp_path, data):
    import tokenizers
    import torch

    import vlm
    from vlm.files.bundle import load_folder, save_bundle
    from vlm.models.config import PairConfig, TextConfig
    from vlm.models.pair import ContrastivePair

    folder = Path(shutil.copytree(random_model, tmp_path / "both"))
    torch.manual_seed(0)
    text = TextConfig(vocab_size=20, dim=16, layers=1, heads=2, ffn_dim=16, max_positions=16)
    bundle = load_folder(folder)
    width = bundle.module.tower.dim
    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", *COLOURS, "."])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    pair = ContrastivePair(PairConfig(width, dim=8, text=text)).eval()
    save_bundle(folder, replace(bundle, pair=pair, pair_tokenizer=tokenizer))

    assert isinstance(models.load(str(folder), "embed", "cpu"), models.EncoderPair)
    assert isinstance(models.load(str(folder), "caption", "cpu"), models.VLMModel)
    model = models.load(str(folder), "classify", "cpu")
    assert model.settings("classify")["templates"] == ["a photo of a {}."]
    encoders = vlm.load_encoders(str(folder))
    photos = [data / name / f"{name}.jpg" for name in COLOURS]
    with torch.no_grad():
        texts = encoders.encode_text([f"a photo of a {name}." for name in COLOURS])
        right = ((encoders.encode_image(photos) @ texts.T).argmax(1) == torch.arange(3)).float().mean().item()
    results = measure(model, "class_folders", data, "all")
    assert results["figures"]["accuracy"]["value"] == pytest.approx(100 * right)


def test_vectors_keep_every_bit():
    vectors = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    assert (models.unpack([models.pack(vector) for vector in vectors]) == vectors).all()
    with pytest.raises(ModelError, match="differ in length"):
        models.unpack([models.pack(vectors[0]), models.pack(vectors[1, :2])])


def test_without_jinja2_the_error_says_what_to_install(data, monkeypatch):
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(ArgumentError, match=r"pip install 'vlm-foundation\[eval\]'"):
        measure(Pair(), "class_folders", data, "all")
