"""Released sizes with weights made by a formula, against numbers that the original computed from the same weights."""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from vlm.convert.ofa.checkpoint import load_checkpoint
from vlm.convert.ofa.config import BLOCKS, from_fairseq
from vlm.convert.ofa.files import Checkpoint
from vlm.decoding.config import GenerationConfig
from vlm.decoding.search import generate
from vlm.models.config import EOS
from vlm.models.seq2seq import Encoded
from vlm.models.vision_language import VisionLanguageModel

FLAGS = dict.fromkeys(("scale_attn", "scale_fc", "scale_heads", "disable_entangle"), True)
SETTINGS: dict[str, dict[str, Any]] = {
    "tiny": {"embed_dim": 256, "ffn_embed_dim": 1024, "attention_heads": 4, "layers": 4},
    "base": {"embed_dim": 768, "ffn_embed_dim": 3072, "attention_heads": 12, "layers": 6},
}
TOWERS = {"tiny": "resnet50", "base": "resnet101"}


def sizes(golden: Path) -> dict[str, str]:
    return {file.stem: file.stem for file in sorted((golden / "full_recipe").glob("*.json"))}


pytestmark = pytest.mark.cases(find=sizes, slow=["base"])


def spread(name: str, shape: tuple[int, ...]) -> tuple[float, float]:
    """Middle and half the width of the values of a tensor."""
    root = 3**0.5  # so that half the width stands for a standard deviation of one
    if name.endswith("running_var"):
        return 1.0, 0.5
    if name.endswith("running_mean"):
        return 0.0, 0.1
    if name.endswith("bias"):
        return 0.0, 0.05
    if len(shape) == 1:  # scales
        middle = 0.2 if name.endswith("bn3.weight") else 0.25 if name.endswith("layernorm_embedding.weight") else 1.0
        return middle, middle / 5
    if "rel_pos_table" in name:
        return 0.0, 0.5
    if name.endswith("embed_tokens.weight"):
        return 0.0, root * 2 / shape[1] ** 0.5
    if "embed" in name and "images" not in name:  # positions and types
        return 0.0, 0.2
    if len(shape) == 4:
        return 0.0, root * (2 / np.prod(shape[1:])) ** 0.5
    return 0.0, root / shape[1] ** 0.5 * (2.5 if name.endswith(("q_proj.weight", "k_proj.weight")) else 1)


def fill(name: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Uniform values by SplitMix64 (Steele et al. 2014), whose state starts with a hash of the tensor's name."""
    state = np.uint64(int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little"))
    z = np.arange(1, np.prod(shape, dtype=int) + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15) + state
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        z = (z ^ (z >> np.uint64(shift))) * np.uint64(factor)
    z ^= z >> np.uint64(31)
    unit = ((z >> np.uint64(40)).astype(np.int64) - 2**23).astype(np.float32) / np.float32(2**23)  # 24 bits
    middle, half = spread(name, shape)
    return torch.from_numpy((unit * np.float32(half) + np.float32(middle)).reshape(shape))


def image(size: int, index: int) -> torch.Tensor:
    y, x = np.mgrid[:size, :size].astype(np.float64)
    planes = [
        np.sin(0.021 * (c + 1) * x + 0.033 * (c + 2) * y + c + index)
        + 0.5 * np.cos(0.17 * x - 0.11 * (c + 1) * y + 2 * index)
        for c in range(3)
    ]
    return torch.from_numpy(np.stack(planes).astype(np.float32))


@dataclass
class Run:
    """A model with its inputs read, and what the original found."""

    model: VisionLanguageModel
    figures: dict[str, Any]
    arrays: dict[str, torch.Tensor]
    grid: torch.Tensor
    encoded: Encoded
    source: torch.Tensor


@pytest.fixture(scope="session")
def run(golden, case, arrays, ofa_names) -> Run:
    stacks = {f"{stack}_{name}": value for stack in ("encoder", "decoder") for name, value in SETTINGS[case].items()}
    settings = from_fairseq({**FLAGS, **stacks, "resnet_type": TOWERS[case]})
    dim, ffn, heads, layers = SETTINGS[case].values()
    computed = ("_bucket", "_idx", "num_batches_tracked", "version")
    tensors: dict[str, torch.Tensor] = {}
    for name, shape in ofa_names(dim, ffn, layers, layers, heads, BLOCKS[TOWERS[case]]).items():
        if not name.endswith((*computed, "decoder.embed_tokens.weight", "output_projection.weight")):
            tensors[name] = fill(name, shape)
    for name in ("decoder.embed_tokens.weight", "decoder.output_projection.weight"):
        tensors[name] = tensors["encoder.embed_tokens.weight"]
    figures = json.loads((golden / "full_recipe" / f"{case}.json").read_text())
    for name, values in figures["weight_check"]["values"].items():
        torch.testing.assert_close(tensors[name].flatten()[:4], torch.tensor(values), atol=0, rtol=1e-6)
    model = load_checkpoint(Checkpoint(Path(case), tensors, settings))
    images = torch.stack([image(figures["image_size"], i) for i in (0, 1)])
    source = torch.tensor(figures["inputs"]["src_tokens"])
    with torch.inference_mode():
        grid = model.tower(images)
        encoded = model.backbone.encode(source, grid, torch.tensor(figures["inputs"]["patch_masks"]))
    return Run(model, figures, arrays(f"full_recipe/{case}"), grid, encoded, source)


def close(found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-3) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), atol=tolerance, rtol=0)


def close_top(logits: torch.Tensor, values: torch.Tensor, ids: torch.Tensor) -> None:
    """The twenty best are the same, but for neighbours that differ by less than the tolerance."""
    close(logits.gather(-1, ids.long()), values)
    close(logits.topk(20).values, values)


def test_image_features(run):
    features = run.grid.permute(0, 3, 1, 2)
    assert list(features.shape) == run.figures["image_features"]["shape"]
    close(features[:, ::64, ::7, ::7], run.arrays["image_features_sample"], 2e-3)
    assert features.std().item() == pytest.approx(run.figures["image_features"]["stats"]["std"], rel=1e-5)


def test_encoder(run):
    expected = run.figures["encoder_out"]
    assert list(run.encoded.states.shape) == expected["shape"]
    for name, states in (("encoder_out", run.encoded.states), ("position_embeddings", run.encoded.positions)):
        states = states.expand(2, -1, -1)[:, expected["positions"]]
        close(torch.cat([states[..., :8], states[..., -8:]], dim=-1), run.arrays[f"{name}_sample"])


@torch.inference_mode()
def test_logits_of_words(run):
    previous = torch.tensor(run.figures["inputs"]["prev_output_tokens"])
    backbone, positions = run.model.backbone, run.figures["decoder"]["positions"]
    logits = backbone.logits(backbone.decode(previous, run.encoded)[:, positions])
    words = previous[:, positions] != 1  # at padding, the original's numbers mean nothing
    close_top(logits[words], run.arrays["logits_top20_values"][words], run.arrays["logits_top20_ids"][words])
    close(logits.logsumexp(-1)[words], run.arrays["logits_logsumexp"][words])
    for name, part in (("first8", slice(8)), ("codes8", slice(50265, 50273)), ("last8", slice(-8, None))):
        close(logits[words][..., part], run.arrays[f"logits_{name}"][words])


@torch.inference_mode()
def test_logits_of_codes(run):
    codes = [50265 + 37 * k % 8192 for k in range(256)]
    backbone, is_code = run.model.backbone, torch.tensor([True])
    encoded = backbone.encode(run.source[:1])
    features = backbone.decode(torch.tensor([[0, *codes]]), encoded, is_code)
    logits = backbone.logits(features[:, run.figures["code_decoder"]["positions"]])
    close_top(logits, run.arrays["code_logits_top20_values"], run.arrays["code_logits_top20_ids"])
    close(logits.logsumexp(-1), run.arrays["code_logits_logsumexp"])


@pytest.mark.parametrize("name", ["beam5", "beam5_plain", "beam5_box"])
def test_beam_search(run, name):
    options = run.figures[name]["options"]
    config = GenerationConfig(
        beams=options["beam_size"],
        max_tokens=options["max_len_b"],
        min_tokens=options.get("min_len", 1),
        no_repeat_ngram=options.get("no_repeat_ngram_size", 0),
        allowed=(58457, 59457) if "constraint_range" in options else None,
    )
    found = generate(run.model.backbone, run.encoded, config)
    for hypotheses, expected in zip(found, run.figures[name]["hypotheses"], strict=True):
        assert [[*h.ids, EOS] for h in hypotheses] == [e["tokens"] for e in expected]
        for hypothesis, e in zip(hypotheses, expected, strict=True):
            assert hypothesis.score == pytest.approx(e["score"], abs=1e-3)
            assert hypothesis.token_scores == pytest.approx(e["positional_scores"], abs=1e-3)
