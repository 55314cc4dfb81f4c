"""The matrix, against the reference (bitwise) and against PyTorch (float64)."""

import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from conv2affine import conv_matrix, conv_transpose_matrix, reference, to_bias, to_linear, to_matrix
from conv2affine.convolution.arguments import COPIED_DTYPES
from conv2affine.convolution.layouts import BUILDERS
from tests.cases import CASES
from tests.conftest import assert_same_bits

FLOATING = [
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
    torch.complex64,
    torch.complex128,
]
INTEGER = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64]
by_id = {"ids": lambda case: case.id}


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.quantize_per_tensor(torch.ones(1, 1, 3), 0.1, 0, torch.qint8)


def complex_half():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ones(1, 1, 3).to(torch.complex32)


@pytest.mark.parametrize("case", CASES, **by_id)
def test_equals_reference(case):
    conv = case.conv().requires_grad_(False)
    conv.weight[(0,) * conv.weight.dim()] = -0.0  # a sum with 0.0 would lose the sign
    assert_same_bits(to_matrix(conv, case.input_size), reference.to_matrix(conv, case.input_size))
    assert_same_bits(to_bias(conv, case.input_size), reference.to_bias(conv, case.input_size))


@pytest.mark.parametrize("case", CASES, **by_id)
def test_equals_pytorch(case):
    conv = case.conv(torch.float64).requires_grad_(False)
    x = torch.randn(conv.in_channels, *case.input_size, dtype=torch.float64)
    ours = to_matrix(conv, case.input_size) @ x.flatten() + to_bias(conv, case.input_size)
    torch.testing.assert_close(ours, conv(x).flatten(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("dtype", FLOATING, ids=str)
@pytest.mark.parametrize("case", CASES[::4], **by_id)
def test_dtypes_equal_reference(case, dtype):
    conv = case.conv(dtype).requires_grad_(False)
    assert_same_bits(to_matrix(conv, case.input_size), reference.to_matrix(conv, case.input_size))


@pytest.mark.parametrize("dtype", INTEGER, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_integer_weights_are_copied(dtype, mode):
    weight = torch.randint(0, 30, (4, 2, 3, 3), dtype=dtype)
    matrix = conv_matrix(weight, (5, 4), padding=1, padding_mode=mode)
    expected = conv_matrix(weight.double(), (5, 4), padding=1, padding_mode=mode)
    assert matrix.dtype == dtype
    assert torch.equal(matrix.double(), expected)


def test_special_values_are_copied_bit_by_bit():
    weight = torch.tensor([[[float("inf"), -0.0, float("nan"), float("-inf")]]])
    matrix = conv_matrix(weight, 4)
    assert_same_bits(matrix, weight.view(1, 4))
    assert torch.equal(conv_matrix(weight, 6).isnan().sum(0), torch.tensor([0, 0, 1, 1, 1, 0]))


def test_lazily_conjugated_weights_are_conjugated():
    weight = torch.randn(2, 1, 3, dtype=torch.complex64)
    assert torch.equal(conv_matrix(weight.conj(), 5), conv_matrix(weight, 5).conj())
    assert torch.equal(conv_matrix(weight.conj().imag, 5), -conv_matrix(weight, 5).imag)


@pytest.mark.parametrize("case", CASES[::3], **by_id)
def test_rows_are_a_block(case):
    conv = case.conv().requires_grad_(False)
    whole = to_matrix(conv, case.input_size)
    total = len(whole)
    for rows in (
        range(0),
        range(total),
        range(total // 3, total),
        range(total // 2, total // 2 + 1),
    ):
        block = to_matrix(conv, case.input_size, rows=rows)
        assert torch.equal(block, whole[rows.start : rows.stop])


@pytest.mark.parametrize(
    ("rows", "error", "message"),
    [
        (range(0, 19), ValueError, r"rows \(range\(0, 19\)\) must lie within the 18 rows"),
        (range(-1, 3), ValueError, "must lie within"),
        (range(5, 3), ValueError, "must lie within"),
        (range(0, 6, 2), TypeError, "with step 1"),
        (slice(0, 3), TypeError, r"must be None or a range\(start, stop\)"),
        (3, TypeError, "must be None or a range"),
        (torch.zeros(9), TypeError, r"rows \(Tensor of shape \(9,\)\) must be None or a range"),
    ],
)
def test_bad_rows_are_refused(rows, error, message):
    with pytest.raises(error, match=message):
        conv_matrix(torch.ones(2, 1, 3, 3), 5, rows=rows)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("layer", [nn.Conv2d, nn.ConvTranspose2d])
def test_weight_in_any_memory_format(layer, memory_format):
    conv = layer(4, 6, (2, 3), groups=2).requires_grad_(False)
    expected = to_matrix(conv, (4, 5))
    assert_same_bits(to_matrix(conv.to(memory_format=memory_format), (4, 5)), expected)
    conv.weight = nn.Parameter(conv.weight.flip(0).transpose(2, 3), requires_grad=False)
    strided = to_matrix(layer_like(conv), (5, 4))
    conv.weight = nn.Parameter(conv.weight.contiguous(), requires_grad=False)
    assert_same_bits(strided, to_matrix(layer_like(conv), (5, 4)))


def layer_like(conv):
    """A layer around the same weight, whose kernel size is the weight's."""
    layer = type(conv)(conv.in_channels, conv.out_channels, conv.weight.shape[2:], groups=conv.groups)
    layer.weight = conv.weight
    return layer


@pytest.mark.parametrize("case", [case for case in CASES if case.layer is nn.Conv2d][:12], **by_id)
def test_functional_form_of_conv(case):
    conv = case.conv().requires_grad_(False)
    matrix = conv_matrix(
        conv.weight,
        case.input_size,
        conv.stride,
        conv.padding,
        conv.dilation,
        conv.groups,
        padding_mode=conv.padding_mode,
    )
    assert torch.equal(matrix, to_matrix(conv, case.input_size))


@pytest.mark.parametrize("case", [c for c in CASES if c.layer is nn.ConvTranspose2d], **by_id)
def test_functional_form_of_transposed_conv(case):
    conv = case.conv().requires_grad_(False)
    matrix = conv_transpose_matrix(
        conv.weight,
        case.input_size,
        conv.stride,
        conv.padding,
        conv.output_padding,
        conv.groups,
        conv.dilation,
    )
    assert torch.equal(matrix, to_matrix(conv, case.input_size))


def test_transposed_convolution_is_the_transposed_matrix():
    weight = torch.randn(4, 3, 3, 2)
    there = conv_matrix(weight, (9, 7), stride=2, padding=1)
    back = conv_transpose_matrix(weight, (5, 4), stride=2, padding=1, output_padding=(0, 1))
    assert torch.equal(back, there.T)


def test_one_pair_of_paddings_per_axis():
    weight = torch.randn(2, 1, 3, 3)
    matrix = conv_matrix(weight, (4, 4), padding=((0, 2), (1, 0)))
    x = torch.randn(1, 1, 4, 4)
    expected = F.conv2d(F.pad(x, (1, 0, 0, 2)), weight).flatten()
    torch.testing.assert_close(matrix @ x.flatten(), expected)


@pytest.mark.parametrize(
    ("weight", "error", "message"),
    [
        ([[[1.0]]], TypeError, r"weight must be a tensor, got list; pass torch.as_tensor\(weight\)"),
        (nn.Conv2d(1, 1, 3), TypeError, r"weight must be a tensor, got Conv2d; call to_matrix\(layer, input_size\)"),
        (torch.ones(1, 1, 3).to_sparse(), TypeError, "weight must be a strided tensor, got layout torch.sparse_coo"),
        (complex_half(), TypeError, r"got torch.complex32; pass weight.to\(torch.complex64\)"),
        (torch.ones(1, 1, 3).to(torch.float8_e8m0fnu), TypeError, r"got torch.float8_e8m0fnu; pass weight.float\(\)"),
        (quantized(), TypeError, r"got torch.qint8; pass weight.dequantize\(\), or its integers, weight.int_repr\(\)"),
        (torch.ones(3, 3), ValueError, r"3 to 5 axes.*got shape \(3, 3\); for one kernel, pass kernel\[None, None\]"),
        (torch.ones(1, 1, 1, 1, 1, 1), ValueError, "3 to 5 axes"),
        (torch.ones(2, 0, 3), ValueError, "of size >= 1"),
    ],
)
@pytest.mark.parametrize("function", [conv_matrix, conv_transpose_matrix])
def test_bad_weights_are_refused(function, weight, error, message):
    with pytest.raises(error, match=message):
        function(weight, 4)


@pytest.mark.parametrize("function", [conv_matrix, conv_transpose_matrix])
def test_groups_that_do_not_divide_are_refused(function):
    with pytest.raises(ValueError, match=r"channels \(\d\) must be divisible by groups \(3\)"):
        function(torch.ones(4, 2, 3), 8, groups=3)


@pytest.mark.parametrize("layout", BUILDERS, ids=str)
@pytest.mark.parametrize("dtype", COPIED_DTYPES, ids=str)
def test_weights_that_cannot_be_added_are_copied_where_no_taps_overlap(dtype, layout):
    weight = torch.arange(2 * 3).view(2, 1, 3).to(dtype)
    wide = weight.to(torch.float64)
    for options in ({"padding": 1}, {"padding": 1, "padding_mode": "circular"}):
        matrix = conv_matrix(weight, 5, layout=layout, **options)
        assert matrix.dtype == dtype
        dense = conv_matrix(wide, 5, layout=layout, **options)
        values = (lambda matrix: matrix) if layout is torch.strided else torch.Tensor.values
        assert_same_bits(values(matrix), values(dense).to(dtype))


@pytest.mark.parametrize("dtype", COPIED_DTYPES, ids=str)
@pytest.mark.parametrize("mode", ["circular", "replicate", "reflect"])
def test_weights_that_cannot_be_added_are_refused_where_taps_overlap(dtype, mode):
    with pytest.raises(TypeError, match=rf"weight \({dtype}\) must have a dtype that can be added.*several taps"):
        conv_matrix(torch.ones(1, 1, 3).to(dtype), 2, padding=1, padding_mode=mode)


@pytest.mark.parametrize("groups", [0, -1, "1", None])
@pytest.mark.parametrize("function", [conv_matrix, conv_transpose_matrix])
def test_what_is_no_number_of_groups_is_refused(function, groups):
    with pytest.raises((TypeError, ValueError), match=r"groups \("):
        function(torch.ones(4, 2, 3), 8, groups=groups)


@pytest.mark.parametrize("function", [to_bias, to_linear])
def test_bias_that_is_not_the_layers_is_refused(function):
    conv = nn.Conv1d(1, 2, 3)
    conv.bias = nn.Parameter(torch.ones(3))
    with pytest.raises(ValueError, match=r"bias must have shape \(2,\), one entry per output channel, got \(3,\)"):
        function(conv, 5)


def test_bias_has_gradient():
    conv = nn.Conv2d(1, 2, 3)
    to_bias(conv, 5).sum().backward()
    assert torch.equal(conv.bias.grad, torch.tensor([9.0, 9.0]))


@pytest.mark.parametrize("size", [1, 4])
def test_result_shares_no_memory_with_the_layer(size):
    conv = nn.Conv1d(1, 1, size).requires_grad_(False)
    weight, bias = conv.weight.clone(), conv.bias.clone()
    to_matrix(conv, size).zero_()
    to_bias(conv, size).zero_()
    assert torch.equal(conv.weight, weight)
    assert torch.equal(conv.bias, bias)
