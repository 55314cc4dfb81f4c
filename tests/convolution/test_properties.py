"""Random geometries of all classes and options, degenerate ones included."""

import numpy as np
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

from conv2affine import as_linear_operator, plan, reference, to_bias, to_linear, to_matrix
from conv2affine.convolution.product import adjoint, forward
from tests.cases import geometries, layers, made


@given(layers())
@example((nn.Conv1d, {"in_channels": 1, "out_channels": 1, "kernel_size": 1}, (1,)))
@settings(max_examples=300, deadline=None)
def test_matrix_is_the_references_and_the_layers(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    matrix, bias = to_matrix(conv, input_size), to_bias(conv, input_size)
    assert torch.equal(matrix, reference.to_matrix(conv, input_size))
    x = torch.randn(conv.in_channels, *input_size, dtype=torch.float64)
    torch.testing.assert_close(matrix @ x.flatten() + bias, conv(x).flatten(), rtol=1e-12, atol=1e-12)
    assert plan(conv, input_size).nnz == matrix.count_nonzero()


@given(layers())
@settings(max_examples=200, deadline=None)
def test_sparse_layouts_are_the_matrix(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    matrix = to_matrix(conv, input_size)
    for layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_coo):
        sparse = to_matrix(conv, input_size, layout=layout)
        assert torch.equal(sparse.to_dense(), matrix)
        assert sparse.values().numel() == plan(conv, input_size).nnz


@given(layers())
@settings(max_examples=100, deadline=None)
def test_gradient_is_the_adjoint(drawn):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments).requires_grad_()
    gradient = torch.randn_like(to_matrix(conv, input_size))
    for layout in (torch.strided, torch.sparse_csr, torch.sparse_csc):
        conv.weight.grad = None
        (to_matrix(conv, input_size, layout=layout).to_dense() * gradient).sum().backward()
        # The matrix is linear in the weight: <A(w), G> == <w, A'(G)>
        inner = (conv.weight.grad * conv.weight).sum()
        torch.testing.assert_close(inner, (to_matrix(conv, input_size) * gradient).sum())


@given(layers(), st.data())
@settings(max_examples=100, deadline=None)
def test_row_blocks_make_up_the_matrix(drawn, data):
    layer, arguments, input_size = drawn
    conv = made(layer, arguments)
    whole = to_linear(conv, input_size).weight
    cut = data.draw(st.integers(0, len(whole)))
    blocks = [to_matrix(conv, input_size, rows=rows) for rows in (range(cut), range(cut, len(whole)))]
    assert torch.equal(torch.cat(blocks), whole)


@given(geometries())
@settings(max_examples=200, deadline=None)
def test_products_without_the_matrix_are_the_matrixs(geometry):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(geometry.weight_size, dtype=torch.complex128, generator=generator)
    matrix = to_matrix(weight, geometry)
    rows, cols = matrix.shape
    x = torch.randn(2, geometry.in_channels, *geometry.input_size, dtype=torch.complex128, generator=generator)
    y = torch.randn(2, geometry.out_channels, *geometry.output_size, dtype=torch.complex128, generator=generator)
    close = {"rtol": 1e-12, "atol": 1e-11}
    assert forward(x, weight, geometry).shape == y.shape
    assert adjoint(y, weight, geometry).shape == x.shape
    torch.testing.assert_close(forward(x, weight, geometry).flatten(1).T, matrix @ x.flatten(1).T, **close)
    torch.testing.assert_close(adjoint(y, weight, geometry).flatten(1).T, matrix.mH @ y.flatten(1).T, **close)
    operator = as_linear_operator(weight, geometry)
    np.testing.assert_allclose(operator.matmat(np.eye(cols)), matrix, **close)
    np.testing.assert_allclose(operator.rmatmat(np.eye(rows)), matrix.mH.resolve_conj(), **close)
    assert operator.matvec(np.ones(cols)).shape == (rows,)
    assert operator.rmatvec(np.ones(rows)).shape == (cols,)
