"""Calls of all operators for one layer, and the comparison of their results between two backends."""

import torch

from conv2affine import Geometry
from tests.conftest import assert_same_bits

OPS = torch.ops.conv2affine
DTYPES = [torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.half, torch.bfloat16]
DTYPES += [torch.float32, torch.float64, torch.complex64, torch.complex128]


def arguments_of(conv, input_size, dtype=torch.float64):
    """(weight, geometry, padding_mode, transposed) as the operators take them."""
    geometry = Geometry.from_layer(conv, input_size)
    weight = geometry.group_weight(conv.weight.detach().clone())
    weight[(0,) * weight.dim()] = -0.0  # a sum with 0.0 would lose the sign
    if not dtype.is_floating_point and not dtype.is_complex:
        weight = (weight * 20).trunc()  # so small that no sum of them overflows
        weight = weight.abs() if dtype is torch.uint8 else weight
    weight = weight.to(dtype)
    return weight, *geometry.operator_arguments()


def calls(weight, geometry, padding_mode, transposed, rows, cols):
    """(operator, arguments) of all of them, for a range of rows and, in order of columns, of columns.

    The entries that go into the adjoints are whole numbers: their sums are exact in any order, also those of half
    types, unless they are rounded on the way.
    """
    size, mode = list(weight.shape), (geometry, padding_mode, transposed)
    has_adjoint = weight.dtype.is_floating_point or weight.dtype.is_complex

    def entries_like(matrix):
        return torch.randint(1000, matrix.shape).to(matrix.dtype)

    yield "dense", (weight, *mode, *rows)
    yield "coo", (weight, *mode, *rows)
    if has_adjoint:
        dense = entries_like(OPS.dense(weight, *mode, *rows))
        yield "dense_adjoint", (dense, size, *mode, *rows)
        yield "dense_adjoint", (dense.t().contiguous().t(), size, *mode, *rows)
    for by_columns, block in ((False, rows), (True, cols)):
        arguments = (*mode, *block, by_columns)
        yield "csr", (weight, *arguments, torch.int32)
        yield "csr", (weight, *arguments, torch.int64)
        yield "values", (weight, *arguments)
        if has_adjoint:
            yield "sparse_adjoint", (entries_like(OPS.values(weight, *arguments)), size, *arguments)
    yield "bias", (weight.flatten()[:5], 7)


def assert_same(run, op, arguments):
    """run(op, *arguments) is what the CPU gives, bit by bit."""
    expected, results = getattr(OPS, op)(*arguments), run(op, *arguments)
    for cpu, result in zip(*((r if isinstance(r, tuple) else (r,)) for r in (expected, results)), strict=True):
        assert result.is_contiguous()
        assert_same_bits(result.cpu(), cpu, (op, arguments[1:]))
