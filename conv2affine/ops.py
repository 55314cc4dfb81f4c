"""The compiled operators, `torch.ops.conv2affine.*`, in terms of a `Geometry`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.overrides import has_torch_function_unary

from conv2affine.extension import _C
from conv2affine.geometry import Geometry

__all__ = [
    "OPERATORS",
    "Block",
    "coo",
    "csr",
    "dense",
    "dense_adjoint",
    "dense_resident_bytes",
    "entries",
    "is_transformed",
    "sparse_adjoint",
    "values",
]

OPERATORS = torch.ops.conv2affine
PLAIN = (Tensor, torch.nn.Parameter)


class Block(NamedTuple):
    """Rows [row_start, row_stop) of the matrix of a convolution; named and ordered as in the schemas of the operators.

    For what the other fields are, see csrc/convolution.h.
    """

    geometry: Sequence[int]
    rule: str
    row_start: int
    row_stop: int

    @property
    def convolution(self) -> tuple[Sequence[int], str]:
        """The fields that say which convolution it is."""
        return self[:-2]

    @property
    def input_size(self) -> Sequence[int]:
        return self.geometry[: len(self.geometry) // 5]

    @property
    def output_size(self) -> Sequence[int]:
        dims = len(self.geometry) // 5
        return self.geometry[dims : 2 * dims]


def dense(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> Tensor:
    """Rows [row_start, row_stop) of the matrix as a dense tensor; see csrc/dense.h."""
    result: Tensor = _call("dense", geometry.canonical(weight), *_block(geometry, row_start, row_stop))
    return result


def csr(
    weight: Tensor, geometry: Geometry, row_start: int, row_stop: int, index_dtype: torch.dtype, *, transpose: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """(crow, col, values) of rows [row_start, row_stop) of the matrix or its transpose; see csrc/sparse.h."""
    block = _block(geometry, row_start, row_stop)
    crow, col, values = _call("csr", geometry.canonical(weight), *block, index_dtype, transpose)
    return crow, col, values


def coo(weight: Tensor, geometry: Geometry, row_start: int, row_stop: int) -> tuple[Tensor, Tensor]:
    """(indices, values) of rows [row_start, row_stop) of the matrix; see csrc/sparse.h."""
    indices, values = _call("coo", geometry.canonical(weight), *_block(geometry, row_start, row_stop))
    return indices, values


def values(weight: Tensor, geometry: Geometry) -> Tensor:
    """The values of `csr` and of `coo` alone, for all rows; see csrc/sparse.h."""
    result: Tensor = _call("values", geometry.canonical(weight), *_block(geometry), False)
    return result


def dense_adjoint(matrix: Tensor, geometry: Geometry, row_start: int = 0) -> Tensor:
    """The weight, each element the sum of the entries that it fills in a dense matrix; see csrc/adjoint.h.

    The matrix is the whole one, or a block of its rows from `row_start` on.
    """
    block = _block(geometry, row_start, row_start + len(matrix))
    return geometry.from_canonical(_call("dense_adjoint", matrix, geometry.canonical_size, *block))


def sparse_adjoint(values: Tensor, geometry: Geometry) -> Tensor:
    """The same from the values of a CSR matrix that has the geometry's pattern."""
    weight = _call("sparse_adjoint", values, geometry.canonical_size, *_block(geometry), False)
    return geometry.from_canonical(weight)


def entries(geometry: Geometry, rows: range) -> int:
    """Number of entries in these rows of the matrix."""
    return _C.entries(geometry.canonical_size, *_block(geometry, rows.start, rows.stop), False)


def dense_resident_bytes(geometry: Geometry, dtype: torch.dtype, rows: range) -> int:
    """Bytes of memory that these rows take as a dense tensor on the CPU, once they are filled."""
    convolution = _block(geometry).convolution
    return _C.dense_resident_bytes(geometry.canonical_size, *convolution, len(rows), dtype.itemsize)


def is_transformed() -> bool:
    """Whether a transform of torch.func or forward mode is active; always False while torch.compile traces."""
    return not torch.compiler.is_compiling() and (
        torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
    )


def _block(geometry: Geometry, row_start: int = 0, row_stop: int | None = None) -> Block:
    """The arguments of these rows; by default, of all."""
    return Block(*geometry.operator_arguments(), row_start, geometry.shape[0] if row_stop is None else row_stop)


def _call(name: str, x: Tensor, *arguments: Any) -> Any:
    """An operator, by the shortest way."""
    is_plain = type(x) in PLAIN and not has_torch_function_unary(x)  # else, sizes may be symbols
    if x.requires_grad or not is_plain or torch.compiler.is_compiling() or is_transformed():
        return getattr(OPERATORS, name).default(x, *arguments)
    # There is no derivative to record. From C++ and below autograd, which is written in Python, a small matrix takes
    # less than half of the time.
    return getattr(_C, name)(x, *arguments)
