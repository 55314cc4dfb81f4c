"""Axis taps, against F.pad and a transposed convolution of ones: neither knows of patterns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from conv2affine.operators.extension import _C

MODES = [("zeros", False), ("circular", False), ("reflect", False), ("replicate", False), ("zeros", True)]


def taps_of(axis, mode, by_columns=False):
    """The (i, k) that the compiled part gives for each output coordinate of an axis, in its order."""
    start, inputs, kernels = _C.axis_taps(*axis, *mode, by_columns)
    return [
        list(zip(inputs[a:b].tolist(), kernels[a:b].tolist(), strict=True))
        for a, b in zip(start[:-1], start[1:], strict=True)
    ]


def read_by_convolution(input, output, kernel, stride, padding, dilation, padding_mode):
    """The same by padding the coordinates themselves and reading them with a stride."""
    coordinates = torch.arange(1, input + 1, dtype=torch.float64).view(1, 1, -1)  # 0 means no input
    right = max(0, (output - 1) * stride + (kernel - 1) * dilation + 1 - input - padding)
    mode = "constant" if padding_mode == "zeros" else padding_mode
    padded = F.pad(coordinates, (padding, right), mode=mode).flatten()
    reads = []
    for o in range(output):
        found = [(int(padded[o * stride + k * dilation]) - 1, k) for k in range(kernel)]
        reads.append(sorted((i, k) for i, k in found if i >= 0))
    return reads


def read_by_transposition(input, output, kernel, stride, padding, dilation):
    """The same by sending each input coordinate where the definition sends it."""
    reads = [[] for _ in range(output)]
    for i in range(input):
        for k in range(kernel):
            o = i * stride - padding + k * dilation
            if 0 <= o < output:
                reads[o].append((i, k))
    return [sorted(read) for read in reads]


@st.composite
def axes(draw):
    mode = padding_mode, transposed = draw(st.sampled_from(MODES))
    input, kernel = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    stride, dilation = draw(st.integers(1, 6)), draw(st.integers(1, 6))
    limit = {"circular": input, "reflect": input - 1}.get(padding_mode, 60)
    padding = draw(st.integers(0, limit))
    if transposed:
        largest = (input - 1) * stride + (kernel - 1) * dilation + 1 - padding + stride
    else:
        largest = (input + padding + limit - (kernel - 1) * dilation - 1) // stride + 1
    if largest < 1:
        kernel, padding, largest = 1, 0, 1
    return (input, draw(st.integers(1, largest)), kernel, stride, padding, dilation), mode


@given(axes())
@settings(max_examples=500)
def test_taps_are_what_the_definition_reads(axis_and_mode):
    axis, mode = axis_and_mode
    padding_mode, transposed = mode
    assert taps_of(axis, mode) == (
        read_by_transposition(*axis) if transposed else read_by_convolution(*axis, padding_mode)
    )


@given(axes())
@settings(max_examples=500)
def test_taps_by_columns_are_the_same_from_the_other_side(axis_and_mode):
    axis, mode = axis_and_mode
    read_by = [[] for _ in range(axis[0])]
    for o, reads in enumerate(taps_of(axis, mode)):
        for i, k in reads:
            read_by[i].append((o, k))
    assert taps_of(axis, mode, by_columns=True) == read_by


def entries(axis, mode, by_columns=False):
    """The number that the compiled part gives for a 1-D convolution of one channel."""
    input, output, kernel, *rest = axis
    return _C.nnz((1, 1, 1, kernel), (input, output, *rest), *mode, 0, input if by_columns else output, by_columns)


@given(axes(), st.data())
@settings(max_examples=500)
def test_entries_counts_distinct_pairs(axis_and_mode, data):
    axis, mode = axis_and_mode
    pairs = {(o, i) for o, reads in enumerate(taps_of(axis, mode)) for i, _ in reads}
    assert entries(axis, mode) == len(pairs)
    assert entries(axis, mode, by_columns=True) == len(pairs)
    input, output, kernel, *rest = axis
    start, stop = sorted(data.draw(st.tuples(*[st.integers(0, output)] * 2)))
    of_rows = _C.nnz((1, 1, 1, kernel), (input, output, *rest), *mode, start, stop, False)
    assert of_rows == sum(start <= o < stop for o, _ in pairs)


def test_taps_are_numpy_arrays():
    start, inputs, kernels = _C.axis_taps(5, 5, 3, 1, 1, 1, "zeros", False)
    assert all(array.dtype == np.int64 for array in (start, inputs, kernels))
    np.testing.assert_array_equal(start, [0, 2, 5, 8, 11, 13])
    np.testing.assert_array_equal(inputs, [0, 1, 0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4])
    np.testing.assert_array_equal(kernels, [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize("padding_mode", ["zeros", "circular", "reflect", "replicate"])
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_long_axis_takes_no_memory(padding_mode, by_columns):
    length = 10**9
    # The pairs at the two ends; where the padding is folded, two taps of reflect and replicate read the same input.
    expected = 3 * length - {"zeros": 2, "circular": 0, "reflect": 2, "replicate": 2}[padding_mode]
    assert entries((length, length, 3, 1, 1, 1), (padding_mode, False), by_columns) == expected


@pytest.mark.parametrize(
    ("mode", "expected"),
    [
        (("zeros", False), 7 + 6 + 5 + 4 + 3),
        (("replicate", False), 7 + 6 + 5 + 4 + 3),
        (("zeros", True), 1 + 2 + 3 + 4 + 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("by_columns", [False, True])
def test_a_long_kernel_takes_no_memory(mode, expected, by_columns):
    """Of 2^44 taps, of which no list could be made, outputs read the inputs from their own position on, or up to it."""
    assert entries((7, 5, 2**44, 1, 0, 1), mode, by_columns) == expected


@pytest.mark.parametrize("by_columns", [False, True])
@pytest.mark.parametrize(("padding_mode", "outside"), [("zeros", 0), ("replicate", 2 * 10**12 - 4)])
def test_wide_padding_takes_no_memory_or_time(padding_mode, outside, by_columns):
    """Beyond the reach of the kernel, all outputs of a border read the same."""
    assert entries((10, 8 + 2 * 10**12, 3, 1, 10**12, 1), (padding_mode, False), by_columns) == 30 + outside


def matrix_values(axis, mode):
    input, output, kernel, *rest = axis
    weight = torch.ones(()).expand(1, 1, 1, kernel)
    return _C.values(weight, [input, output, *rest], *mode, 0, 1, False)


@torch.inference_mode()
def kernel_values(axis, mode):
    """The same, without autograd in Python."""
    input, output, kernel, *rest = axis
    weight = torch.ones(()).expand(1, 1, 1, kernel)
    return torch.ops.conv2affine.values(weight, [input, output, *rest], *mode, 0, 1, False)


@pytest.mark.parametrize("border", [2**40, 2**60])
@pytest.mark.parametrize(
    "call",
    [entries, matrix_values, kernel_values, lambda axis, mode: _C.axis_taps(*axis, *mode)],
    ids=["entries", "values", "kernel", "axis_taps"],
)
def test_tables_beyond_all_memory_are_refused(border, call):
    """Each output of the border reads something else."""
    with pytest.raises(MemoryError, match="no memory for the tables of this convolution"):
        call((1, border, border, 1, border - 1, 1), ("zeros", False))


@pytest.mark.parametrize(
    ("axis", "mode", "message"),
    [
        ((0, 5, 3, 1, 1, 1), ("zeros", False), r"input size \(0\)"),
        ((5, 0, 3, 1, 1, 1), ("zeros", False), r"output size \(0\)"),
        ((5, 5, 0, 1, 1, 1), ("zeros", False), r"kernel size \(0\)"),
        ((5, 5, 3, 0, 1, 1), ("zeros", False), r"stride \(0\)"),
        ((5, 5, 3, 1, -1, 1), ("zeros", False), r"padding \(-1\) must be >= 0"),
        ((5, 5, 3, 1, 1, 0), ("zeros", False), r"dilation \(0\)"),
        ((5, 5, 3, 1, 1, 1), ("mirror", False), r"padding_mode \('mirror'\) must be one of"),
        ((5, 5, 3, 1, 1, 1), ("circular", True), r"padding_mode \('circular'\) must be 'zeros' in a transposed"),
        ((5, 6, 3, 1, 6, 1), ("circular", False), r"padding \(6 on the left, 0 on the right\) must be at most 5"),
        ((5, 9, 3, 1, 0, 1), ("reflect", False), r"padding \(0 on the left, 6 on the right\) must be at most 4"),
        ((5, 2**40, 3, 2**40, 1, 1), ("zeros", False), "do not fit into a signed 64-bit integer"),
    ],
)
def test_bad_axis_is_refused(axis, mode, message):
    with pytest.raises(ValueError, match=message):
        _C.axis_taps(*axis, *mode)
