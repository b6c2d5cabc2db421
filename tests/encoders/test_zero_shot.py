"""Labels of any list: by a pair of encoders against the pair's own calls, and as answers."""

import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import vlm
from vlm.encoders import PairEncoders
from vlm.encoders.zero_shot import label_features
from vlm.errors import ArgumentError, ImageError
from vlm.files.bundle import load_folder, save_bundle
from vlm.model import Model, classify_each, load_classifier
from vlm.models.config import PairConfig, TextConfig
from vlm.models.pair import ContrastivePair

SAMPLE = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = [SAMPLE / "cat.jpg", SAMPLE / "coffee.jpg"]


def test_a_label_is_the_mean_direction_of_its_sentences():
    vectors = {"a cat": [1.0, 0.0], "the cat": [0.6, 0.8], "a dog": [0.0, 1.0], "the dog": [0.0, 1.0]}
    found = label_features(lambda texts: np.array([vectors[t] for t in texts]), ["cat", "dog"], ["a {}", "the {}"])
    # the sum of the cat's sentences is (1.6, 0.8), which is 1.6 * sqrt(5) / 2 long
    torch.testing.assert_close(found, torch.tensor([[2 / 5**0.5, 1 / 5**0.5], [0.0, 1.0]]))


def test_many_sentences_are_encoded_in_parts():
    sizes = []

    def encode(texts: list[str]) -> torch.Tensor:
        sizes.append(len(texts))
        return torch.nn.functional.one_hot(torch.tensor([int(text) % 7 for text in texts])).bfloat16()

    found = label_features(encode, [str(number) for number in range(700)], ["{}"])
    assert sizes == [256, 256, 188] and found.argmax(1).tolist() == [number % 7 for number in range(700)]


def test_braces_of_a_label_or_sentence_are_text():
    seen = []
    label_features(lambda texts: seen.extend(texts) or torch.ones(len(texts), 2), ["{0}"], ["a {} {x}"])
    assert seen == ["a {0} {x}"]


def test_probabilities_are_those_of_the_pair(small_clip):
    encoders = vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
    labels = ["cat", "coffee", "dog"]
    found = list(classify_each(encoders, PHOTOS, labels, batch_size=1))
    with torch.no_grad():
        images, texts, scale = encoders(
            encoders.pixels(PHOTOS), encoders.tokenize([f"a photo of a {label}." for label in labels])
        )
        expected = (scale * images @ texts.T).softmax(1)
    for answers, row in zip(found, expected, strict=True):
        assert not isinstance(answers, ImageError)
        by_label = {answer.text: math.exp(answer.score) for answer in answers}
        assert [by_label[label] for label in labels] == pytest.approx(row.tolist(), abs=1e-5)
        assert answers[0].text == labels[int(row.argmax())]


def test_a_folder_with_a_pair_is_compared_and_one_without_is_asked(all_tasks, tmp_path):
    assert isinstance(load_classifier(str(all_tasks)), Model)
    asked = next(classify_each(load_classifier(str(all_tasks)), PHOTOS[:1], ["cat", "dog"]))
    (expected,) = vlm.load(str(all_tasks)).run("classify", PHOTOS[:1], [["cat", "dog"]])
    assert asked == expected

    folder = shutil.copytree(all_tasks, tmp_path / "both")
    torch.manual_seed(0)
    text = TextConfig(vocab_size=100, dim=16, layers=1, heads=2, ffn_dim=16, max_positions=16)
    bundle = load_folder(all_tasks)
    width = bundle.module.tower.dim
    pair = ContrastivePair(PairConfig(width, dim=8, text=text)).eval()
    save_bundle(folder, replace(bundle, pair=pair, pair_tokenizer=small_tokenizer()))
    encoders = load_classifier(str(folder))
    assert isinstance(encoders, PairEncoders)
    (answers,) = classify_each(encoders, PHOTOS[:1], ["cat", "dog"])
    assert not isinstance(answers, ImageError) and sum(math.exp(a.score) for a in answers) == pytest.approx(1)


def small_tokenizer():
    import tokenizers

    vocabulary = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "a", "photo", "of", "cat", "dog", "."])}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    return tokenizer


def test_what_has_no_meaning_is_one_line(small_clip, all_tasks):
    clip = vlm.load_encoders(f"open_clip:small/{small_clip / 'small.pt'}")
    with pytest.raises(ArgumentError, match=r"template 'a photo' has no place for a label; write \{\} there"):
        classify_each(clip, PHOTOS, ["cat"], templates=["a photo"])
    with pytest.raises(ArgumentError, match="there are no labels"):
        classify_each(clip, PHOTOS, [])
    with pytest.raises(ArgumentError, match="reads photos only"):
        classify_each(load_classifier(f"timm:vit_tiny_patch16_224/{small_clip / 'vit.pt'}"), PHOTOS, ["cat"])
    model = load_classifier(str(all_tasks))
    assert isinstance(model, Model)
    with pytest.raises(ArgumentError, match="scores labels as answers"):
        classify_each(model, PHOTOS, ["cat"], templates=["a {}"])
    captioner = Model(replace(model.bundle, name="mine", tasks={"caption": {}}))
    with pytest.raises(ArgumentError, match=r"'mine' cannot give photos labels \(it was trained for: caption\)"):
        classify_each(captioner, PHOTOS, ["cat"])
    with pytest.raises(ArgumentError, match="is for names that begin with ofa:"):
        load_classifier(str(all_tasks), tokenizer="somewhere")
