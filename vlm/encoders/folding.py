"""Batch norms folded into the convolutions before them: the same vectors, sooner."""

from collections import Counter
from collections.abc import Callable
from typing import Any

from timm.layers.norm_act import BatchNormAct2d
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_weights


def fold_batch_norms(model: nn.Module, run: Callable[[], object]) -> None:
    """Fold each batch norm into the convolution whose output it reads, as seen while `run` uses both once."""
    made_by: dict[int, nn.Conv2d] = {}
    outputs: list[Tensor] = []
    pairs: list[tuple[nn.Conv2d, Any]] = []
    calls = Counter[nn.Module]()

    def after_convolution(module: nn.Module, args: tuple, output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        made_by[id(output)] = module
        outputs.append(output)  # while it is kept, no other tensor has its id
        calls[module] += 1

    def before_norm(module: nn.Module, args: tuple) -> None:
        calls[module] += 1
        if id(args[0]) in made_by:
            pairs.append((made_by[id(args[0])], module))

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_convolution))
        elif type(module) in (nn.BatchNorm2d, BatchNormAct2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    run()
    for hook in hooks:
        hook.remove()
    places = {module: name for name, module in model.named_modules()}
    for conv, norm in pairs:
        if calls[conv] > 1 or calls[norm] > 1 or norm.running_mean is None:
            continue
        conv.weight, conv.bias = fuse_conv_bn_weights(
            conv.weight, conv.bias, norm.running_mean, norm.running_var, norm.eps, norm.weight, norm.bias
        )
        rest = nn.Identity()
        if isinstance(norm, BatchNormAct2d):
            rest = nn.Sequential(norm.drop, norm.act)  # pyright: ignore[reportArgumentType]
        model.set_submodule(places[norm], rest)
