"""What the Python functions are given: one text or photo where a list belongs, empty lists, other types of numbers."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import vlm
from eval.metrics.captions import caption_scores
from vlm.data.annotations import join_annotations
from vlm.data.shards import read_samples
from vlm.encoders.zero_shot import label_features
from vlm.errors import ArgumentError, DataError, ImageError, ModelError, VLMError
from vlm.files.photos import expand_paths
from vlm.model import Model, classify_each, load_classifier
from vlm.search.index import query_vector
from vlm.train.config import from_json

SAMPLE = Path(__file__).parents[1] / "datasets" / "sample"
CAT, COFFEE = SAMPLE / "cat.jpg", SAMPLE / "coffee.jpg"


@pytest.fixture(scope="module")
def model() -> Model:
    return vlm.load()


@pytest.fixture(scope="module")
def encoders():
    return vlm.load_encoders()


@pytest.mark.parametrize(
    "call",
    [
        lambda m, e: e.tokenize("a cat"),
        lambda m, e: e.encode_text("a cat"),
        lambda m, e: e.encode("a cat"),
        lambda m, e: e.encode_image("x.jpg"),
        lambda m, e: e.encode_image(CAT),
        lambda m, e: e.encode_image(b"\xff\xd8"),
        lambda m, e: e.encode_image(Image.new("RGB", (4, 4))),
        lambda m, e: m.captions("x.jpg"),
        lambda m, e: m.captions(np.zeros((8, 8, 3), np.uint8)),
        lambda m, e: m.encode(CAT),
        lambda m, e: m.run("caption", "x.jpg"),
        lambda m, e: m.run("caption", [CAT], "question"),
        lambda m, e: m.stream("caption", "x.jpg"),
        lambda m, e: m.stream("caption", [CAT], ["what is it?"]),
        lambda m, e: m.answer(CAT, "what?", objects="a dog"),
        lambda m, e: classify_each(e, [CAT], "cat,dog"),
        lambda m, e: classify_each(e, [CAT], ["cat"], templates="a {}"),
        lambda m, e: classify_each(e, "x.jpg", ["cat"]),
        lambda m, e: label_features(e.encode_text, "cat"),
        lambda m, e: query_vector(e, "a cat", minus="people"),
        lambda m, e: query_vector(e, images="x.jpg"),
        lambda m, e: m.predictor.tokenizer.encode_batch("a cat"),
    ],
)
def test_one_text_or_photo_is_no_list(call, model, encoders):
    with pytest.raises(ArgumentError, match="list") as refused:
        call(model, encoders)
    assert "\n" not in str(refused.value)


def test_one_file_is_a_list_of_one(tmp_path):
    assert expand_paths(str(CAT)) == [CAT]
    with pytest.raises(DataError, match=r"gone\.tar"):
        list(read_samples(str(tmp_path / "gone.tar")))
    with pytest.raises(DataError, match=r"gone\.jsonl"):
        join_annotations([], str(tmp_path / "gone.jsonl"))


def test_one_text_in_data_is_no_list_of_letters():
    with pytest.raises(DataError, match="one string"):
        caption_scores({1: "a cat"}, {1: "a cat"})
    with pytest.raises(ValueError, match="answer_sets"):
        from_json({"phases": [{"name": "a"}], "answer_sets": "daquar"})


def test_empty_lists_give_nothing(model, encoders):
    assert encoders.encode_image([]).shape == encoders.encode_text([]).shape == (0, encoders.dim)
    assert encoders.encode([]).shape == (0, encoders.dim)
    assert model.captions([]) == model.encode([]) == model.run("caption", []) == []


@pytest.mark.parametrize("value", [None, 3, float("nan"), ["a"]])
def test_other_things_in_a_list_are_refused(value, encoders):
    with pytest.raises(ArgumentError, match="where text belongs"):
        encoders.encode_text(["a cat", value])
    with pytest.raises(ImageError, match="is not a picture"):
        encoders.encode_image([value])


@pytest.mark.parametrize("seed", [2**70, -1, 0])
def test_any_whole_number_is_a_seed(seed, model):
    assert model.caption(CAT, sample=True, seed=seed)


def test_what_is_no_seed_is_refused(model):
    for seed in ("7", 1.5, True):
        with pytest.raises(ArgumentError, match="not a whole number"):
            model.caption(CAT, sample=True, seed=seed)
    with pytest.raises(ValueError, match="seed"):
        from_json({"phases": [{"name": "a"}], "seed": 2**64})


def test_paths_are_names(model):
    folder = model.bundle.folder
    assert isinstance(folder, Path)
    assert vlm.load(folder).name == vlm.load_encoders(folder).name == load_classifier(folder).name == str(folder)
    with pytest.raises(ModelError, match="gone"):
        vlm.load(folder / "gone" / "x")


# Features that go out


def test_a_head_can_be_trained_on_features(model, encoders):
    pixels = torch.stack([model.bundle.transform(Image.open(CAT))])
    for features in (
        model.encode([CAT])[0].patches,
        model.predictor.encode_images(pixels),
        encoders.encode([CAT]),
        encoders.encode(["a cat"]),
        label_features(encoders.encode_text, ["cat"]),
        query_vector(encoders, "a cat"),
    ):
        assert not features.is_inference() and not features.requires_grad
        head = torch.nn.Linear(features.shape[-1], 2)
        head(features).sum().backward()
        assert head.weight.grad is not None


def test_a_long_list_goes_through_in_parts(encoders, monkeypatch):
    monkeypatch.setattr("vlm.encoders.base.AT_ONCE", 2)
    seen: list[int] = []
    real = encoders.image_vectors
    monkeypatch.setattr(encoders, "image_vectors", lambda pixels: (seen.append(len(pixels)), real(pixels))[1])
    photos = [CAT, COFFEE, CAT]
    with torch.no_grad():
        expected = encoders.encode_image(torch.stack([encoders.image_transform(Image.open(p)) for p in photos]))
        found = encoders.encode_image(photos)
    assert seen == [3, 2, 1]
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)  # the order of sums in batches of other sizes


def test_gradients_of_a_long_list_are_those_of_the_whole(encoders, monkeypatch):
    monkeypatch.setattr("vlm.encoders.base.AT_ONCE", 2)
    weight = encoders.pair.text_proj.weight if hasattr(encoders.pair.text_proj, "weight") else None
    parameter = weight if weight is not None else next(encoders.pair.text_proj.parameters())
    sentences = ["a cat", "two dogs", "a cup of tea"]
    target = torch.randn(3, encoders.dim, generator=torch.Generator().manual_seed(0))
    grads = []
    for texts in (sentences, encoders.tokenize(sentences)):
        encoders.zero_grad()
        (encoders.encode_text(texts) * target).sum().backward()
        grads.append(parameter.grad.clone())
    encoders.zero_grad()
    torch.testing.assert_close(grads[0], grads[1], atol=1e-4, rtol=1e-3)


# Types of numbers


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_inputs_follow_the_type_of_the_weights(dtype, encoders):
    model = vlm.load()
    photo = model.encode([CAT])[0]
    assert model.to(dtype).caption(CAT, beams=1) and model.caption(photo, beams=1)
    half = vlm.load()
    half.bundle.module.to(dtype)  # the tower alone of what reranks
    assert half.caption(CAT)
    pair = vlm.load_encoders().to(dtype)
    cosine = pair.encode([CAT])[0] @ encoders.encode([CAT])[0]
    assert cosine > 0.99 and pair.encode_text(["a cat"]).dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_another_default_type_changes_nothing(dtype, model, encoders):
    expected, labels = model.caption(CAT), ["cat", "dog"]
    drawn = model.caption(CAT, sample=True, seed=3)
    torch.set_default_dtype(dtype)
    try:
        assert model.caption(CAT) == expected and model.caption(CAT, sample=True, seed=3) == drawn
        (found,) = classify_each(encoders, [CAT], labels)
        assert not isinstance(found, VLMError) and found[0].text == "cat"
        assert vlm.load().caption(CAT)
    finally:
        torch.set_default_dtype(torch.float32)


# Random numbers of their own for each photo


def test_what_is_drawn_depends_on_seed_and_place_alone(model, tmp_path):
    (tmp_path / "bad.jpg").write_bytes(b"no photo")
    options = {"sample": True, "seed": 7, "temperature": 1.0, "top_p": 0.0, "rerank": 0}

    def drawn(photos, batch_size: int) -> list[str | None]:
        found = model.stream("caption", photos, batch_size=batch_size, **options)
        return [None if isinstance(item, ImageError) else item[0][0].text for item in found]

    photos = [CAT, COFFEE, CAT, tmp_path / "bad.jpg", CAT]
    whole = drawn(photos, 8)
    assert whole[3] is None and len({whole[0], whole[2], whole[4]}) == 3  # equal photos, other text
    assert drawn(photos, 1) == drawn(photos, 2) == whole
    assert drawn([CAT, CAT, CAT, COFFEE, CAT], 3)[::2] == whole[::2]  # whatever lies beside them
    assert [found[0].text for found in model.run("caption", [CAT, COFFEE, CAT], **options)] == whole[:3]


def test_drawn_captions_read_like_captions(model):
    """No piece of another script, and no half character, which one word in seven has without the defaults."""
    photos = model.encode(sorted(SAMPLE.glob("*.jpg")))
    found = [f[0].text for seed in (0, 1, 2) for f in model.run("caption", photos, sample=True, seed=seed)]
    assert all(text.isascii() for text in found) and len(set(found)) > 25
    search = model.task("caption").search
    assert (search({"sample": True}).temperature, search({"sample": True}).top_p) == (0.7, 0.8)
    assert search({"sample": True, "top_k": 5}).top_p == 0 and search({"sample": True, "top_p": 0.0}).top_p == 0
    assert (search().temperature, search().top_p, search({"beams": 1}).temperature) == (1.0, 0.0, 1.0)


# Texts that a model cannot tell apart


@pytest.mark.parametrize("labels", [["狗", "猫", "cat"], ["Cat", "cat"], ["🐕", "🐈"]])
def test_labels_that_are_the_same_to_the_model_are_named(labels, encoders):
    with pytest.warns(UserWarning, match="cannot tell 2 of the") as warned:
        list(classify_each(encoders, [CAT], labels))
    assert len(warned) == 1 and "\n" not in str(warned[0].message)


def test_a_query_that_the_model_does_not_know_is_named(encoders):
    with pytest.warns(UserWarning, match="knows no part of the query '狗'"):
        query_vector(encoders, "狗")
    query_vector(encoders, "собака, dog")  # no warning
