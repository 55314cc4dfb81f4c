"""The operators themselves: nonsense is refused, fakes and schemas hold, threads agree."""

import pytest
import torch

from conv2affine import conv_matrix

DENSE = torch.ops.conv2affine.dense
# A valid call that each test below spoils in one place: Conv2d(4, 6, (2, 3), padding=1, groups=2) @ 4x5.
VALID = {
    "weight": torch.ones(2, 3, 2, 2, 3),
    "input_size": [4, 5],
    "output_size": [5, 5],
    "stride": [1, 1],
    "padding": [1, 1],
    "dilation": [1, 1],
    "rule": "zeros",
    "row_start": 0,
    "row_stop": 150,
}
GEOMETRY = ("input_size", "output_size", "stride", "padding", "dilation")


def dense(**changes):
    """DENSE of the valid call with some of its arguments changed."""
    arguments = {**VALID, **changes}
    geometry = [number for name in GEOMETRY for number in arguments.pop(name)]
    return DENSE(geometry=geometry, **arguments)


def test_valid_call_is_valid():
    assert dense().shape == (150, 80)


@pytest.mark.parametrize(
    ("argument", "value", "message"),
    [
        ("weight", torch.ones(6, 2, 2), "weight must have the shape"),
        ("weight", torch.ones(6, 2, 2, 1, 1, 2, 3), "weight must have the shape"),
        ("weight", torch.ones(2, 3, 2, 1, 2, 3), "geometry must have 15 values, 3 each for input_size"),
        ("weight", torch.ones(0, 3, 2, 2, 3), "at least one group"),
        ("weight", torch.ones(2, 3, 2, 0, 3), r"kernel size \(0\)"),
        ("input_size", [5], "geometry must have 10 values, 2 each for input_size"),
        ("input_size", [0, 5], r"axis 0: input size \(0\)"),
        ("input_size", [4, -5], r"axis 1: input size \(-5\)"),
        ("input_size", [2**50, 2**50], "number of columns"),
        ("output_size", [5, 5, 1], "geometry must have 10 values"),
        ("output_size", [5, 0], r"output size \(0\)"),
        ("output_size", [2**50, 2**50], "number of rows"),
        ("stride", [0, 1], r"stride \(0\)"),
        ("stride", [2**62, 1], "do not fit into a signed 64-bit integer"),
        ("padding", [-1, 1], r"padding \(-1\)"),
        ("padding", [2**63 - 1, 1], "do not fit into a signed 64-bit integer"),
        ("dilation", [1, -2], r"dilation \(-2\)"),
        ("rule", "constant", r"rule \('constant'\) must be one of"),
        ("row_start", -1, r"rows \[-1, 150\) must be a range within the 150 rows"),
        ("row_start", 151, r"rows \[151, 150\)"),
        ("row_stop", 151, r"rows \[0, 151\)"),
    ],
)
def test_nonsense_is_refused(argument, value, message):
    with pytest.raises(ValueError, match=message):
        dense(**{argument: value})


def test_more_bytes_than_64_bits_count_are_refused():
    spoilt = {"input_size": [2**30, 2**18], "output_size": [28, 25]}
    with pytest.raises(ValueError, match="number of bytes of the dense matrix"):
        dense(**spoilt, row_stop=6 * 700)


@pytest.mark.parametrize("rule", ["zeros", "circular", "reflect", "replicate", "transposed"])
@pytest.mark.parametrize("stride", [1, 7])
@pytest.mark.parametrize("padding", [0, 50])
def test_sizes_that_do_not_belong_together_stay_in_bounds(rule, stride, padding):
    """An output far larger than the input reads nothing or what the rule folds back, never beyond."""
    arguments = {
        "output_size": [40, 3],
        "stride": [stride, stride],
        "padding": [padding, padding],
        "rule": rule,
    }
    matrix = dense(**arguments, row_stop=6 * 120)
    full = 12 if rule in ("circular", "reflect", "replicate") else 0
    assert matrix.shape == (720, 80)
    assert ((matrix.sum(1) <= 12) & (matrix.sum(1) >= full)).all()


def test_unsupported_tensors_are_refused():
    with pytest.raises(NotImplementedError, match="'SparseCPU' backend"):
        dense(weight=VALID["weight"].to_sparse())
    with pytest.raises(NotImplementedError, match="not implemented for 'Bool'"):
        dense(weight=VALID["weight"].bool())


def test_threads_agree_bitwise():
    weight = torch.randn(24, 16, 5, 5)

    def matrix(threads):
        before = torch.get_num_threads()
        torch.set_num_threads(threads)
        try:
            return conv_matrix(weight, 16, padding=3, padding_mode="reflect")
        finally:
            torch.set_num_threads(before)

    single = matrix(1)
    assert torch.equal(single, matrix(2))
    assert torch.equal(single, matrix(7))


def test_more_than_2_to_the_31_elements():
    size = 50_000  # 2.5e9 elements of a byte each, of which few pages are ever touched
    matrix = conv_matrix(torch.tensor([[[1, 2, 3]]], dtype=torch.int8), size, padding=1)
    assert matrix.numel() > 2**31
    corner = conv_matrix(torch.tensor([[[1, 2, 3]]], dtype=torch.int8), 100, padding=1)
    assert torch.equal(matrix[-100:, -100:][1:], corner[1:])
    assert torch.equal(matrix[-100:].count_nonzero(1), torch.tensor([3] * 99 + [2]))
