"""What all tests share: seeded random numbers, and the comparison of tensors bit by bit."""

import pytest
import torch


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def assert_same_bits(actual, expected):
    """Equal bit by bit: for torch.equal, -0.0 equals 0.0, and NaN equals nothing."""
    assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
    assert torch.equal(actual.contiguous().view(torch.uint8), expected.contiguous().view(torch.uint8))
