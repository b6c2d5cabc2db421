"""Where networks run."""

from typing import TypeVar

import torch
from torch import nn

from vlm.errors import ArgumentError

Module = TypeVar("Module", bound=nn.Module)


def move(module: Module, device: str | torch.device) -> Module:
    """Move a module to a device.

    Raises:
        ArgumentError: torch knows no such device, or this machine has none.
    """
    try:
        return module.to(device)
    except (RuntimeError, AssertionError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise ArgumentError(f"device {str(device)!r} cannot be used: {reason}; try cpu, cuda or mps") from None


def has_fast_bfloat16(device: str) -> bool:
    """Whether bfloat16 saves time on a kind of device; CPUs without instructions for it take longer than in float32."""
    if device != "cpu":
        return True
    capabilities = getattr(torch.cpu, "get_capabilities", dict)()  # torch 2.10 and later
    return not capabilities or any(has for name, has in capabilities.items() if "bf16" in name)
