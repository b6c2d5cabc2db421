"""The optimizer of a phase, and when training has diverged."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from vlm.errors import DataError
from vlm.train.config import Phase

MAX_OVERFLOWS = 20  # steps in a row that the scaler of float16 may skip, each of which halves its factor


def adamw(phase: Phase, learners: Sequence[tuple[nn.Module, float]], device: torch.device) -> torch.optim.AdamW:
    """AdamW for what a phase trains; norms, biases and scales are not decayed.

    Args:
        phase: its decay of weights and of squared gradients.
        learners: modules with their peak learning rates, which each group keeps as `peak`.
        device: of the modules.
    """
    groups = []
    for module, lr in learners:
        trained = [p for p in module.parameters() if p.requires_grad]
        for decay, part in (
            (phase.weight_decay, [p for p in trained if p.ndim > 1]),
            (0.0, [p for p in trained if p.ndim < 2]),
        ):
            groups.append({"params": part, "lr": lr, "peak": lr, "weight_decay": decay})
    fused = device.type in ("cpu", "cuda")  # a quarter of the time on a CPU
    return torch.optim.AdamW([g for g in groups if g["params"]], betas=(0.9, phase.beta2), fused=fused)


class Divergence:
    """Stops a run where training diverges, before a step spoils the weights; the last checkpoint stays.

    Args:
        scaled: gradients are scaled for float16: some may overflow, and the scaler skips such steps by itself, up to
            `MAX_OVERFLOWS` in a row.
    """

    def __init__(self, scaled: bool):
        self.allowed = MAX_OVERFLOWS if scaled else 0
        self.overflows = 0  # steps in a row whose gradient is not finite

    def check(self, step: int, loss: Tensor, norm: float, phase: Phase, index: int) -> None:
        """Look at one step.

        Args:
            step: number of the step, from 0.
            loss: a scalar.
            norm: of the gradient. A loss that is not finite has such a gradient.
            phase: the phase.
            index: its number in the configuration.

        Raises:
            DataError: the loss or the gradient is not finite.
        """
        if math.isfinite(norm):
            self.overflows = 0
            return
        self.overflows += 1
        name, value = ("gradient norm", norm) if loss.isfinite().all() else ("loss", loss.item())
        if self.overflows > self.allowed or name == "loss":
            raise DataError(
                f"phase {phase.name!r} diverged at step {step + 1}: the {name} is {value}; lower --phases.{index}.lr "
                f"(now {phase.lr:g}), and go on from the last checkpoint, or start anew with another --out"
            )
