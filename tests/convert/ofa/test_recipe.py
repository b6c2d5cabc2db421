"""Released sizes with weights made by a formula, against numbers that the original computed from the same weights."""

import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm.convert.ofa.checkpoint import load_checkpoint
from vlm.convert.ofa.config import from_fairseq
from vlm.convert.ofa.files import Checkpoint
from vlm.decoding.search import GenerationConfig, generate
from vlm.models.config import EOS
from vlm.models.seq2seq import Encoded
from vlm.models.vision_language import VisionLanguageModel

GOLDEN = Path(__file__).parents[4] / "shared" / "ofa_golden"
FLAGS = dict.fromkeys(("scale_attn", "scale_fc", "scale_heads", "disable_entangle"), True)
SETTINGS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 256, "ffn_embed_dim": 1024, "attention_heads": 4, "layers": 4},
    "base": {"embed_dim": 768, "ffn_embed_dim": 3072, "attention_heads": 12, "layers": 6},
}
TOWERS = {"tiny": "resnet50", "base": "resnet101"}


@dataclass
class Case:
    """A model with its inputs read, and what the original found."""

    model: VisionLanguageModel
    figures: dict[str, Any]
    arrays: dict[str, torch.Tensor]
    grid: torch.Tensor
    encoded: Encoded
    source: torch.Tensor


@pytest.fixture(scope="module", params=["tiny", pytest.param("base", marks=pytest.mark.slow)])
def case(request) -> Case:
    if not GOLDEN.is_dir():
        pytest.skip("the golden numbers of the original are not beside the checkout")
    spec = importlib.util.spec_from_file_location("recipe", GOLDEN / "recipe.py")
    assert spec and spec.loader
    recipe = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(recipe)

    size = request.param
    stacks = {f"{stack}_{name}": value for stack in ("encoder", "decoder") for name, value in SETTINGS[size].items()}
    settings = from_fairseq({**FLAGS, **stacks, "resnet_type": TOWERS[size]})
    tensors: dict[str, torch.Tensor] = {}
    for name, shape, _ in recipe.read_list(GOLDEN / "params" / f"{size}_fairseq.txt"):
        same = tensors.get(recipe.TIED.get(name, name))
        value = same if same is not None else recipe.fill(name, shape)
        if value is not None:  # what is computed or counted
            tensors[name] = torch.as_tensor(value)
    figures = json.loads((GOLDEN / "full_recipe" / f"{size}.json").read_text())
    for name, values in figures["weight_check"]["values"].items():
        torch.testing.assert_close(tensors[name].flatten()[:4], torch.tensor(values), atol=0, rtol=1e-6)
    model = load_checkpoint(Checkpoint(Path(size), tensors, settings))
    arrays = {name: torch.from_numpy(value) for name, value in np.load(GOLDEN / "full_recipe" / f"{size}.npz").items()}
    images = torch.from_numpy(np.stack([recipe.image(figures["image_size"], i) for i in (0, 1)]))
    source = torch.tensor(figures["inputs"]["src_tokens"])
    with torch.inference_mode():
        grid = model.tower(images)
        encoded = model.backbone.encode(source, grid, torch.tensor(figures["inputs"]["patch_masks"]))
    return Case(model, figures, arrays, grid, encoded, source)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=0)


def close_top(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor) -> None:
    """The twenty best are the same, but for neighbours that differ by less than the tolerance."""
    close(logits.gather(-1, ids.long()), values)
    close(logits.topk(20).values, values)


def test_image_features(case):
    features = case.grid.permute(0, 3, 1, 2)
    assert list(features.shape) == case.figures["image_features"]["shape"]
    close(features[:, ::64, ::7, ::7], case.arrays["image_features_sample"], 2e-3)
    assert features.std().item() == pytest.approx(case.figures["image_features"]["stats"]["std"], rel=1e-5)


def test_encoder(case):
    expected = case.figures["encoder_out"]
    assert list(case.encoded.states.shape) == expected["shape"]
    for name, states in (("encoder_out", case.encoded.states), ("position_embeddings", case.encoded.positions)):
        states = states.expand(2, -1, -1)[:, expected["positions"]]
        close(torch.cat([states[..., :8], states[..., -8:]], dim=-1), case.arrays[f"{name}_sample"])


@torch.inference_mode()
def test_logits_of_words(case):
    previous = torch.tensor(case.figures["inputs"]["prev_output_tokens"])
    backbone, positions = case.model.backbone, case.figures["decoder"]["positions"]
    logits = backbone.logits(backbone.decode(previous, case.encoded)[:, positions])
    words = previous[:, positions] != 1  # at padding, the original's numbers mean nothing
    close_top(logits[words], case.arrays["logits_top20_values"][words], case.arrays["logits_top20_ids"][words])
    close(logits.logsumexp(-1)[words], case.arrays["logits_logsumexp"][words])
    for name, part in (("first8", slice(8)), ("codes8", slice(50265, 50273)), ("last8", slice(-8, None))):
        close(logits[words][..., part], case.arrays[f"logits_{name}"][words])


@torch.inference_mode()
def test_logits_of_codes(case):
    codes = [50265 + 37 * k % 8192 for k in range(256)]
    backbone, is_code = case.model.backbone, torch.tensor([True])
    encoded = backbone.encode(case.source[:1])
    features = backbone.decode(torch.tensor([[0, *codes]]), encoded, is_code)
    logits = backbone.logits(features[:, case.figures["code_decoder"]["positions"]])
    close_top(logits, case.arrays["code_logits_top20_values"], case.arrays["code_logits_top20_ids"])
    close(logits.logsumexp(-1), case.arrays["code_logits_logsumexp"])


@pytest.mark.parametrize("name", ["beam5", "beam5_plain", "beam5_box"])
def test_beam_search(case, name):
    options = case.figures[name]["options"]
    config = GenerationConfig(
        beams=options["beam_size"],
        max_tokens=options["max_len_b"],
        min_tokens=options.get("min_len", 1),
        no_repeat_ngram=options.get("no_repeat_ngram_size", 0),
        allowed=(58457, 59457) if "constraint_range" in options else None,
    )
    found = generate(case.model.backbone, case.encoded, config)
    for hypotheses, expected in zip(found, case.figures[name]["hypotheses"], strict=True):
        assert [[*h.ids, EOS] for h in hypotheses] == [e["tokens"] for e in expected]
        for hypothesis, e in zip(hypotheses, expected, strict=True):
            assert hypothesis.score == pytest.approx(e["score"], abs=1e-3)
            assert hypothesis.token_scores == pytest.approx(e["positional_scores"], abs=1e-3)
