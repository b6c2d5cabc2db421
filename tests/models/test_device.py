"""Devices on which networks run."""

import pytest
import torch
from torch import nn

from vlm.errors import ArgumentError
from vlm.models.device import has_fast_bfloat16, move


def test_moved_in_place():
    module = nn.Linear(2, 2)
    assert move(module, "meta") is module and module.weight.device == torch.device("meta")


@pytest.mark.parametrize("device", ["gpu", "cuda:x", "cuda:99", ""])
def test_a_device_that_cannot_be_used_is_one_line(device):
    with pytest.raises(ArgumentError) as caught:
        move(nn.Linear(2, 2), device)
    message = str(caught.value)
    assert message.startswith(f"device {device!r} cannot be used: ") and message.endswith("; try cpu, cuda or mps")
    assert message.isprintable()


@pytest.mark.parametrize(
    "device, capabilities, fast",
    [
        ("cuda", {"avx512_bf16": False}, True),
        ("cpu", {"avx512_bf16": False, "amx_bf16": False}, False),
        ("cpu", {"avx512_bf16": True, "amx_bf16": False}, True),
        ("cpu", {"sve_bf16": True}, True),
        ("cpu", {}, True),
    ],
)
def test_bfloat16_is_for_devices_with_instructions_for_it(monkeypatch, device, capabilities, fast):
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)
    assert has_fast_bfloat16(device) is fast
