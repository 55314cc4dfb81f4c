"""Axis taps, against F.pad and a transposed convolution of ones: neither knows of patterns."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from conv2affine import _C


def taps_of(axis, rule, transpose=False):
    """The set of (o, i, k) that the compiled part gives for one axis, and its order per o."""
    start, inputs, kernels = _C.axis_taps(*axis, rule, transpose)
    return [
        list(zip(inputs[a:b].tolist(), kernels[a:b].tolist(), strict=True))
        for a, b in zip(start[:-1], start[1:], strict=True)
    ]


def read_by_convolution(input, output, kernel, stride, padding, dilation, rule):
    """The same by padding the coordinates themselves and reading them with a stride."""
    coordinates = torch.arange(1, input + 1, dtype=torch.float64).view(1, 1, -1)  # 0 means no input
    right = max(0, (output - 1) * stride + (kernel - 1) * dilation + 1 - input - padding)
    mode = "constant" if rule == "zeros" else rule
    padded = F.pad(coordinates, (padding, right), mode=mode).flatten()
    reads = []
    for o in range(output):
        found = [(int(padded[o * stride + k * dilation]) - 1, k) for k in range(kernel)]
        reads.append(sorted((i, k) for i, k in found if i >= 0))
    return reads


def read_by_transposition(input, output, kernel, stride, padding, dilation, rule):
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
    rule = draw(st.sampled_from(["zeros", "circular", "reflect", "replicate", "transposed"]))
    input = draw(st.integers(1, 12))
    kernel, stride, dilation = (draw(st.integers(1, 5)) for _ in range(3))
    limit = {"circular": input, "reflect": input - 1}.get(rule, 20)
    padding = draw(st.integers(0, limit))
    if rule == "transposed":
        largest = (input - 1) * stride + (kernel - 1) * dilation + 1 - padding + stride
    else:
        largest = (input + padding + limit - (kernel - 1) * dilation - 1) // stride + 1
    if largest < 1:
        kernel, padding, largest = 1, 0, 1
    return (input, draw(st.integers(1, largest)), kernel, stride, padding, dilation), rule


@given(axes())
def test_taps_are_what_the_definition_reads(axis_and_rule):
    axis, rule = axis_and_rule
    oracle = read_by_transposition if rule == "transposed" else read_by_convolution
    assert taps_of(axis, rule) == oracle(*axis, rule)


@given(axes())
def test_transposed_taps_are_the_same_from_the_other_side(axis_and_rule):
    axis, rule = axis_and_rule
    read_by = [[] for _ in range(axis[0])]
    for o, reads in enumerate(taps_of(axis, rule)):
        for i, k in reads:
            read_by[i].append((o, k))
    assert taps_of(axis, rule, transpose=True) == read_by


def entries(axis, rule, transpose=False):
    """The number that the compiled part gives for a 1-D convolution of one channel."""
    input, output, kernel, *rest = axis
    return _C.entries((1, 1, 1, kernel), (input, output, *rest), rule, 0, input if transpose else output, transpose)


@given(axes())
def test_entries_counts_distinct_pairs(axis_and_rule):
    axis, rule = axis_and_rule
    pairs = {(o, i) for o, reads in enumerate(taps_of(axis, rule)) for i, _ in reads}
    assert entries(axis, rule) == len(pairs)
    assert entries(axis, rule, transpose=True) == len(pairs)


def test_taps_are_numpy_arrays():
    start, inputs, kernels = _C.axis_taps(5, 5, 3, 1, 1, 1, "zeros")
    assert all(array.dtype == np.int64 for array in (start, inputs, kernels))
    np.testing.assert_array_equal(start, [0, 2, 5, 8, 11, 13])
    np.testing.assert_array_equal(inputs, [0, 1, 0, 1, 2, 1, 2, 3, 2, 3, 4, 3, 4])
    np.testing.assert_array_equal(kernels, [1, 2, 0, 1, 2, 0, 1, 2, 0, 1, 2, 0, 1])


@pytest.mark.parametrize("rule", ["zeros", "circular", "reflect", "replicate"])
def test_entries_of_a_long_axis_take_no_memory(rule):
    length = 10**9
    # The pairs at the two ends; where the padding is folded, two taps of reflect and replicate read the same input.
    expected = 3 * length - {"zeros": 2, "circular": 0, "reflect": 2, "replicate": 2}[rule]
    for transpose in (False, True):
        assert entries((length, length, 3, 1, 1, 1), rule, transpose) == expected


@pytest.mark.parametrize("rule", ["zeros", "circular", "transposed"])
@pytest.mark.parametrize("transpose", [False, True])
def test_a_kernel_beyond_all_memory_is_refused_at_once(rule, transpose):
    with pytest.raises(RuntimeError, match="bad_alloc"):
        entries((7, 5, 2**44, 1, 0, 1), rule, transpose)


@pytest.mark.parametrize(
    ("axis", "rule", "message"),
    [
        ((0, 5, 3, 1, 1, 1), "zeros", r"input size \(0\)"),
        ((5, 0, 3, 1, 1, 1), "zeros", r"output size \(0\)"),
        ((5, 5, 0, 1, 1, 1), "zeros", r"kernel size \(0\)"),
        ((5, 5, 3, 0, 1, 1), "zeros", r"stride \(0\)"),
        ((5, 5, 3, 1, -1, 1), "zeros", r"padding \(-1\) must be >= 0"),
        ((5, 5, 3, 1, 1, 0), "zeros", r"dilation \(0\)"),
        ((5, 5, 3, 1, 1, 1), "mirror", r"rule \('mirror'\) must be one of"),
        ((5, 2**40, 3, 2**40, 1, 1), "zeros", "do not fit into a signed 64-bit integer"),
    ],
)
def test_bad_axis_is_refused(axis, rule, message):
    with pytest.raises(ValueError, match=message):
        _C.axis_taps(*axis, rule)
