"""Some rows of a matrix, written out alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.matrix import to_matrix
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.layers import Convolution, to_csr_array
from conv2affine.network.matrices.matrix import Array, Matrix, Selection, Sparse
from conv2affine.network.matrices.pattern import Counts

__all__ = ["take_rows"]


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
        weight = self.layer.weight.detach().to(torch.from_numpy(np.empty(0, dtype)).dtype)
        return to_csr_array(to_matrix(weight, self.layer.geometry, layout=torch.sparse_csr, rows=self.rows))

    def _count(self, axis: int) -> Counts:
        counts = self.layer.counts(axis)
        return counts[self.rows.start : self.rows.stop] if axis == 1 else counts
