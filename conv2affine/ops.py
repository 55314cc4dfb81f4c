"""The compiled operators, `torch.ops.conv2affine.*`, in terms of a `Geometry`."""

from __future__ import annotations

import torch
from torch import Tensor

from conv2affine.derivatives import call, is_transformed, linear
from conv2affine.extension import _C
from conv2affine.geometry import Geometry

__all__ = ["coo", "csr", "dense", "dense_adjoint", "dense_resident_bytes", "entries", "sparse_adjoint", "values"]


def dense(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> Tensor:
    """Rows [row_start, row_stop) of the matrix, strided; see csrc/dense.h."""
    return linear("dense", geometry.group_weight(weight), *geometry.operator_arguments(), row_start, row_stop)


def csr(
    weight: Tensor, geometry: Geometry, row_start: int, row_stop: int, index_dtype: torch.dtype, *, transpose: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, values) of rows [row_start, row_stop) of the matrix or its transpose; see csrc/sparse.h."""
    grouped, arguments = geometry.group_weight(weight), (*geometry.operator_arguments(), row_start, row_stop)
    crow, col, values = call("csr", _plain(grouped), *arguments, index_dtype, transpose)
    return crow, col, linear("values", grouped, *arguments, transpose) if is_transformed() else values


def coo(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of rows [row_start, row_stop) of the matrix; see csrc/sparse.h."""
    grouped, arguments = geometry.group_weight(weight), (*geometry.operator_arguments(), row_start, row_stop)
    indices, values = call("coo", _plain(grouped), *arguments)
    return indices, linear("values", grouped, *arguments, False) if is_transformed() else values


def _plain(weight: Tensor) -> Tensor:
    """The weight; under a transform, which concerns values only, any tensor like it: for the pattern."""
    return torch.empty(weight.shape, dtype=weight.dtype, device=weight.device) if is_transformed() else weight


def values(weight: Tensor, geometry: Geometry) -> Tensor:
    """The values of `csr` and of `coo` alone, for all rows; see csrc/sparse.h."""
    arguments = (*geometry.operator_arguments(), 0, geometry.shape[0], False)
    return linear("values", geometry.group_weight(weight), *arguments)


def dense_adjoint(matrix: Tensor, geometry: Geometry, row_start: int = 0) -> Tensor:
    """The weight, each element the sum of the entries that it fills in a strided matrix; see csrc/adjoint.h.

    The matrix is the whole one, or a block of its rows from `row_start` on.
    """
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), row_start, row_start + len(matrix))
    return geometry.ungroup_weight(linear("dense_adjoint", matrix, *arguments))


def sparse_adjoint(values: Tensor, geometry: Geometry) -> Tensor:
    """The same of the values of a CSR matrix that has the geometry's pattern."""
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, geometry.shape[0], False)
    return geometry.ungroup_weight(linear("sparse_adjoint", values, *arguments))


def entries(geometry: Geometry, rows: range) -> int:
    """Number of entries in these rows of the matrix that a weight goes to."""
    return _C.entries(geometry.grouped_size, *geometry.operator_arguments(), rows.start, rows.stop, False)


def dense_resident_bytes(geometry: Geometry, dtype: torch.dtype, rows: range) -> int:
    """Bytes that these rows, strided, have in memory on the CPU, once they are filled."""
    return _C.dense_resident_bytes(geometry.grouped_size, *geometry.operator_arguments(), len(rows), dtype.itemsize)
