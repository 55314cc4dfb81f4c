"""The reference itself, against PyTorch and against a matrix written by hand."""

import pytest
import torch
from torch import nn

from conv2affine import reference
from tests.cases import CASES


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.id)
def test_equals_pytorch(case):
    conv = case.conv(torch.float64).requires_grad_(False)
    x = torch.randn(conv.in_channels, *case.input_size, dtype=torch.float64)
    fc = reference.to_linear(conv, case.input_size)
    torch.testing.assert_close(fc(x.flatten()), conv(x).flatten(), rtol=1e-12, atol=1e-12)
    assert reference.output_size(conv, case.input_size) == conv(x).shape[1:]


def test_matrix_written_by_hand():
    conv = nn.Conv2d(1, 1, 2, stride=(1, 2), padding=(0, 1)).requires_grad_(False)
    conv.weight.copy_(torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]]]))
    expected = [
        [2, 0, 0, 4, 0, 0, 0, 0, 0],
        [0, 1, 2, 0, 3, 4, 0, 0, 0],
        [0, 0, 0, 2, 0, 0, 4, 0, 0],
        [0, 0, 0, 0, 1, 2, 0, 3, 4],
    ]
    assert reference.to_matrix(conv, 3).tolist() == expected


def test_bias_is_repeated_for_each_position():
    conv = nn.Conv1d(1, 2, 2).requires_grad_(False)
    conv.bias.copy_(torch.tensor([5.0, 7.0]))
    assert reference.to_bias(conv, 3).tolist() == [5, 5, 7, 7]


@pytest.mark.parametrize("shape", [(1,), (7,), (2, 3), (3, 1, 4)])
def test_enc_and_dec_are_inverse(shape):
    places = [reference.enc_tuple(reference.dec_tuple(x, shape), shape) for x in range(torch.zeros(shape).numel())]
    assert places == list(range(len(places)))


@pytest.mark.parametrize(
    ("function", "arguments", "message"),
    [
        (reference.enc_tuple, ((1, 4), (3, 4)), r"coordinate 4 of tup \(1, 4\) must lie in \[0, 4\)"),
        (reference.enc_tuple, ((-1, 0), (3, 4)), r"coordinate -1"),
        (reference.enc_tuple, ((1,), (3, 4)), "one coordinate per axis"),
        (reference.dec_tuple, (12, (3, 4)), r"x \(12\) must lie in \[0, 12\)"),
        (reference.dec_tuple, (-1, (3, 4)), r"x \(-1\)"),
        (reference.output_size, (nn.Conv1d(1, 1, 3), 2), "must leave an output, got size 0"),
    ],
)
def test_what_is_out_of_bounds_is_refused(function, arguments, message):
    with pytest.raises(ValueError, match=message):
        function(*arguments)


def test_range2d_is_in_c_order():
    assert list(reference.range2d(2, 3)) == [(0, 0), (0, 1), (0, 2), (1, 0), (1, 1), (1, 2)]
