"""Sparse layouts, against the dense matrix (bitwise) and what PyTorch and SciPy ask of them."""

import pytest
import scipy.sparse
import torch
from torch import nn

from conv2affine import (
    Geometry,
    conv_matrix,
    conv_transpose_matrix,
    plan,
    to_linear,
    to_linear_network,
    to_matrix,
    to_mlp,
)
from conv2affine.convolution.sizes import layout_name
from tests.cases import CASES
from tests.conftest import assert_same_bits

LAYOUTS = [torch.sparse_csr, torch.sparse_csc, torch.sparse_coo]
BY_ROWS = [torch.sparse_csr, torch.sparse_coo]
INDEX_DTYPES = [torch.int32, torch.int64]

by_id = {"ids": lambda case: case.id}


@pytest.fixture(autouse=True)
def invariants():
    """PyTorch's own check of each sparse tensor that is made: order, bounds, no duplicates."""
    with torch.sparse.check_sparse_tensor_invariants(True):
        yield


def checked(matrix):
    """The same matrix, made again of its parts with PyTorch's checks on: ours are off where it is built."""
    if matrix.layout is torch.sparse_coo:
        assert matrix.is_coalesced()
        fresh = torch.sparse_coo_tensor(matrix.indices(), matrix.values(), matrix.shape).coalesce()
        assert torch.equal(fresh.indices(), matrix.indices())
        return fresh
    if matrix.layout is torch.sparse_csr:
        parts = matrix.crow_indices(), matrix.col_indices()
    else:
        parts = matrix.ccol_indices(), matrix.row_indices()
    assert parts[0].dtype == parts[1].dtype
    return torch.sparse_compressed_tensor(*parts, matrix.values(), matrix.shape, layout=matrix.layout)


@pytest.mark.diagonal
@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("case", CASES, **by_id)
def test_equals_dense(case, layout):
    conv = case.conv().requires_grad_(False)
    dense = to_matrix(conv, case.input_size)
    matrix = to_matrix(conv, case.input_size, layout=layout)
    assert (matrix.layout, matrix.dtype, matrix.shape) == (layout, dense.dtype, dense.shape)
    assert torch.equal(checked(matrix).to_dense(), dense)
    assert matrix.values().numel() == plan(conv, case.input_size).nnz


@pytest.mark.parametrize(("name", "layout"), [("dense", torch.strided), ("sparse", torch.sparse_csr)])
def test_names_of_layouts(name, layout):
    """Those of the functions for whole networks."""
    conv = nn.Conv2d(3, 3, 3, padding=1)
    weight = conv.weight.detach()
    assert to_matrix(conv, 4, layout=name).layout is layout
    assert conv_matrix(weight, 4, layout=name).layout is layout
    assert conv_transpose_matrix(weight, 4, layout=name).layout is layout
    assert to_linear(conv, 4, layout=name).weight.layout is layout
    model, x = nn.Sequential(conv), torch.rand(1, 3, 4, 4)
    for given in (name, layout):
        assert to_linear(model, x, layout=given).weight.layout is layout
        assert to_linear_network(model, x, layout=given)._0.weight.layout is layout
        assert to_mlp(model, x, layout=given)[1].weight.layout is layout
        assert [row.layout for row in plan(model, x, layout=given).rows] == [name]


@pytest.mark.diagonal
@pytest.mark.parametrize("index_dtype", INDEX_DTYPES, ids=str)
@pytest.mark.parametrize("case", CASES[::3], **by_id)
def test_has_scipys_canonical_format(case, index_dtype):
    conv = case.conv().requires_grad_(False)
    matrix = to_matrix(conv, case.input_size, layout=torch.sparse_csr, index_dtype=index_dtype)
    crow, col = matrix.crow_indices(), matrix.col_indices()
    assert (crow.dtype, col.dtype) == (index_dtype, index_dtype)
    array = scipy.sparse.csr_array((matrix.values().numpy(), col.numpy(), crow.numpy()), matrix.shape)
    array.check_format(full_check=True)
    assert array.has_canonical_format


@pytest.mark.diagonal
@pytest.mark.parametrize("layout", BY_ROWS, ids=str)
@pytest.mark.parametrize("case", CASES[::3], **by_id)
def test_rows_are_a_block(case, layout):
    conv = case.conv().requires_grad_(False)
    whole = to_matrix(conv, case.input_size)
    total = len(whole)
    for rows in (range(0), range(total), range(total // 3, total), range(total // 2, total // 2 + 1)):
        block = to_matrix(conv, case.input_size, layout=layout, rows=rows)
        assert torch.equal(checked(block).to_dense(), whole[rows.start : rows.stop])


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize(
    "dtype", [torch.float16, torch.bfloat16, torch.float32, torch.complex64, torch.uint8, torch.int64], ids=str
)
def test_values_of_every_dtype(dtype, layout):
    weight = torch.randint(0, 9, (4, 2, 3, 3)).to(dtype)
    options = {"padding": 2, "padding_mode": "replicate", "groups": 2}
    values = conv_matrix(weight, (4, 5), layout=layout, **options).values()
    assert values.dtype == dtype
    expected = conv_matrix(weight.to(torch.complex128), (4, 5), layout=layout, **options).values()
    assert torch.equal(values.to(torch.complex128), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
@pytest.mark.parametrize("mode", ["zeros", "circular"])
def test_special_values_are_copied_bit_by_bit(layout, mode):
    weight = torch.tensor([[[float("inf"), -0.0, float("nan"), float("-inf")]]])
    dense = conv_matrix(weight, 7, padding=1, padding_mode=mode)
    if layout is torch.sparse_csc:
        dense = dense.T
    expected = dense[(dense != 0) | dense.signbit()]
    assert_same_bits(conv_matrix(weight, 7, padding=1, padding_mode=mode, layout=layout).values(), expected)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_zeros_of_the_weight_are_entries_unless_dropped(layout):
    weight = torch.tensor([[[1.0, 0.0, 2.0]], [[0.0, 0.0, 0.0]], [[float("nan"), -0.0, 3.0]]])
    dense = conv_matrix(weight, 6, padding=1)
    kept = conv_matrix(weight, 6, padding=1, layout=layout)
    dropped = conv_matrix(weight, 6, padding=1, layout=layout, drop_zeros=True)
    assert kept.values().numel() == 3 * 16
    assert dropped.values().numel() == dense.count_nonzero()
    assert torch.equal(checked(dropped).to_dense().nan_to_num(99), dense.nan_to_num(99))


def test_dropped_zeros_keep_the_gradient_of_the_rest():
    weight = torch.tensor([[[1.0, 0.0, 2.0]]], requires_grad=True)
    conv_matrix(weight, 4, layout=torch.sparse_csr, drop_zeros=True).values().sum().backward()
    assert weight.grad.tolist() == [[[2, 0, 2]]]


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc], ids=str)
def test_index_dtype_is_int32_where_it_fits(layout):
    matrix = conv_matrix(torch.ones(1, 1, 3), 5, layout=layout)
    indices = matrix.crow_indices() if layout is torch.sparse_csr else matrix.ccol_indices()
    assert indices.dtype == torch.int32


HUGE = 10**9  # 3e9 entries


def test_more_entries_than_int32_counts():
    weight = torch.tensor([[[1, 2, 3]]], dtype=torch.int8)
    with pytest.raises(ValueError, match=r"counts to 2147483647, too few for 2999999998 entries in 1000000000 rows"):
        conv_matrix(weight, HUGE, padding=1, layout=torch.sparse_csr, index_dtype=torch.int32)
    geometry = Geometry(1, 1, (3,), input_size=HUGE, padding=1)
    arguments = (geometry.group_weight(weight), *geometry.operator_arguments(), 0, HUGE, False, torch.int32)
    with pytest.raises(ValueError, match="index_dtype int32 counts to 2147483647"):
        torch.ops.conv2affine.csr(*arguments)
    block = conv_matrix(weight, HUGE, padding=1, layout=torch.sparse_csr, rows=range(HUGE - 3, HUGE))
    assert block.crow_indices().tolist() == [0, 3, 6, 8]
    assert (HUGE - block.col_indices()).tolist() == [4, 3, 2, 3, 2, 1, 2, 1]
    assert block.values().tolist() == [1, 2, 3, 1, 2, 3, 1, 2]


@pytest.mark.parametrize("layout", BY_ROWS, ids=str)
def test_columns_beyond_int32(layout):
    options = {"stride": 2**24, "rows": range(256, 257)}
    block = conv_matrix(torch.ones(1, 1, 2), 2**33, layout=layout, **options)
    assert block.to_sparse_coo().indices().tolist() == [[0, 0], [2**32, 2**32 + 1]]
    with pytest.raises(ValueError, match="too few for 2 entries in 1 rows and 8589934592 columns"):
        conv_matrix(torch.ones(1, 1, 2), 2**33, layout=torch.sparse_csr, index_dtype=torch.int32, **options)


def test_entries_across_threads_and_runs():
    """Enough rows for several threads, whose chunks begin within runs of the interior."""
    weight, options = torch.randn(8, 4, 3, 3), {"padding": 1, "groups": 4}
    dense = conv_matrix(weight, (30, 31), **options)
    threads = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        for index_dtype in INDEX_DTYPES:
            matrix = conv_matrix(weight, (30, 31), **options, layout=torch.sparse_csr, index_dtype=index_dtype)
            assert torch.equal(checked(matrix).to_dense(), dense)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layout": "csr"}, r"layout \('csr'\) must be one of torch.strided, torch.sparse_csr"),
        ({"layout": "auto"}, r"must be one of .*, \"dense\" or \"sparse\"$"),
        ({"layout": ["dense"]}, r"layout \(.*\) must be one of torch.strided"),
        ({"layout": torch.sparse_bsr}, "few convolutions have entries in dense blocks, see docs/sparse.md"),
        ({"layout": torch.sparse_csr, "index_dtype": torch.int16}, r"index_dtype \(torch.int16\) must be torch.int32"),
        ({"layout": torch.sparse_coo, "index_dtype": torch.int32}, "must be torch.int64 with layout torch.sparse_coo"),
        ({"index_dtype": torch.int32}, "must be left out with layout torch.strided"),
        ({"drop_zeros": True}, "must be left out with layout torch.strided"),
        ({"layout": torch.sparse_csc, "rows": range(1)}, r"rows \(range\(0, 1\)\) must be left out .*to_sparse_csc"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, dict) else None,
)
def test_what_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        conv_matrix(torch.ones(1, 1, 3), 5, **options)


@pytest.mark.parametrize("case", CASES[::4], **by_id)
def test_plan_knows_the_bytes(case):
    conv = case.conv().requires_grad_(False)
    planned = plan(conv, case.input_size)
    for layout in LAYOUTS:
        for index_dtype in INDEX_DTYPES[layout is torch.sparse_coo :]:
            chosen = {} if layout is torch.sparse_coo else {"index_dtype": index_dtype}
            matrix = to_matrix(conv, case.input_size, layout=layout, **chosen)
            if layout is torch.sparse_coo:
                parts = [matrix.indices()]
            elif layout is torch.sparse_csr:
                parts = [matrix.crow_indices(), matrix.col_indices()]
            else:
                parts = [matrix.ccol_indices(), matrix.row_indices()]
            size = sum(part.nbytes for part in (*parts, matrix.values()))
            assert planned.bytes[layout_name(layout, index_dtype)] == size


@pytest.mark.parametrize("layout", [torch.sparse_csc, torch.sparse_coo], ids=str)
def test_layer_of_another_layout_is_refused(layout):
    with pytest.raises(ValueError, match=r"must be torch.strided or torch.sparse_csr in a linear layer"):
        to_linear(nn.Conv1d(1, 1, 3), 4, layout=layout)


@pytest.mark.parametrize("layout", [torch.strided, *LAYOUTS], ids=str)
def test_device_is_the_weights_and_not_the_default_one(layout):
    weight = torch.ones(1, 1, 3)
    with torch.device("meta"):
        assert conv_matrix(weight, 5, layout=layout).device.type == "cpu"


@pytest.mark.parametrize("layout", [torch.sparse_csr, torch.sparse_csc], ids=str)
def test_gradient_of_complex_weights_is_refused_where_pytorch_has_none(layout):
    conv = nn.Conv1d(1, 1, 3, dtype=torch.complex64)
    with pytest.raises(ValueError, match=r"torch.sparse_coo for complex weights that require gradients"):
        to_matrix(conv, 8, layout=layout)
    with torch.no_grad():
        assert to_matrix(conv, 8, layout=layout).shape == (6, 8)
    (ours,) = torch.autograd.grad(to_matrix(conv, 8, layout=torch.sparse_coo).to_dense().abs().sum(), conv.weight)
    (expected,) = torch.autograd.grad(to_matrix(conv, 8).abs().sum(), conv.weight)
    torch.testing.assert_close(ours, expected)
