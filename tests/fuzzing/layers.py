"""Random layers, converted in every way, against PyTorch and the reference."""

import random
import warnings

import numpy
import torch
from torch.testing import assert_close

from conv2affine import Geometry, as_linear_operator, plan, reference, to_bias, to_conv, to_linear, to_matrix, to_scipy
from tests.fuzzing.random_layers import random_layer

SPARSE = (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo)


def fuzz(seed: int, size: int) -> str:
    """Convert `size` layers."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Using padding=.same. with even kernel lengths")
        warnings.filterwarnings("ignore", "Complex modules are a new feature")
        for number in range(seed, seed + size):
            try:
                check(number)
            except Exception as error:
                raise AssertionError(f"layer of seed {number}: {random_layer(number)}") from error
    return "all equal"


def check(seed: int) -> None:
    """One layer, in every layout, by blocks, for SciPy, and back."""
    conv, input_size = random_layer(seed)
    assert torch.equal(to_matrix(conv, input_size), reference.to_matrix(conv, input_size))
    dtype = torch.complex128 if conv.weight.is_complex() else torch.float64
    conv.to(dtype)
    x = torch.randn(2, conv.in_channels, *input_size, dtype=dtype, generator=torch.Generator().manual_seed(seed))
    matrix, expected = to_matrix(conv, input_size), conv(x).flatten(1)
    assert_close(x.flatten(1) @ matrix.T + to_bias(conv, input_size), expected, rtol=1e-11, atol=1e-11)

    sizes = plan(conv, input_size)
    for layout in SPARSE:
        sparse = to_matrix(conv, input_size, layout=layout)
        assert torch.equal(sparse.to_dense(), matrix)
        assert sparse.values().numel() == sizes.nnz
    fc = to_linear(conv, input_size, layout=torch.sparse_csr)
    assert_close(fc(x.flatten(1)), expected, rtol=1e-11, atol=1e-11)

    cut = random.Random(seed).randint(0, sizes.rows)
    for layout in (torch.strided, torch.sparse_csr, torch.sparse_coo):
        blocks = [range(cut), range(cut, sizes.rows)]
        parts = [to_matrix(conv, input_size, layout=layout, rows=rows).to_dense() for rows in blocks]
        assert torch.equal(torch.cat(parts), matrix)

    assert numpy.array_equal(to_scipy(conv, input_size).toarray(), matrix.numpy())
    product = as_linear_operator(conv, input_size) @ x[0].flatten().numpy()
    assert_close(torch.from_numpy(product), matrix @ x[0].flatten(), rtol=1e-11, atol=1e-11)

    again = to_conv(to_linear(conv, input_size), Geometry.from_layer(conv, input_size))
    assert_close(to_matrix(again, input_size), matrix, rtol=1e-9, atol=1e-9)
