"""SciPy: the operator against the matrix, and its adjoint by the dot test; the sparse array against the matrix."""

import subprocess
import sys

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from numpy.testing import assert_allclose
from scipy.sparse.linalg import eigsh, lsqr, svds
from torch import nn

from conv2affine import Geometry, as_linear_operator, to_matrix, to_scipy
from conv2affine.interop import scipy as scipy_interop
from tests.cases import CASES, layers

by_id = {"ids": lambda case: case.id}
OPERATOR_DTYPES = [torch.float32, torch.float64, torch.complex64, torch.complex128]


def random(*shape, dtype=np.float64, seed=0):
    generator = np.random.default_rng(seed)
    x = generator.standard_normal(shape)
    if np.issubdtype(dtype, np.complexfloating):
        x = x + 1j * generator.standard_normal(shape)
    return x.astype(dtype)


def layer(dtype=torch.float64, **options):
    return nn.Conv2d(2, 3, 3, padding=1, **options, dtype=dtype)


def dense(conv, input_size):
    return to_matrix(conv.requires_grad_(False), input_size).numpy()


def assert_products(operator, matrix):
    """All products of the operator are the matrix's, and the dot test holds."""
    assert (operator.shape, operator.dtype) == (matrix.shape, matrix.dtype)
    rows, cols = matrix.shape
    x, y = random(cols, dtype=matrix.dtype), random(rows, dtype=matrix.dtype, seed=1)
    precision = {"rtol": 1e-12, "atol": 1e-11}
    assert_allclose(operator.matvec(x), matrix @ x, **precision)
    assert_allclose(operator.rmatvec(y), matrix.conj().T @ y, **precision)
    assert_allclose(np.vdot(operator @ x, y), np.vdot(x, operator.H @ y), rtol=1e-10, atol=1e-10)


@pytest.mark.diagonal
@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("case", CASES, **by_id)
def test_products_are_the_matrixs(case, dtype):
    conv = case.conv(dtype)
    assert_products(as_linear_operator(conv, case.input_size), dense(conv, case.input_size))


@given(layers())
@settings(max_examples=100, deadline=None)
def test_products_of_random_geometries(drawn):
    layer, arguments, input_size = drawn
    torch.manual_seed(0)
    conv = layer(**arguments, dtype=torch.complex128)
    assert_products(as_linear_operator(conv, input_size), dense(conv, input_size))


@pytest.mark.parametrize("case", CASES[::5], **by_id)
def test_block_of_vectors_is_vector_by_vector(case, monkeypatch):
    operator = as_linear_operator(case.conv(), case.input_size)
    rows, cols = operator.shape
    x, y = random(cols, 5), random(rows, 5)
    for block_bytes in (scipy_interop.BLOCK_BYTES, 1):  # all at once, and one by one
        monkeypatch.setattr(scipy_interop, "BLOCK_BYTES", block_bytes)
        assert_allclose(operator @ x, np.stack([operator @ column for column in x.T], 1), rtol=1e-12, atol=1e-12)
        assert_allclose(operator.H @ y, np.stack([operator.H @ row for row in y.T], 1), rtol=1e-12, atol=1e-12)


def test_block_bytes_bound_the_block():
    """A sample of Conv2d(2, 3, 3) at 10 x 10 unfolds into 2 * 9 * 100 elements; transposed, into 3 * 9 * 36."""
    convolutions = [
        (nn.Conv2d(2, 3, 3, padding=1, dtype=torch.float64), 10, 2 * 9 * 100 * 8),
        (nn.ConvTranspose2d(2, 3, 3, dtype=torch.complex128), 6, 3 * 9 * 36 * 16),
        (nn.Conv2d(512, 512, 9, padding=4, dtype=torch.float32), 99, 2**40),
    ]
    for conv, size, unfolded in convolutions:
        geometry = Geometry.from_layer(conv, size)
        assert scipy_interop._block(conv.weight, geometry) == max(1, scipy_interop.BLOCK_BYTES // unfolded)


@pytest.mark.parametrize("shape", [(18,), (18, 1), (18, 0), (18, 4)])
def test_shapes(shape):
    operator = as_linear_operator(layer(), 3)
    assert (operator @ np.ones(shape)).shape == (27, *shape[1:])
    assert (operator.H @ np.ones((27, *shape[1:]))).shape == shape


@pytest.mark.parametrize("shape", [(17,), (19,), (1, 18), (27, 2)])
def test_wrong_shapes_are_refused_by_scipy(shape):
    with pytest.raises(ValueError, match=r"(?i)dim|shape"):
        as_linear_operator(layer(), 3) @ np.ones(shape)


@pytest.mark.parametrize("dtype", OPERATOR_DTYPES, ids=str)
def test_results_have_the_weights_dtype(dtype):
    conv = layer(dtype)
    operator = as_linear_operator(conv, 4)
    expected = conv.weight.detach().numpy().dtype
    assert operator.dtype == expected
    for x in (random(32, dtype=expected), np.ones(32, int), random(32, dtype=np.float64), random(32, 2)):
        assert (operator @ x).dtype == expected
        assert_allclose(operator @ x, dense(conv, 4) @ x, rtol=1e-4, atol=1e-5)


def test_complex_vector_keeps_its_imaginary_part():
    conv = layer(torch.float32)
    operator, matrix = as_linear_operator(conv, 4), dense(conv, 4)
    x, y = random(32, 2, dtype=np.complex64), random(48, dtype=np.complex64)
    assert (operator @ x).dtype == (operator.H @ y).dtype == np.complex64
    assert_allclose(operator @ x, matrix @ x, rtol=1e-4, atol=1e-5)
    assert_allclose(operator.H @ y, matrix.T @ y, rtol=1e-4, atol=1e-5)


def test_vectors_in_any_memory():
    conv = layer()
    operator, matrix = as_linear_operator(conv, 4), dense(conv, 4)
    x = random(64, 3)
    read_only = x[:32].copy()
    read_only.flags.writeable = False
    for vectors in (x[::-2], np.asfortranarray(x[:32]), read_only, x[:32, ::-1]):
        assert_allclose(operator @ vectors, matrix @ vectors, rtol=1e-12, atol=1e-12)


def test_vectors_are_left_alone():
    """A pointwise layer of weight 1 is the identity, whose results must not be the argument's memory."""
    conv = nn.Conv1d(1, 1, 1, dtype=torch.float64)
    nn.init.ones_(conv.weight)
    x = random(6)
    y = as_linear_operator(conv, 6) @ x
    assert_allclose(y, x)
    assert not np.shares_memory(x, y)


def test_weight_is_a_snapshot():
    conv = layer()
    operator, matrix = as_linear_operator(conv, 4), dense(conv, 4)
    nn.init.zeros_(conv.weight)
    assert_allclose(operator @ np.ones(32), matrix.sum(1), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("mode", ["zeros", "reflect"])
@pytest.mark.parametrize(
    "context", [torch.no_grad, torch.inference_mode, lambda: torch.autocast("cpu")], ids=["no_grad", "inference", "amp"]
)
def test_torchs_modes_change_nothing(mode, context):
    conv = layer(torch.float32, padding_mode=mode)
    outside = as_linear_operator(conv, 4)
    x, y = random(32, dtype=np.float32), random(48, dtype=np.float32)
    expected = outside @ x, outside.H @ y
    with context():
        inside = as_linear_operator(conv, 4)
        results = [(operator @ x, operator.H @ y) for operator in (inside, outside)]
    for result in (*results, (inside @ x, inside.H @ y)):
        np.testing.assert_array_equal(result[0], expected[0])
        np.testing.assert_array_equal(result[1], expected[1])


def test_parametrised_and_lazily_conjugated_weights():
    conv = nn.utils.parametrizations.weight_norm(layer())
    assert_products(as_linear_operator(conv, 4), dense(conv, 4))
    conv = layer(torch.complex128)
    conv.weight = nn.Parameter(conv.weight.detach().conj())
    assert_products(as_linear_operator(conv, 4), dense(conv, 4))


@pytest.mark.parametrize("dtype", [torch.float64, torch.complex128], ids=str)
@pytest.mark.parametrize("mode", ["zeros", "reflect"])
def test_svds_and_eigsh_give_the_singular_values(dtype, mode):
    conv = layer(dtype, padding_mode=mode)
    expected = np.linalg.svd(dense(conv, (5, 4)), compute_uv=False)[:3]
    operator = as_linear_operator(conv, (5, 4))
    start = random(operator.shape[1], dtype=operator.dtype)
    u, s, vh = svds(operator, k=3, v0=start)
    assert_allclose(np.sort(s)[::-1], expected, rtol=1e-9)
    assert_allclose(operator @ vh.conj().T, u * s, rtol=1e-8, atol=1e-8)
    squares = eigsh(operator.H @ operator, k=3, v0=start, return_eigenvectors=False)
    assert_allclose(np.sort(squares)[::-1], expected**2, rtol=1e-9)


def test_lsqr_recovers_the_input():
    operator = as_linear_operator(layer(bias=False), 5)
    x = random(operator.shape[1])
    recovered = lsqr(operator, operator @ x, atol=1e-14, btol=1e-14)[0]
    assert_allclose(recovered, x, rtol=1e-7, atol=1e-7)


def test_layer_of_imagenet_size():
    """Its matrix would have 483 GB."""
    conv = nn.Conv2d(3, 64, 7, stride=2, padding=3, dtype=torch.float64)
    operator = as_linear_operator(conv, 224)
    x, y = random(operator.shape[1]), random(operator.shape[0])
    assert_allclose(
        operator @ x,
        (conv(torch.from_numpy(x).view(1, 3, 224, 224)) - conv.bias.view(64, 1, 1)).detach().flatten(),
        rtol=1e-10,
        atol=1e-10,
    )
    assert_allclose(np.vdot(operator @ x, y), np.vdot(x, operator.H @ y), rtol=1e-10)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("function", [as_linear_operator, to_scipy])
def test_half_precision_is_refused(function, dtype):
    with pytest.raises(
        TypeError, match=rf"conv.weight must have a dtype of SciPy's .* got {dtype}; convert it with float"
    ):
        function(layer(dtype), 4)


@pytest.mark.parametrize("function", [as_linear_operator, to_scipy])
def test_layers_are_checked(function):
    with pytest.raises(TypeError, match="conv must be one of"):
        function(nn.Linear(3, 4), 4)
    with pytest.raises(ValueError, match="must have elements, and on the meta device it has none"):
        function(layer().to("meta"), 4)
    with pytest.raises(ValueError, match=r"kernel_size \(3, 3\), got \(3, 1, 3, 3\)"):
        function(torch.ones(3, 1, 3, 3, device="meta"), Geometry.from_layer(layer(), 4))
    with pytest.raises(ValueError, match="must not be larger than the padded input"):
        function(nn.Conv2d(1, 1, 7), 4)
    conv = layer()
    conv.weight = nn.Parameter(torch.ones(3, 1, 3, 3))
    with pytest.raises(ValueError, match="weight must have shape"):
        function(conv, 4)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rows": range(49)}, ValueError, r"rows \(range\(0, 49\)\) must lie within the 48 rows"),
        ({"index_dtype": torch.int16}, ValueError, "must be torch.int32 or torch.int64"),
    ],
    ids=["rows", "index_dtype"],
)
def test_options_of_the_sparse_array_are_checked(options, error, message):
    with pytest.raises(error, match=message):
        to_scipy(layer(), 4, **options)


def test_sparse_array_makes_no_warning():
    """In a process of its own: PyTorch warns of its sparse tensors once in each."""
    code = "import torch, conv2affine; print(conv2affine.to_scipy(torch.nn.Conv1d(1, 1, 2), 3, drop_zeros=True).nnz)"
    result = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert (result.stdout, result.stderr) == ("4\n", "")


@pytest.mark.diagonal
@pytest.mark.parametrize("index_dtype", [None, torch.int32, torch.int64], ids=str)
@pytest.mark.parametrize("case", CASES, **by_id)
def test_sparse_array_is_the_matrix(case, index_dtype):
    conv = case.conv()
    array = to_scipy(conv, case.input_size, index_dtype=index_dtype)
    assert isinstance(array, scipy.sparse.csr_array)
    if index_dtype is not None:
        assert str(array.indices.dtype) == str(array.indptr.dtype) == str(index_dtype).removeprefix("torch.")
    assert array.has_canonical_format
    np.testing.assert_array_equal(array.toarray(), dense(conv, case.input_size))


@pytest.mark.parametrize("dtype", [*OPERATOR_DTYPES, torch.int8, torch.int64], ids=str)
def test_sparse_array_has_the_weights_dtype(dtype):
    conv = layer()
    conv.weight = nn.Parameter((10 * conv.weight).to(dtype), requires_grad=False)
    array = to_scipy(conv, 4)
    assert str(array.dtype) == str(dtype).removeprefix("torch.")
    np.testing.assert_array_equal(array.toarray(), dense(conv, 4))


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64], ids=str)
def test_sparse_array_shares_the_operators_memory(index_dtype, monkeypatch):
    made, csr_arrays = [], scipy_interop.csr_arrays

    def remembered(*args, **options):
        made.extend(csr_arrays(*args, **options))
        return tuple(made)

    monkeypatch.setattr(scipy_interop, "csr_arrays", remembered)
    array = to_scipy(layer(), 4, index_dtype=index_dtype)
    for ours, part in zip((array.indptr, array.indices, array.data), made, strict=True):
        assert np.shares_memory(ours, part.numpy())


def test_sparse_array_of_a_block_of_rows():
    conv = layer()
    matrix = dense(conv, 4)
    for rows in (range(7, 20), range(48), range(3, 3)):
        array = to_scipy(conv, 4, rows=rows)
        assert array.shape == (len(rows), 32)
        np.testing.assert_array_equal(array.toarray(), matrix[rows.start : rows.stop])


def test_sparse_array_without_zeros():
    conv = layer()
    with torch.no_grad():
        conv.weight[:, 0] = 0
    array = to_scipy(conv, 4, drop_zeros=True)
    assert 2 * array.nnz == to_scipy(conv, 4).nnz
    np.testing.assert_array_equal(array.toarray(), dense(conv, 4))


@pytest.mark.parametrize("padding", [((0, 1),), ((2, 0),), ((1, 3),)], ids=str)
@pytest.mark.parametrize("output_padding", [0, 1])
def test_operator_of_a_transposed_convolution_with_uneven_padding(padding, output_padding):
    weight = torch.arange(1.0, 13.0, dtype=torch.float64).view(2, 1, 6)
    options = {"input_size": 5, "stride": 2, "padding": padding, "output_padding": output_padding}
    geometry = Geometry(2, 1, (6,), transposed=True, **options)
    matrix, operator = to_matrix(weight, geometry).numpy(), as_linear_operator(weight, geometry)
    np.testing.assert_array_equal(operator.matmat(np.eye(matrix.shape[1])), matrix)
    np.testing.assert_array_equal(operator.rmatmat(np.eye(matrix.shape[0])), matrix.T)
