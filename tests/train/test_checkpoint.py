"""Averages by hand, and checkpoints that change nothing."""

from pathlib import Path

import pytest
import torch
from torch import nn

from vlm.errors import DataError
from vlm.train.checkpoint import Average, load_checkpoint, read_counters, save_checkpoint


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2))


def optimizer_of(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.AdamW(module.parameters(), lr=0.01)


def train(module: nn.Module, optimizer: torch.optim.Optimizer, average: Average, first: int, last: int) -> None:
    for step in range(first, last):
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        module(x).square().mean().backward()  # dropout draws from the global generator
        optimizer.step()
        optimizer.zero_grad()
        average.update(module, step + 1)


def test_the_average_by_hand():
    module = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        module.weight.fill_(1.0)
    average = Average(module, decay=0.3)
    expected = 1.0
    # (1 + step) / (10 + step) until the decay is reached
    for step, (value, decay) in enumerate([(2.0, 2 / 11), (4.0, 3 / 12), (-1.0, 0.3), (7.0, 0.3)], start=1):
        with torch.no_grad():
            module.weight.fill_(value)
        average.update(module, step)
        expected = decay * expected + (1 - decay) * value
        assert average.tensors["weight"].item() == pytest.approx(expected, rel=1e-6)
    average.copy_to(module)
    assert module.weight.item() == pytest.approx(expected, rel=1e-6)


def test_the_average_holds_statistics_but_no_counters():
    module = network()
    average = Average(module, 0.9)
    assert set(average.tensors) == {name for name in module.state_dict() if not name.endswith("num_batches_tracked")}
    train(module, optimizer_of(module), average, 0, 3)
    assert not torch.equal(average.tensors["1.running_mean"], module.state_dict()["1.running_mean"])
    average.copy_to(module)
    state = module.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in average.tensors.items())
    assert state["1.num_batches_tracked"] == 3  # counters stay the module's


def test_the_average_of_bfloat16_weights_is_float32():
    average = Average(nn.Linear(2, 2).bfloat16(), 0.9)
    assert {tensor.dtype for tensor in average.tensors.values()} == {torch.float32}


def test_a_loaded_checkpoint_goes_on_bit_for_bit(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    module = network()
    optimizer, average = optimizer_of(module), Average(module, 0.9)
    torch.manual_seed(7)
    train(module, optimizer, average, 0, 5)
    save_checkpoint(file, module, optimizer, average, {"step": 5, "config": "ä"})
    train(module, optimizer, average, 5, 9)

    again = network()
    other, mean = optimizer_of(again), Average(again, 0.9)
    assert read_counters(file) == {"step": 5, "config": "ä"}
    load_checkpoint(file, again, other, mean)
    train(again, other, mean, 5, 9)
    for ours, theirs in ((again.state_dict(), module.state_dict()), (mean.tensors, average.tensors)):
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_parameters_without_a_gradient_have_no_state(tmp_path):
    file = tmp_path / "checkpoint.safetensors"
    module = network()
    module[0].weight.requires_grad_(False)
    optimizer, average = optimizer_of(module), Average(module, 0.9)
    train(module, optimizer, average, 0, 2)
    save_checkpoint(file, module, optimizer, average, {})
    other = optimizer_of(module)
    load_checkpoint(file, module, other, average)
    assert other.state_dict()["state"].keys() == optimizer.state_dict()["state"].keys() == {1, 2, 3, 4, 5}


def test_a_checkpoint_appears_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "checkpoint.safetensors"
    module = network()
    optimizer, average = optimizer_of(module), Average(module, 0.9)
    save_checkpoint(file, module, optimizer, average, {"step": 1})
    monkeypatch.setattr("vlm.files.atomic.os.replace", lambda *paths: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):  # killed between writing and renaming
        save_checkpoint(file, module, optimizer, average, {"step": 2})
    assert read_counters(file) == {"step": 1}


@pytest.mark.parametrize("content", [b"", b"x" * 100, None])
def test_a_damaged_checkpoint_is_one_clear_error(tmp_path, content):
    file: Path = tmp_path / "checkpoint.safetensors"
    module = network()
    save_checkpoint(file, module, optimizer_of(module), Average(module, 0.9), {"step": 1})
    file.write_bytes(file.read_bytes()[:-10] if content is None else content)
    with pytest.raises(DataError, match="is not a checkpoint of a training") as caught:
        read_counters(file)
    assert str(caught.value).isprintable()
