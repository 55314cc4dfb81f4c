"""The compiled operators, `torch.ops.conv2affine.*`, in terms of a `Geometry`."""

from __future__ import annotations

from math import prod

import torch
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.operators.derivatives import call
from conv2affine.operators.extension import _C
from conv2affine.operators.linear_maps import Block


def dense(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> Tensor:
    """Rows [row_start, row_stop) of the matrix as a dense tensor; see csrc/dense.h."""
    result: Tensor = call("dense", geometry.group_weight(weight), *_block(geometry, row_start, row_stop))
    return result


def csr(
    weight: Tensor, geometry: Geometry, row_start: int, row_stop: int, index_dtype: torch.dtype, *, by_columns: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, values) of rows [row_start, row_stop) of the matrix, or of its transpose; see csrc/sparse.h."""
    block = _block(geometry, row_start, row_stop)
    crow, col, values = call("csr", geometry.group_weight(weight), *block, by_columns, index_dtype)
    return crow, col, values


def coo(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of rows [row_start, row_stop) of the matrix; see csrc/sparse.h."""
    indices, values = call("coo", geometry.group_weight(weight), *_block(geometry, row_start, row_stop))
    return indices, values


def values(weight: Tensor, geometry: Geometry) -> Tensor:
    """The values of `csr` and of `coo` alone, for all rows; see csrc/sparse.h."""
    result: Tensor = call("values", geometry.group_weight(weight), *_block(geometry), False)
    return result


def bias(bias: Tensor, geometry: Geometry) -> Tensor:
    """The bias of the linear layer, one element per row of the matrix; see csrc/bias.h."""
    result: Tensor = call("bias", bias, prod(geometry.output_size))
    return result


def dense_adjoint(matrix: Tensor, geometry: Geometry, row_start: int = 0) -> Tensor:
    """The weight, each element the sum of the entries that it fills in a dense matrix; see csrc/adjoint.h.

    The matrix is the whole one, or a block of its rows from `row_start` on.
    """
    block = _block(geometry, row_start, row_start + len(matrix))
    return geometry.ungroup_weight(call("dense_adjoint", matrix, geometry.grouped_size, *block))


def sparse_adjoint(values: Tensor, geometry: Geometry) -> Tensor:
    """The same from the values of a CSR matrix that has the geometry's pattern."""
    weight = call("sparse_adjoint", values, geometry.grouped_size, *_block(geometry), False)
    return geometry.ungroup_weight(weight)


def nnz(geometry: Geometry, rows: range) -> int:
    """Number of entries in these rows of the matrix."""
    return _C.nnz(geometry.grouped_size, *_block(geometry, rows.start, rows.stop), False)


def dense_resident_bytes(geometry: Geometry, dtype: torch.dtype, rows: range) -> int:
    """Bytes of memory that these rows take as a dense tensor on the CPU, once they are filled."""
    convolution = _block(geometry).convolution
    return _C.dense_resident_bytes(geometry.grouped_size, *convolution, len(rows), dtype.itemsize)


def _block(geometry: Geometry, row_start: int = 0, row_stop: int | None = None) -> Block:
    """The arguments of these rows; by default, of all."""
    return Block(*geometry.operator_arguments(), row_start, geometry.shape[0] if row_stop is None else row_stop)
