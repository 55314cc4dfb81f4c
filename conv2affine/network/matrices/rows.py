"""Some rows of a matrix, written out alone."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.matrix import to_matrix
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.layers import Convolution, to_csr_array
from conv2affine.network.matrices.matrix import Array, Matrix, Selection, Sparse
from conv2affine.network.matrices.pattern import Counts

# In a block of rows, those of the left factors of products included.
BLOCK_ENTRIES = 2**20


def take_rows(matrix: Matrix, rows: range) -> Matrix:
    """The rows of a matrix; no others of it are written out, but for the factors on the right of products."""
    match matrix:
        case Product(outer, inner):  # rows of A B -> (rows of A) B
            return Product(take_rows(outer, rows), inner)
        case Sum(first, second):
            return Sum(take_rows(first, rows), take_rows(second, rows))
        case Convolution():
            return _Rows(matrix, rows)
        case Sparse():
            return Sparse(matrix.matrix[rows.start : rows.stop])
    return Product(Selection(np.arange(rows.start, rows.stop), matrix.shape[0]), matrix)


def by_rows(matrix: Matrix) -> Matrix:
    """The same matrix for many calls of `take_rows`: what these would write out each time is written out once."""
    match matrix:
        case Product(outer, inner):
            return Product(by_rows(outer), inner if isinstance(inner, Selection) else Sparse(inner.csr()))
        case Sum(first, second):
            return Sum(by_rows(first), by_rows(second))
        case Convolution() | Sparse():
            return matrix
    return Sparse(matrix.csr())


def entries_at_once(matrix: Matrix) -> int:
    """The most entries that `by_rows` holds."""
    match matrix:
        case Product(outer, inner):
            return entries_at_once(outer) + inner.nnz
        case Sum(first, second):
            return entries_at_once(first) + entries_at_once(second)
        case Convolution():
            return 0
    return matrix.nnz


def rows_at_once(matrix: Matrix) -> int:
    """How many rows have about `BLOCK_ENTRIES` entries together."""
    return max(1, BLOCK_ENTRIES * matrix.shape[0] // max(1, _entries(matrix)))


def _entries(matrix: Matrix) -> int:
    """Those of a matrix, and of the left factors of products in it."""
    match matrix:
        case Product(outer, _):
            return matrix.nnz + _entries(outer)
        case Sum(first, second):
            return _entries(first) + _entries(second)
    return matrix.nnz


@dataclass(frozen=True, eq=False)
class _Rows(Matrix):
    """Rows of a convolution."""

    layer: Convolution
    rows: range

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.layer.shape[1]

    @property
    def numbers(self) -> tuple[Any, ...]:
        return self.layer.numbers

    def apply(self, x: Array) -> Array:
        return self.layer.apply(x)[:, self.rows.start : self.rows.stop]

    def csr(self, dtype: Any = np.float64) -> csr_array:
        weight, g, rows = self.layer.weight.detach(), self.layer.geometry, self.rows
        if g.groups == 1 and rows:  # only the channels of these rows: a large weight takes long to convert
            positions = prod(g.output_size)
            first, stop = rows.start // positions, -(-rows.stop // positions)
            weight = weight.narrow(1 if g.transposed else 0, first, stop - first)
            g = dataclasses.replace(g, out_channels=stop - first)
            rows = range(rows.start - first * positions, rows.stop - first * positions)
        weight = weight.to(torch.from_numpy(np.empty(0, dtype)).dtype)
        return to_csr_array(to_matrix(weight, g, layout=torch.sparse_csr, rows=rows))

    def _count(self, axis: int) -> Counts:
        counts = self.layer.counts(axis)
        return counts[self.rows.start : self.rows.stop] if axis == 1 else counts
