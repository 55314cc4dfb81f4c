"""From a matrix to the nearest weight: there and back, and against a general least-squares solver."""

from itertools import product

import pytest
import torch
from hypothesis import given, settings
from torch import nn

from conv2affine import Geometry, from_matrix, projection, to_conv, to_linear, to_matrix
from tests.cases import CASES, layers, made

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128]
LAYOUTS = [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo]
by_id = {"ids": lambda case: case.id}

pytestmark = pytest.mark.filterwarnings("ignore:Sparse [CB]S[RC] tensor support is in beta state")


def design_matrix(geometry):
    """(elements of the matrix, weights): the matrix of each unit weight, from the definition."""
    size, columns = geometry.weight_size, []
    for index in product(*map(range, size)):
        weight = torch.zeros(size, dtype=torch.float64)
        weight[index] = 1
        columns.append(to_matrix(weight, geometry).flatten())
    return torch.stack(columns, 1)


def overlapping(design):
    """Whether two weights share an element."""
    return bool((design != 0).sum(1).gt(1).any())


def geometry_of(case):
    return Geometry.from_layer(case.conv(), case.input_size)


def random_matrix(geometry, dtype=torch.float64):
    return torch.randn(geometry.shape, dtype=dtype, generator=torch.Generator().manual_seed(0))


SMALL = [case for case in CASES if geometry_of(case).shape[0] * geometry_of(case).shape[1] <= 20_000]


@pytest.mark.parametrize("case", CASES, **by_id)
def test_there_and_back(case):
    conv = case.conv()
    geometry = Geometry.from_layer(conv, case.input_size)
    design = design_matrix(geometry)
    filled = (design != 0).any(0).view(geometry.weight_size)
    linear = to_linear(conv, case.input_size)
    back = to_conv(linear, geometry)
    assert type(back) is type(conv)
    assert Geometry.from_layer(back, case.input_size) == geometry
    assert (back.bias is None) == (conv.bias is None)
    assert conv.bias is None or torch.equal(back.bias, conv.bias)
    if overlapping(design):
        torch.testing.assert_close(to_matrix(back, case.input_size), linear.weight, rtol=1e-13, atol=1e-14)
    else:
        assert torch.equal(back.weight, torch.where(filled, conv.weight, 0.0))
        assert torch.equal(to_matrix(back, case.input_size), linear.weight)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("layout", [torch.strided, *LAYOUTS], ids=str)
@pytest.mark.parametrize("options", [{"padding": 1}, {"padding": 1, "padding_mode": "circular"}], ids=str)
def test_there_and_back_in_any_dtype_and_layout(dtype, layout, options):
    generator = torch.Generator().manual_seed(1)
    weight = torch.randn(3, 2, 3, 3, generator=generator, dtype=dtype)
    geometry = Geometry(2, 3, (3, 3), input_size=(11, 7), **options)
    back, residual = from_matrix(to_matrix(weight, geometry, layout=layout), geometry)
    assert (back.dtype, back.layout) == (dtype, torch.strided)
    assert torch.equal(back, weight)
    assert residual == 0
    assert (residual.dtype, residual.shape) == (torch.float64, ())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_sums_neither_overflow_nor_round(dtype):
    # 250,000 entries each: their sum is beyond float16, and their mean, summed in a row, is off in every other dtype.
    weight = torch.tensor([[[[1 / 3]]], [[[3.1]]], [[[-1e-3]]]], dtype=dtype)
    geometry = Geometry(1, 3, (1, 1), input_size=500)
    assert torch.equal(from_matrix(to_matrix(weight, geometry, layout=torch.sparse_coo), geometry)[0], weight)


def test_float64_takes_the_second_round():
    weight = torch.randn(4, 2, 3, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    geometry = Geometry(2, 4, (3, 3), input_size=(31, 29), padding=1)
    counts = projection._Dense(torch.ones(1).expand(geometry.shape), geometry).adjoint(torch.zeros_like(weight))
    sums = projection._Dense(to_matrix(weight, geometry), geometry).adjoint(torch.zeros_like(weight))
    assert not torch.equal(sums / counts, weight)  # what makes this a test
    assert torch.equal(from_matrix(to_matrix(weight, geometry), geometry)[0], weight)


@pytest.mark.parametrize("layout", [torch.strided, *LAYOUTS], ids=str)
def test_sums_near_the_largest_float64(layout):
    geometry = Geometry(1, 1, (2,), input_size=9)  # each element fills 8 entries
    weight = torch.tensor([[[1.0, -1.0]]], dtype=torch.float64) * torch.finfo(torch.float64).max / 8
    back, residual = from_matrix(to_matrix(weight, geometry, layout=layout), geometry)
    assert torch.equal(back, weight)
    assert residual == 0
    assert not from_matrix(to_matrix(2 * weight, geometry, layout=layout), geometry)[1].isfinite()


@pytest.mark.parametrize("case", SMALL, **by_id)
def test_is_the_least_squares_solution(case):
    geometry = geometry_of(case)
    matrix = random_matrix(geometry)
    design = design_matrix(geometry)
    weight, residual = from_matrix(matrix, geometry)
    # gelsd: the solution of the least norm, where there are several.
    expected = torch.linalg.lstsq(design, matrix.flatten().unsqueeze(1), driver="gelsd").solution.squeeze(1)
    torch.testing.assert_close(weight.flatten(), expected, rtol=1e-9, atol=1e-11)
    difference = matrix.flatten() - design @ expected
    torch.testing.assert_close(residual, torch.linalg.vector_norm(difference), rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(design.T @ (matrix - to_matrix(weight, geometry)).flatten(), torch.zeros_like(expected))


def test_complex_matrix_is_projected_part_by_part():
    geometry = Geometry(2, 2, (3,), input_size=5, padding=2, padding_mode="circular")
    matrix = random_matrix(geometry, torch.complex128)
    weight, residual = from_matrix(matrix, geometry)
    (real, real_residual), (imag, imag_residual) = (
        from_matrix(matrix.real, geometry),
        from_matrix(matrix.imag, geometry),
    )
    torch.testing.assert_close(weight, torch.complex(real, imag))
    torch.testing.assert_close(residual, torch.hypot(real_residual, imag_residual))
    assert torch.equal(from_matrix(matrix.conj(), geometry)[0], weight.conj())


def test_matrix_of_any_strides():
    geometry = Geometry(2, 3, (3,), input_size=8)
    matrix = random_matrix(geometry)
    weight, residual = from_matrix(matrix, geometry)
    scattered = torch.zeros(2 * geometry.shape[1], 3 * geometry.shape[0], dtype=torch.float64)[::2, ::3].T
    same_weight, same_residual = from_matrix(scattered.copy_(matrix), geometry)
    assert torch.equal(same_weight, weight)
    assert torch.equal(same_residual, residual)


@pytest.mark.parametrize("block", [1, 7, 100])
def test_blocks_make_up_the_matrix(block, monkeypatch):
    geometry = Geometry(1, 2, (2, 2), input_size=(6, 5), padding=1, padding_mode="replicate")
    matrix = random_matrix(geometry)
    expected = [from_matrix(given, geometry) for given in (matrix, matrix.to_sparse())]
    monkeypatch.setattr(projection, "BLOCK_ELEMENTS", block)
    actual = [from_matrix(given, geometry) for given in (matrix, matrix.to_sparse())]
    torch.testing.assert_close(actual, expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", CASES[::2], **by_id)
def test_sparse_matrices_of_any_pattern(case, layout):
    geometry = geometry_of(case)
    # Within the pattern and outside
    kept = torch.rand(geometry.shape, generator=torch.Generator().manual_seed(1)) < 0.3
    matrix = random_matrix(geometry) * kept
    weight, residual = from_matrix(matrix.to_sparse(layout=layout), geometry)
    expected = from_matrix(matrix, geometry)
    torch.testing.assert_close((weight, residual), expected, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_sparse_matrix_without_entries(layout):
    for geometry in (Geometry(1, 2, (3,), input_size=4), Geometry(1, 1, (2,), input_size=1, padding=1, dilation=2)):
        weight, residual = from_matrix(torch.zeros(geometry.shape).to_sparse(layout=layout), geometry)
        assert torch.equal(weight, torch.zeros(geometry.weight_size))
        assert residual == 0


def test_entries_of_an_uncoalesced_matrix_add_up():
    geometry = Geometry(1, 1, (1,), input_size=2)
    indices = torch.tensor([[1, 0, 0, 1, 0, 0], [1, 0, 0, 1, 1, 1]])
    matrix = torch.sparse_coo_tensor(indices, torch.tensor([1.0, 2, 3, 4, 5, 7]), (2, 2), check_invariants=True)
    weight, residual = from_matrix(matrix, geometry)
    assert weight.item() == 5
    assert residual == 12


def test_large_sparse_matrix_is_never_dense():
    conv = nn.Conv2d(8, 8, 3, padding=1)  # 38 GB dense
    geometry = Geometry.from_layer(conv, 110)
    weight, residual = from_matrix(to_matrix(conv, 110, layout=torch.sparse_csr), geometry)
    assert torch.equal(weight, conv.weight)
    assert residual == 0


def test_weights_that_fill_no_entry_are_zero():
    geometry = Geometry(1, 1, (3,), input_size=1, padding=1)
    assert from_matrix(torch.tensor([[3.0]]), geometry)[0].tolist() == [[[0, 3, 0]]]


def test_taps_that_always_overlap_share_evenly():
    geometry = Geometry(1, 1, (4,), input_size=2, padding=((1, 2),), padding_mode="circular")
    weight, residual = from_matrix(torch.tensor([[6.0, 2], [2, 6]], dtype=torch.float64), geometry)
    torch.testing.assert_close(weight.flatten().tolist(), [1.0, 3.0, 1.0, 3.0])
    assert residual < 1e-14


def test_far_padding_is_no_reason_to_drop_small_eigenvalues():
    # Almost all outputs read both ends of the input through all taps; only two of them tell the taps apart.
    geometry = Geometry(1, 1, (2,), input_size=2, padding=100_000, padding_mode="replicate")
    weight = torch.tensor([[[1.0, -3.0]]], dtype=torch.float64)
    back, _ = from_matrix(to_matrix(weight, geometry), geometry)
    torch.testing.assert_close(back, weight, rtol=1e-9, atol=0)


def test_matrix_is_left_alone_and_result_has_no_gradient():
    geometry = Geometry(2, 3, (3,), input_size=8)
    matrix = random_matrix(geometry).requires_grad_()
    before = matrix.detach().clone()
    weight, residual = from_matrix(matrix, geometry)
    assert torch.equal(matrix, before)
    assert not weight.requires_grad
    assert not residual.requires_grad
    weight.zero_()
    assert torch.equal(matrix, before)


@given(layers())
@settings(max_examples=100, deadline=None)
def test_random_layers_there_and_back(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    linear = to_linear(conv, input_size)
    back = to_conv(linear, Geometry.from_layer(conv, input_size))
    assert (back.padding_mode, back.output_padding) == (conv.padding_mode, conv.output_padding)
    x = torch.randn(2, conv.in_channels, *input_size, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(back(x), conv(x), rtol=1e-11, atol=1e-11)
    if conv.padding_mode == "zeros":
        assert torch.equal(to_matrix(back, input_size), linear.weight)


@given(layers())
@settings(max_examples=50, deadline=None)
def test_random_matrices_keep_a_residual_orthogonal_to_convolutions(drawn):
    layer, arguments, input_size = drawn
    geometry = Geometry.from_layer(made(layer, arguments), input_size)
    matrix = random_matrix(geometry)
    weight, residual = from_matrix(matrix, geometry)
    nearest = to_matrix(weight, geometry)
    direction = to_matrix(
        torch.randn(geometry.weight_size, dtype=torch.float64, generator=torch.Generator().manual_seed(1)), geometry
    )
    scale = torch.linalg.matrix_norm(matrix) * torch.linalg.matrix_norm(direction)
    assert ((matrix - nearest) * direction).sum().abs() <= 1e-12 * scale
    torch.testing.assert_close(residual, torch.linalg.matrix_norm(matrix - nearest), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("matrix", "error", "message"),
    [
        (torch.zeros(7, 8), ValueError, r"matrix must have shape \(6, 8\).*3 channels of size.*got \(7, 8\)"),
        (torch.zeros(6, 8, 1).to_sparse(), ValueError, r"must have shape \(6, 8\).*got \(6, 8, 1\)"),
        (torch.zeros(6, 8).to_sparse(1), ValueError, r"must have 2 sparse axes, got 1 and dense rows"),
        (torch.zeros(6, 8, dtype=torch.int64), TypeError, r"dtype of torch.float16.*got torch.int64; convert it"),
        (torch.zeros(6, 8, dtype=torch.bool), TypeError, "got torch.bool"),
        ([[0.0] * 8] * 6, TypeError, r"matrix must be a tensor, got list; pass torch.as_tensor\(matrix\)"),
    ],
)
def test_bad_matrices_are_refused(matrix, error, message):
    with pytest.raises(error, match=message):
        from_matrix(matrix, Geometry(4, 3, (1,), input_size=2))


def test_block_layout_is_refused():
    with pytest.raises(TypeError, match=r"must have a layout of .*sparse_csr.*, got torch.sparse_bsr; convert it"):
        from_matrix(torch.zeros(6, 8).to_sparse_bsr((2, 2)), Geometry(4, 3, (1,), input_size=2))


def test_bad_geometry_is_refused():
    with pytest.raises(TypeError, match=r"geometry must be a conv2affine.Geometry, got Conv1d; make it.*from_layer"):
        from_matrix(torch.zeros(4, 4), nn.Conv1d(1, 1, 1))
    with pytest.raises(TypeError, match="geometry must be"):
        to_conv(nn.Linear(4, 4), 4)
