"""The backbone's arithmetic against numbers made by the original OFA code."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.convert.ofa import rename
from vlm.models.attention import image_buckets, text_buckets
from vlm.models.seq2seq import Seq2Seq, Seq2SeqConfig
from vlm.models.towers import TowerConfig, build_tower

GOLDEN = Path(__file__).parents[3] / "shared" / "ofa_golden"
needs_golden = pytest.mark.skipif(
    not GOLDEN.is_dir(), reason="the golden numbers of the original are not beside the checkout"
)
NANO = Seq2SeqConfig(
    vocab_size=360,
    dim=32,
    ffn_dim=64,
    heads=4,
    encoder_layers=2,
    decoder_layers=2,
    patch_dim=1024,
    max_source_positions=80,
    max_target_positions=48,
    token_bucket_size=8,
    image_bucket_size=8,
    code_grid=4,
    dropout=0.0,
)
VARIANTS = {
    "interp_pos": {"interpolate_from": 2},
    "entangled": {"decoder_entangle": True},
    "entangled_code": {"decoder_entangle": True},
    "resids": {"scale_resids": True},
    "post_norm": {"pre_norm": False},
    "enc_entangled": {"encoder_entangle": True},
}
PLAIN = ["caption3", "nonsquare", "odd_size", "text_only", "text_long", "code", "code_mixed"]


def nano(case: str = "") -> tuple[Seq2Seq, torch.nn.Module]:
    """The nano model of the golden files, loaded by name mapping with nothing missing and nothing left over."""
    state = dict(np.load(GOLDEN / "nano" / "state.npz"))
    cases = np.load(GOLDEN / "nano" / "cases.npz")
    state |= {k.removeprefix(f"{case}.param."): cases[k] for k in cases if k.startswith(f"{case}.param.")}
    if case == "post_norm":
        state = {k: v for k, v in state.items() if not k.startswith(("encoder.layer_norm.", "decoder.layer_norm."))}
    parts: dict[str, dict[str, torch.Tensor]] = {"backbone": {}, "tower": {}}
    for name, value in state.items():
        if new := rename(name):
            part, _, rest = new.partition(".")
            parts[part][rest] = torch.from_numpy(value)
    backbone = Seq2Seq(replace(NANO, **VARIANTS.get(case, {}))).eval()
    tower = build_tower(TowerConfig("ofa_resnet", (2, 1, 1))).eval()
    backbone.load_state_dict(parts["backbone"], strict=True)
    tower.load_state_dict(parts["tower"], strict=True)
    return backbone, tower


def inputs(case: str) -> dict[str, torch.Tensor]:
    cases = np.load(GOLDEN / "nano" / "cases.npz")
    return {k.removeprefix(f"{case}."): torch.from_numpy(cases[k]) for k in cases if k.startswith(f"{case}.")}


@needs_golden
@pytest.mark.parametrize("case", PLAIN + list(VARIANTS))
@torch.inference_mode()
def test_forward_equals_the_original(case):
    backbone, tower = nano(case)
    data = inputs(case)
    patches = tower(data["in.patch_images"]) if "in.patch_images" in data else None
    encoded = backbone.encode(data["in.src_tokens"], patches, data.get("in.patch_masks"))
    code_rows = data.get("in.code_masks")
    features = backbone.decode(data["in.prev_output_tokens"], encoded, code_rows)

    def close(actual, name):
        torch.testing.assert_close(actual, data[name], atol=1e-4, rtol=0)

    padding = data["out.encoder_padding_mask"]
    assert torch.equal(padding, torch.zeros_like(padding) if encoded.mask is None else ~encoded.mask)
    close(encoded.states, "out.encoder_out")
    close(encoded.positions.expand_as(encoded.states), "out.position_embeddings")
    close(features, "out.decoder_features")
    close(backbone.logits(features), "out.logits")


@needs_golden
@pytest.mark.parametrize("case, source", [("incremental_text", "caption3"), ("incremental_code", "code")])
@torch.inference_mode()
def test_cached_steps_equal_the_original(case, source):
    backbone, tower = nano()
    data = inputs(source) | inputs(case)
    patches = tower(data["in.patch_images"]) if "in.patch_images" in data else None
    encoded = backbone.encode(data["in.src_tokens"], patches, data.get("in.patch_masks"))
    previous = data["in.prev_output_tokens"]
    code_rows = data.get("in.code_masks")
    cache = backbone.start(encoded, 1, previous.shape[1], code_rows)
    steps = [backbone.logits(backbone.step(previous[:, i : i + 1], cache, code_rows)) for i in range(previous.shape[1])]
    expected = data["out.step_logits"]
    torch.testing.assert_close(torch.cat(steps, 1).reshape(expected.shape), expected, atol=1e-4, rtol=0)


@needs_golden
def test_relative_position_tables_equal_the_original():
    tables = inputs("tables")
    for size in (8, 256):
        mine = text_buckets(1024, size)
        for row in (0, 500, 1023):
            if f"token_bucket_{size}_row{row}" in tables:
                assert torch.equal(mine[row], tables[f"token_bucket_{size}_row{row}"])
    assert text_buckets(1024, 256).sum() == tables["token_bucket_256_sum"]
    mine = image_buckets(torch.arange(42 * 42 + 1), 42)
    assert torch.equal(mine[tables["image_bucket_42_sample_rows"]], tables["image_bucket_42_rows"].long())
    assert mine.sum() == tables["image_bucket_42_sum"]
