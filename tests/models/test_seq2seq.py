"""The backbone's arithmetic against numbers made by the original OFA code."""

from pathlib import Path

import numpy as np
import pytest
import torch

from vlm.models.attention import attend, grid_sinusoids, image_buckets, image_position_ids, sinusoids, text_buckets
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.models.vision_language import VisionLanguageModel

VARIANTS = {
    "interp_pos": {"interpolate_from": 2},
    "entangled": {"decoder_entangle": True},
    "entangled_code": {"decoder_entangle": True},
    "resids": {"scale_resids": True},
    "post_norm": {"pre_norm": False},
    "enc_entangled": {"encoder_entangle": True},
}
PLAIN = ["caption3", "text_only", "code", "code_mixed"]
ONLY_IN_REFERENCE = ["nonsquare", "odd_size", "text_long", "entangled_code"]


@pytest.fixture(scope="session")
def inputs(arrays):
    """`inputs(case)`: the arrays of one case."""
    whole = arrays("nano/cases")
    return lambda case: {k.removeprefix(f"{case}."): v for k, v in whole.items() if k.startswith(f"{case}.")}


def forward_cases(golden: Path) -> dict[str, str]:
    names = {name: name for name in [*PLAIN, *VARIANTS, *ONLY_IN_REFERENCE]}
    whole = (golden / "nano" / "cases.npz").is_file()  # our golden has another format, and fewer cases
    return names if whole else {name: name for name in names if name not in ONLY_IN_REFERENCE}


@pytest.mark.cases(find=forward_cases)
@torch.inference_mode()
def test_forward_equals_the_original(nano, inputs, case):
    data = inputs(case)
    parameters = {k.removeprefix("param."): v for k, v in data.items() if k.startswith("param.")}
    model = nano(parameters, **VARIANTS.get(case, {}))
    backbone, tower = model.backbone, model.tower
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
    close(some(backbone.logits(features), data["out.logits"]), "out.logits")


def some(logits: torch.Tensor, recorded: torch.Tensor) -> torch.Tensor:
    """The logits that were recorded: all, or one of nine."""
    return logits[..., :: logits.shape[-1] // recorded.shape[-1]]


@pytest.mark.parametrize("case, source", [("incremental_text", "caption3"), ("incremental_code", "code")])
@torch.inference_mode()
def test_cached_steps_equal_the_original(nano, inputs, case, source):
    model = nano()
    backbone, tower = model.backbone, model.tower
    data = inputs(source) | inputs(case)
    patches = tower(data["in.patch_images"]) if "in.patch_images" in data else None
    encoded = backbone.encode(data["in.src_tokens"], patches, data.get("in.patch_masks"))
    previous = data["in.prev_output_tokens"]
    code_rows = data.get("in.code_masks")
    cache = backbone.start(encoded, 1, previous.shape[1], code_rows)
    steps = [backbone.logits(backbone.step(previous[:, i : i + 1], cache, code_rows)) for i in range(previous.shape[1])]
    expected = data["out.step_logits"]
    logits = some(torch.cat(steps, 1).unflatten(0, (len(previous), -1)).flatten(0, 1), expected)
    torch.testing.assert_close(logits, expected, atol=1e-4, rtol=0)


def test_relative_position_tables_equal_the_original(inputs):
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


def small_model() -> VisionLanguageModel:
    """A model of a few thousand parameters whose values are a formula of their order, the same on every machine."""
    config = Seq2SeqConfig(
        vocab_size=40,
        dim=16,
        ffn_dim=24,
        encoder_layers=2,
        decoder_layers=2,
        patch_dim=1024,
        max_source_positions=12,
        max_target_positions=20,
        token_bucket_size=4,
        image_bucket_size=4,
        code_grid=4,
    )
    model = VisionLanguageModel(TowerConfig("ofa_resnet", (1, 1, 1)), config).eval()
    for number, parameter in enumerate(model.backbone.parameters()):
        values = torch.sin(torch.arange(parameter.numel(), dtype=torch.float64) * 0.731 + number)
        parameter.data = (values * 0.5 + (0.5 if parameter.ndim == 1 else 0)).view_as(parameter).float()
    return model


@torch.inference_mode()
def small_outputs() -> dict[str, torch.Tensor]:
    """Features of text and code rows over images, padding and a row without an image."""
    backbone = small_model().backbone
    words = torch.tensor([[0, 7, 12, 2], [0, 30, 2, 1], [0, 9, 2, 1]])
    patches = torch.cos(torch.arange(3 * 3 * 4 * 1024) * 0.11).view(3, 3, 4, 1024)
    encoded = backbone.encode(words, patches, torch.tensor([True, True, False]))
    previous = torch.tensor([[0, 5, 6, 7, 8, 9], [0, 11, 12, 1, 1, 1], [0, 33, 34, 35, 36, 37]])
    text = backbone.decode(previous, encoded)
    mixed = backbone.decode(previous, encoded, torch.tensor([False, False, True]))
    return {"states": encoded.states, "text": text, "mixed": mixed, "logits": backbone.logits(mixed)}


def test_outputs_are_those_recorded_when_the_original_was_matched():
    """`small_golden.npz` was written by this code, when it gave the numbers of the original."""
    recorded = np.load(Path(__file__).parent / "small_golden.npz")
    found = small_outputs()
    assert found.keys() == set(recorded)
    for name, value in found.items():
        torch.testing.assert_close(value, torch.from_numpy(recorded[name]), atol=1e-4, rtol=1e-4)
        assert value.std() > 0.1  # numbers that a change would move


@pytest.mark.parametrize("shape", [None, (1, 1, 1, 7), (2, 1, 1, 7), (1, 3, 5, 7), (2, 3, 5, 7), (2, 3, 1, 7)])
def test_attention_is_the_same_with_and_without_gradients(shape):
    """Without them a fused kernel computes it."""
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 3, 5, 8, generator=generator, requires_grad=True)
    k, v = (torch.randn(2, 3, 7, 8, generator=generator) for _ in range(2))
    bias = None
    if shape:
        bias = torch.randn(shape, generator=generator)
        bias[..., -2:] = -torch.inf
    single = attend(q, k, v, bias)
    single.sum().backward()
    assert q.grad is not None and bool(q.grad.abs().sum() > 0)
    with torch.inference_mode():
        torch.testing.assert_close(attend(q, k, v, bias), single.detach(), atol=1e-6, rtol=1e-5)


def test_several_prompts_of_a_photo_are_read_as_if_each_had_its_own_copy():
    """The tower and the projection of patches work once for each photo. In float64, so that sums hardly round."""
    model = small_model().double()
    words = torch.tensor([[0, 7, 12, 2], [0, 30, 2, 1], [0, 9, 2, 1], [0, 11, 2, 1]])
    previous = torch.tensor([[0, 5, 6], [0, 11, 1], [0, 33, 34], [0, 8, 1]])
    images = torch.cos(torch.arange(2 * 3 * 64 * 64) * 0.11).view(2, 3, 64, 64).double()
    found = model(images, words, previous)
    expected = model(images.repeat_interleave(2, 0), words, previous)
    torch.testing.assert_close(found, expected, atol=1e-10, rtol=1e-10)
    found.sum().backward()
    shared = {
        name: parameter.grad.clone() for name, parameter in model.named_parameters() if parameter.grad is not None
    }
    model.zero_grad()
    expected.sum().backward()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            torch.testing.assert_close(shared[name], parameter.grad, atol=1e-6, rtol=1e-8)


def test_positions_follow_the_default_device_whatever_others_have_patched(monkeypatch):
    # transformers replaces linspace by one for the CPU while it loads a model, and torch may remember that one instead
    real = torch.linspace
    monkeypatch.setattr(torch, "linspace", lambda *args, device="cpu", **named: real(*args, device=device, **named))
    with torch.device("meta"):
        assert grid_sinusoids(4, 8).device.type == "meta"


def test_sinusoids_by_hand():
    """Wavelengths of 16 and 4 positions: position 2 has gone an eighth of the first circle, and half of the second."""
    half = 0.5**0.5
    expected = [[0, 0, 1, 1], [half, 0, half, -1], [1, 0, 0, 1]]
    torch.testing.assert_close(sinusoids(torch.tensor([0.0, 2, 4]), 4, 16), torch.tensor(expected), atol=1e-6, rtol=0)


@pytest.mark.parametrize("dim", [8, 9, 10, 11])
def test_a_grid_tells_rows_and_columns(dim):
    table = grid_sinusoids(6, dim)
    assert table.shape == (37, dim) and not table[0].any()
    grid, part = table[image_position_ids(6, 6, 6)].unflatten(0, (6, 6)), (dim + 1) // 2
    assert torch.equal(grid[2, :, :part], grid[2, :1, :part].expand(6, -1))  # all of a row
    assert torch.equal(grid[:, 3, part:], grid[:1, 3, part:].expand(6, -1))  # all of a column
    assert len(grid.flatten(0, 1).round(decimals=4).unique(dim=0)) == 36
