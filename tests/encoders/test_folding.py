"""Batch norms folded into convolutions: the same vectors without them."""

from pathlib import Path

import pytest
import timm
import torch
from timm.layers.norm_act import BatchNormAct2d
from torch import nn

from vlm.encoders.timm import TimmEncoders
from vlm.errors import ModelError
from vlm.image import ImageTransform

SAMPLES = Path(__file__).parents[2] / "datasets" / "sample"
PHOTOS = [SAMPLES / "cat.jpg", SAMPLES / "coffee.jpg", SAMPLES / "rocket.jpg"]


class Other(nn.Module):
    """Batch norms that may be folded, `a` and `d`, and those that may not: `b` reads none, `c` works twice."""

    def __init__(self):
        super().__init__()
        self.a, self.conv_a = nn.BatchNorm2d(4), nn.Conv2d(3, 4, 3, bias=False)
        self.b, self.c = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.conv_c = nn.Conv2d(4, 4, 1)
        self.d, self.conv_d = BatchNormAct2d(4, act_layer=nn.Hardswish), nn.Conv2d(4, 4, 3, groups=4, bias=False)
        self.num_features = 4

    def forward(self, x):
        x = self.b(self.a(self.conv_a(x)).relu())
        x = self.c(self.conv_c(self.c(self.conv_c(x))))
        return self.d(self.conv_d(x)).mean((2, 3))


def with_statistics(model: nn.Module) -> nn.Module:
    """Batch norms as after a training: random statistics and factors."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low in ((module.running_mean, -1.0), (module.running_var, 0.5), (module.weight, 0.5)):
                assert tensor is not None
                nn.init.uniform_(tensor, low, 1.5)
    return model.eval()


@torch.no_grad()
@pytest.mark.parametrize("make, left", [
    (Other, ["model.b", "model.c"]),  # by hand
    (lambda: timm.create_model("test_efficientnet", num_classes=0), []),
    (lambda: timm.create_model("test_resnet", num_classes=0), []),
    (lambda: timm.create_model("test_vit", num_classes=0), []),
])  # fmt: skip
def test_for_inference_keeps_the_vectors_without_batch_norms(make, left):
    encoders = TimmEncoders("other", with_statistics(make()), ImageTransform(96))
    before, patches, digest = encoders.encode_image(PHOTOS), None, encoders.weights_sha256()
    if make is not Other:
        patches = encoders.patch_embeddings(PHOTOS)
    assert encoders.for_inference() is encoders
    found = encoders.encode_image(PHOTOS)
    torch.testing.assert_close(found, before, atol=1e-5, rtol=0)
    if patches is not None:
        torch.testing.assert_close(encoders.patch_embeddings(PHOTOS), patches, atol=1e-4, rtol=1e-4)
    assert [name for name, module in encoders.named_modules() if isinstance(module, nn.BatchNorm2d)] == left
    assert encoders.weights_sha256() == digest  # an index goes on knowing its model
    torch.testing.assert_close(encoders.for_inference().encode_image(PHOTOS), found)


def test_for_inference_refuses_what_changes_the_vectors():
    class Random(Other):
        def forward(self, x):
            return super().forward(x) + torch.rand(1)

    with pytest.raises(ModelError, match=r"'random' gives other vectors .* folded; load it again"):
        TimmEncoders("random", with_statistics(Random()), ImageTransform(96)).for_inference()
