"""Matrices as int8 with a scale a row."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vlm.files.int8 import from_int8, to_int8


def test_two_rows_by_hand():
    matrix, scale = to_int8(torch.tensor([[127.0, -63.4, 0.6], [0.0, 2.54, -1.2]]))
    assert matrix.tolist() == [[127, -63, 1], [0, 127, -60]]
    torch.testing.assert_close(scale, torch.tensor([[1.0], [0.02]]))
    assert matrix.dtype == torch.int8 and scale.dtype == torch.float32


def test_a_row_of_zeros_stays_one():
    matrix = torch.zeros(2, 3)
    stored, scale = to_int8(matrix)
    assert (scale > 0).all()  # what is divided by it is a number on every processor
    assert torch.equal(from_int8(stored, scale, torch.float32), matrix)


@given(st.lists(st.lists(st.floats(-1e3, 1e3, width=32), min_size=4, max_size=4), min_size=1, max_size=5))
def test_no_value_is_off_by_more_than_half_a_step(rows):
    matrix = torch.tensor(rows)
    stored, scale = to_int8(matrix)
    error = (from_int8(stored, scale, torch.float32) - matrix).abs()
    assert (error <= scale * 0.5001).all() and stored.abs().max() <= 127


@pytest.mark.parametrize(
    "matrix, scale",
    [
        (torch.zeros(2, 3), torch.ones(2, 1)),
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(2)),
        (torch.zeros(2, 3, dtype=torch.int8), torch.ones(3, 1)),
    ],
)
def test_scales_that_do_not_fit(matrix, scale):
    with pytest.raises(ValueError, match=r"has scales of shape \(.*\), not one for each row of int8"):
        from_int8(matrix, scale, torch.float32)
