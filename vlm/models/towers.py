"""Image towers from timm behind one small interface: a grid of patch features, and that grid pooled.

A tower is cut into a trunk and a head at one of its stages: features after the trunk may be computed once and kept
(`vlm.data.features`) while the head goes on learning.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from vlm.models.config import TowerConfig
from vlm.models.device import has_fast_bfloat16


class Tower(nn.Module):
    """Images to patch features.

    Attributes:
        dim: channels of a patch feature.
        stages: places where `forward` can be cut, 0 (before everything) to `stages` (after everything).
    """

    dim: int
    stages: int

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        """Run the stages `first` to `last - 1` on `[batch, channels, height, width]`."""
        raise AssertionError("each tower has its own")

    def trunk(self, images: Tensor, stage: int) -> Tensor:
        """Features after the first `stage` stages, `[batch, channels, height, width]`."""
        return self.run(images, 0, stage)

    def head(self, features: Tensor, stage: int) -> Tensor:
        """From `trunk`'s features to the patch grid, `[batch, height, width, dim]`."""
        return self.run(features, stage, self.stages).permute(0, 2, 3, 1)

    def forward(self, images: Tensor) -> Tensor:
        """Normalised `float32[batch, 3, height, width]` to the patch grid `[batch, height, width, dim]`."""
        return self.head(images, 0)

    @staticmethod
    def pool(grid: Tensor) -> Tensor:
        """Mean over the patches: `[batch, height, width, dim]` to `[batch, dim]`."""
        return grid.mean(dim=(1, 2))


class StagedTower(Tower):
    """A convolutional network as a chain of modules, one a stage."""

    def __init__(self, stages: Sequence[nn.Module], dim: int):
        super().__init__()
        self.chain = nn.ModuleList(stages)
        self.stages = len(self.chain)
        self.dim = dim

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        for module in self.chain[first:last]:
            x = module(x)
        return x


class TimmTower(Tower):
    """Any timm model whose features are a feature map or tokens of a square grid; it has a single stage."""

    stages = 1

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.dim = int(model.num_features)  # type: ignore[arg-type]

    def run(self, x: Tensor, first: int, last: int) -> Tensor:
        if first == last:
            return x
        height, width = x.shape[-2:]
        x = self.model.forward_features(x)  # type: ignore[operator]
        if x.ndim == 3:  # a transformer's tokens; class and register tokens stand in front
            x = x[:, getattr(self.model, "num_prefix_tokens", 0) :]
            rows = round((x.shape[1] * height / width) ** 0.5)
            return x.transpose(1, 2).unflatten(2, (rows, -1))
        # some timm families keep channels last
        return x.permute(0, 3, 1, 2) if x.shape[-1] == self.dim != x.shape[1] else x


def build_tower(config: TowerConfig) -> Tower:
    """Build a tower with random weights.

    Raises:
        ValueError: timm has no such model.
    """
    if config.name == "ofa_resnet":
        return _ofa_resnet(config.blocks)
    import timm
    from timm.models.efficientnet import EfficientNet

    if not timm.is_model(config.name):  # names like "hf-hub:..." would reach for the network
        raise ValueError(f"timm has no model {config.name!r}; `timm.list_models()` names them")
    model = timm.create_model(config.name, pretrained=False, num_classes=0)
    if isinstance(model, EfficientNet):
        stem = nn.Sequential(model.conv_stem, model.bn1)
        head = nn.Sequential(model.conv_head, model.bn2)
        return StagedTower([stem, *model.blocks, head], int(model.num_features))  # pyright: ignore
    return TimmTower(model)


def _ofa_resnet(blocks: tuple[int, ...]) -> StagedTower:
    """The ResNet of OFA (v1.5, bottlenecks) without its fourth stage: stride 16, 1024 channels."""
    from timm.models.resnet import Bottleneck, ResNet

    model = ResNet(Bottleneck, layers=(*blocks, 1), num_classes=0)  # pyright: ignore[reportArgumentType]
    # timm wants four stages; the last is dropped
    stem = nn.Sequential(model.conv1, model.bn1, model.act1, model.maxpool)
    return StagedTower([stem, *(model.get_submodule(f"layer{i}") for i in (1, 2, 3))], 1024)


def freeze_batch_norm(module: nn.Module) -> None:
    """Keep batch norms on their running statistics while the rest trains; call it after `module.train()`."""
    for child in module.modules():
        if isinstance(child, nn.modules.batchnorm._BatchNorm):
            child.eval()


def float32_depthwise(tower: Tower) -> None:
    """Run wide depthwise convolutions in float32 whatever autocast says.

    On CPUs the gradient of a 5 x 5 depthwise convolution takes four to eight times longer in bfloat16 than in float32,
    which made it a quarter of a training step.
    """
    for module in tower.modules():
        if isinstance(module, nn.Conv2d) and module.groups > 1 and max(module.kernel_size) > 3:
            module.forward = _without_autocast(module.forward)  # pyright: ignore[reportAttributeAccessIssue]


def _without_autocast(forward: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    def run(x: Tensor) -> Tensor:
        with torch.autocast(x.device.type, enabled=False):
            return forward(x.float())

    return run


def trunk_modules(tower: Tower, stage: int) -> list[nn.Module]:
    """The modules before `stage`: frozen where the trunk's features are kept."""
    if isinstance(tower, StagedTower):
        return list(tower.chain[:stage])
    return [tower] if stage else []


def trunk_parameters(tower: Tower, stage: int) -> list[nn.Parameter]:
    """The parameters before `stage`."""
    return [p for module in trunk_modules(tower, stage) for p in module.parameters()]


def trunk_tensors(tower: Tower, stage: int) -> list[Tensor]:
    """The parameters and statistics before `stage`."""
    return [t for module in trunk_modules(tower, stage) for t in module.state_dict().values()]


@torch.inference_mode()
def trunk_features(tower: Tower, images: Tensor, stage: int) -> Tensor:
    """`trunk` for keeping: no gradients, bfloat16 where it is fast, `float16[batch, channels, height, width]`."""
    device = images.device.type
    with torch.autocast(device, dtype=torch.bfloat16, enabled=has_fast_bfloat16(device)):
        return tower.trunk(images.contiguous(memory_format=torch.channels_last), stage).half()
