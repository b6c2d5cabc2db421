"""The project's own pair: on the tower that the captioner reads from, and in files of its own."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import tokenizers
import torch
from safetensors.torch import load_file, save_file

import vlm
from vlm.errors import ModelError
from vlm.files import hub
from vlm.files.bundle import load_folder, load_pair, save_bundle
from vlm.models.config import PairConfig, TextConfig
from vlm.models.pair import ContrastivePair

SAMPLES = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = [SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg", SAMPLES / "rocket.jpg"]


@pytest.fixture
def small_pair(tmp_path) -> Path:
    """A model's folder with a small random pair in it."""
    shutil.copytree(hub.BUNDLED / "tiny", tmp_path / "model")
    torch.manual_seed(0)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "cat", "rocket"]
    tokenizer = tokenizers.Tokenizer(
        tokenizers.models.WordPiece({word: i for i, word in enumerate(words)}, unk_token="[UNK]")
    )
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.BertPreTokenizer()
    tokenizer.post_processor = tokenizers.processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    text = TextConfig(vocab_size=len(words), dim=16, layers=1, heads=2, ffn_dim=32, max_positions=6)
    pair = ContrastivePair(PairConfig(patch_dim=1280, dim=8, width=16, text=text))
    bundle = load_folder(tmp_path / "model")
    save_bundle(tmp_path / "model", replace(bundle, pair=pair.eval(), pair_tokenizer=tokenizer))
    return tmp_path / "model"


@torch.no_grad()
def test_our_own_pair_reads_the_captioners_tower(small_pair):
    encoders = vlm.load_encoders(str(small_pair))
    model = vlm.load("tiny")
    (photo,) = model.encode(PHOTOS[:1])
    torch.testing.assert_close(encoders.patch_embeddings(PHOTOS[:1]), photo.patches[None].flatten(1, 2))
    assert encoders.encode_image(PHOTOS).shape == (3, 8) and encoders.dim == 8
    assert encoders.tokenize(["a cat", "a"]).tolist() == [[2, 4, 5, 3], [2, 4, 3, 0]]
    assert encoders.tokenize(["a cat a cat a cat"]).tolist() == [[2, 4, 5, 4, 5, 3]]  # the end stays
    torch.testing.assert_close(encoders.encode_text(["a cat", "a"])[1:], encoders.encode_text(["a"]))
    torch.testing.assert_close(encoders.encode(PHOTOS, batch_size=2), encoders.encode_image(PHOTOS), atol=1e-5, rtol=0)


@pytest.mark.parametrize("file, change, message", [
    ("pair_tokenizer.json", lambda text: text + b" ", "not the tokenizer that these weights were trained with"),
    ("pair.json", lambda text: text.replace(b'"width": 16', b'"width": 32'), "has shape .* its config says"),
    ("pair.json", lambda text: text.replace(b'"heads": 2', b'"heads": 3'), "does not describe a pair"),
    ("pair.json", lambda text: text.replace(b'"pair"', b'"pear"'), "lacks 'pair'"),
    ("pair.json", lambda text: b"{", "is not JSON"),
    ("pair.safetensors", lambda data: data[:-100], "cannot be read"),
])  # fmt: skip
def test_damaged_files_of_a_pair(small_pair, file, change, message):
    path = small_pair / file
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ModelError, match=message):
        vlm.load_encoders(str(small_pair))


def test_a_model_without_a_pair(small_pair):
    for name in hub.PAIR_FILES:
        (small_pair / name).unlink()
    with pytest.raises(ModelError, match=r"model' has no text encoder; choose a model that has one, such as tiny"):
        vlm.load_encoders(str(small_pair))


@pytest.mark.parametrize("missing", [*([name] for name in hub.PAIR_FILES), list(hub.PAIR_FILES[:2])])
def test_a_part_of_a_pair(small_pair, missing):
    for name in missing:
        (small_pair / name).unlink()
    with pytest.raises(ModelError, match=f"has an incomplete pair of encoders: {', '.join(missing)} missing"):
        vlm.load_encoders(str(small_pair))


def test_matrices_of_a_pair_are_stored_in_eight_bits(tmp_path, small_pair):
    torch.manual_seed(3)
    bundle = load_folder(small_pair, with_pair=True)
    pair = bundle.pair
    assert pair is not None
    with torch.no_grad():
        for parameter in pair.parameters():
            parameter.uniform_(-1, 1)
        pair.text_proj.weight[0] = 0  # a row of zeros has no scale
    save_bundle(tmp_path, bundle)
    found, exact = load_pair(tmp_path)[0].state_dict(), pair.state_dict()
    stored = load_file(tmp_path / "pair.safetensors")
    for name, tensor in exact.items():
        if tensor.ndim == 2 and name not in ("text.words.weight", "text.positions.weight"):
            assert stored[name].dtype == torch.int8, name
            step = tensor.abs().amax(1, keepdim=True) / 127
        else:
            assert stored[name].dtype == torch.float16, name
            step = tensor.abs() / 1024
        assert ((found[name] - tensor).abs() <= 0.501 * step).all(), name


def test_a_scale_that_does_not_fit_its_matrix(small_pair):
    file = small_pair / "pair.safetensors"
    save_file({**load_file(file), "text_proj.weight_scale": torch.ones(1)}, file)
    with pytest.raises(ModelError, match=r"text_proj.weight has scales of shape \(1,\), not one for each row of int8"):
        load_pair(small_pair)
