"""Digests of files and of weights."""

import copy

import pytest
import torch
from torch import nn

from vlm.files.digest import files_sha256, weights_sha256


def test_one_file_as_sha256sum_prints_it(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")
    # the example of FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert files_sha256([tmp_path / "abc"]) == expected
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "bc").write_bytes(b"bc")
    assert files_sha256([tmp_path / "a", tmp_path / "bc"]) == expected
    assert files_sha256([tmp_path / "bc", tmp_path / "a"]) != expected


@pytest.fixture
def module() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3))


def test_equal_weights_have_an_equal_digest(module):
    digest = weights_sha256(module)
    assert len(digest) == 64 and weights_sha256(copy.deepcopy(module)) == digest
    other = copy.deepcopy(module)
    other[0].weight.data = other[0].weight.data.T.contiguous().T  # another layout of the same values
    assert not other[0].weight.is_contiguous() and weights_sha256(other) == digest


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m[0].weight.data[0, 0].add_(1e-3),
        lambda m: m[1].running_mean.add_(1),
        lambda m: m.half(),
        lambda m: setattr(m[0].weight, "data", m[0].weight.data.view(2, 3)),
        lambda m: m.append(nn.Linear(1, 1)),
        lambda m: m.register_module("more", m[0]),
    ],
)
def test_other_values_types_shapes_and_names_have_another(module, change):
    digest = weights_sha256(module)
    change(module)
    assert weights_sha256(module) != digest
