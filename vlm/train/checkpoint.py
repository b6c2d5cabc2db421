"""State of a training run in one safetensors file: tensors, and the counters as JSON in its header."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from vlm.errors import DataError
from vlm.files.atomic import replacing


class Average:
    """Exponential moving average of a module's floating tensors, batch norm statistics included."""

    def __init__(self, module: nn.Module, decay: float):
        self.decay = decay
        self.tensors = {k: v.detach().clone().float() for k, v in module.state_dict().items() if v.is_floating_point()}

    @torch.no_grad()
    def update(self, module: nn.Module, step: int) -> None:
        """Move towards the module; the first steps (1-based `step`) count more, so that the start is forgotten."""
        decay = min(self.decay, (1 + step) / (10 + step))
        state = module.state_dict()
        for name, tensor in self.tensors.items():
            tensor.lerp_(state[name].float(), 1 - decay)

    def copy_to(self, module: nn.Module) -> None:
        """Put the averages into the module."""
        module.load_state_dict({**module.state_dict(), **self.tensors})


def save_checkpoint(
    path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, counters: dict[str, Any]
) -> None:
    """Write everything that the next step depends on; the file appears whole or not at all.

    Raises:
        DataError: it cannot be written, as where the disk is full.
    """
    tensors = {f"model.{k}": v for k, v in module.state_dict().items()}
    tensors |= {f"average.{k}": v for k, v in average.tensors.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in state.items()}
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["random.cuda"] = torch.cuda.get_rng_state()
    try:
        with replacing(path) as partial:
            save_file(
                {k: v.detach().cpu().contiguous().clone() for k, v in tensors.items()},
                partial,
                {"counters": json.dumps(counters)},
            )
    except (SafetensorError, OSError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DataError(
            f"{str(path)!r} cannot be written: {reason}; free some space and run the same command, which goes on from "
            "the checkpoint before"
        ) from None


def read_counters(path: Path) -> dict[str, Any]:
    """The counters of a checkpoint.

    Raises:
        DataError: the file is not a checkpoint.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return json.loads(file.metadata()["counters"])
    except Exception as error:
        raise DataError(f"{str(path)!r} is not a checkpoint of a training ({error}); delete it to start anew") from None


def load_checkpoint(path: Path, module: nn.Module, optimizer: torch.optim.Optimizer, average: Average) -> None:
    """Put a checkpoint's tensors back; module, optimizer and random generators go on as if never stopped."""
    parts: dict[str, dict[str, Tensor]] = {"model": {}, "average": {}, "optimizer": {}, "random": {}}
    with safe_open(path, framework="pt") as file:
        for name in file.keys():  # noqa: SIM118 - not a dictionary
            part, _, rest = name.partition(".")
            parts[part][rest] = file.get_tensor(name)
    module.load_state_dict(parts["model"])
    device = next(module.parameters()).device
    average.tensors = {k: parts["average"][k].to(device) for k in average.tensors}
    state: dict[int, dict[str, Tensor]] = {}
    for name, tensor in parts["optimizer"].items():
        index, _, key = name.partition(".")
        state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    torch.set_rng_state(parts["random"]["cpu"])
    if "cuda" in parts["random"] and torch.cuda.is_available():
        torch.cuda.set_rng_state(parts["random"]["cuda"])
