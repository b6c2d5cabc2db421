"""Prompts as the denoiser reads them."""

import pytest
import torch

from vlm.diffusion.text import SETTINGS, TextEncoder, read_settings
from vlm.errors import ArgumentError, ModelError
from vlm.files.bundle import load_folder
from vlm.models.seq2seq import Encoded
from vlm.predictor import encoder_ids

TEXTS = ["a red shoe", "a", "a green shirt for women"]


@pytest.mark.parametrize("states", ["pair", "backbone"])
def test_a_batch_is_its_texts_one_by_one(drawing, states):
    text = drawing(states).text_encoder
    found = text.encode(TEXTS)
    assert found.states.shape[2] == text.dim and found.pooled.shape == (3, text.pooled_dim)
    for row, one in enumerate(TEXTS):
        alone, length = text.encode([one]), int(found.mask[row].sum())
        assert alone.states.shape[1] == length
        torch.testing.assert_close(found.states[row, :length], alone.states[0], atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(found.pooled[row], alone.pooled[0], atol=1e-5, rtol=1e-5)


def test_the_pooled_vector_is_that_of_the_pair(drawing):
    text = drawing().text_encoder
    torch.testing.assert_close(text.encode(TEXTS).pooled, text.encoders.encode_text(TEXTS))
    torch.testing.assert_close(drawing("backbone").text_encoder.encode(TEXTS).pooled, text.encoders.encode_text(TEXTS))


def test_states_are_those_of_the_text_tower_or_of_the_backbone(drawing):
    pair, backbone = drawing().text_encoder, drawing("backbone").text_encoder
    found = pair.encode([TEXTS[0]])
    assert found.mask.sum() == 5  # three words between two marks
    torch.testing.assert_close(found.states.mean(1), pair.pair.text(pair.encoders.tokenize([TEXTS[0]])))
    ids = encoder_ids(backbone.bundle.tokenizer.encode(f" {TEXTS[0]}"))
    expected: Encoded = backbone.backbone.encode(torch.tensor([ids]), None)
    torch.testing.assert_close(backbone.encode([TEXTS[0]]).states, expected.states)


def test_no_text_has_states_too(drawing):
    found = drawing().text_encoder.encode([""])
    assert found.mask.tolist() == [[True, True]]


def test_a_long_text_is_an_error_that_counts(drawing):
    with pytest.raises(
        ArgumentError, match=r"the prompt 'red red .*'\.\.\. takes 34 tokens, of at most 32; shorten it"
    ):
        drawing().text_encoder.encode(["a", "red " * 32])


def test_what_is_no_text_encoder(drawing_base, tmp_path):
    bundle = load_folder(drawing_base)
    with pytest.raises(ModelError, match="has no text encoder"):
        TextEncoder(bundle)
    with pytest.raises(ModelError, match="states='words' is unknown; choose pair or backbone"):
        TextEncoder(load_folder(drawing_base, with_pair=True), "words")  # pyright: ignore[reportArgumentType]
    for content in ("", "[]", '{"states": "pair"}'):
        (tmp_path / SETTINGS).write_text(content)
        with pytest.raises(ModelError, match="is not the file of a text encoder"):
            read_settings(tmp_path / SETTINGS)
