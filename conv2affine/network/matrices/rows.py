"""Some rows of a matrix, written out alone: of a product, with those rows of the right factor that they read."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from conv2affine.matrix import to_matrix
from conv2affine.network.matrices.expressions import Product, Sum, has_shared_parts
from conv2affine.network.matrices.layers import Convolution, Repeated, Separable, to_csr_array
from conv2affine.network.matrices.matrix import Matrix, Selection, Sparse

# In a block of rows, those of the factors of products included; and in a factor that is written out once.
BLOCK_ENTRIES = 2**20

Index = NDArray[np.int64]


def take_rows(matrix: Matrix, rows: range) -> Matrix:
    """The rows of a matrix, which can be written out."""
    return _Rows(matrix, np.arange(rows.start, rows.stop))


def by_rows(matrix: Matrix) -> Matrix:
    """The same matrix for many calls of `take_rows`: small factors, and what has a part twice, are written out once."""
    match matrix:
        case Product() | Sum() if has_shared_parts(matrix):
            return Sparse(matrix.csr())
        case Product(outer, inner):
            return Product(by_rows(outer), Sparse(inner.csr()) if _is_small(inner) else by_rows(inner))
        case Sum(first, second):
            return Sum(by_rows(first), by_rows(second))
    return matrix


def held_entries(matrix: Matrix) -> int:
    """Those that `by_rows` writes out, at most, and parts of interpolations that `take_rows` does."""
    match matrix:
        case Product() | Sum() if has_shared_parts(matrix):
            return matrix.nnz
        case Product(outer, inner):
            return held_entries(outer) + (inner.nnz if _is_small(inner) else held_entries(inner))
        case Sum(first, second):
            return held_entries(first) + held_entries(second)
        case Separable():
            return matrix.channel.nnz
    return 0


def row_blocks(matrix: Matrix, rows: range, max_rows: int | None = None) -> Iterator[range]:
    """`rows` in blocks that need about `BLOCK_ENTRIES` entries each, or of a single row."""
    start, longest = rows.start, min(len(rows), max_rows or len(rows))
    step = longest
    while start < rows.stop:
        block = range(start, min(start + step, rows.stop))
        if len(block) > 1 and entries_of(matrix, block) > BLOCK_ENTRIES:
            step = len(block) // 2
            continue
        yield block
        start, step = block.stop, min(2 * step, longest)


def entries_of(matrix: Matrix, rows: range) -> int:
    """The most entries that are written out for these rows of `by_rows(matrix)`, those of factors included."""
    mask = np.zeros(matrix.shape[0], bool)
    mask[rows.start : rows.stop] = True
    return _entries(matrix, mask)


def _entries(matrix: Matrix, rows: NDArray[np.bool_]) -> int:
    own = int(matrix.counts(1)[rows].sum())
    match matrix:
        case Product(outer, Selection() | Sparse()):
            return own + _entries(outer, rows)
        case Product(outer, inner):
            return own + _entries(outer, rows) + _entries(inner, outer.reads(rows))
        case Sum(first, second):
            return own + _entries(first, rows) + _entries(second, rows)
    return own


def _is_small(inner: Matrix) -> bool:
    return not isinstance(inner, Selection) and inner.nnz <= BLOCK_ENTRIES


@dataclass(frozen=True, eq=False)
class _Rows(Matrix):
    """Rows of a matrix, each once or more often, in any order."""

    matrix: Matrix
    index: Index

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.index), self.matrix.shape[1]

    def csr(self, dtype: Any = np.float64) -> csr_array:
        match self.matrix:
            case Product() | Sum() if has_shared_parts(self.matrix):
                return self.matrix.csr(dtype)[self.index]
            case Product(outer, inner):  # rows of A B -> (rows of A) B
                return self._product(outer, inner).csr(dtype)
            case Sum(first, second):
                return Sum(_Rows(first, self.index), _Rows(second, self.index)).csr(dtype)
            case Convolution() as conv:
                return self._convolution(conv, dtype)
            case Repeated(block, _):
                return self._copies(block, dtype)
            case Separable() as separable:
                return self._copies(separable.channel, dtype)
            case Selection() as selection:
                return self._selection(selection).csr(dtype)
            case Sparse(matrix, _):
                return matrix[self.index].astype(dtype, copy=False)
        return self.matrix.csr(dtype)[self.index]

    def _product(self, outer: Matrix, inner: Matrix) -> Product:
        """A product with those rows of the right factor that these rows of the left one read."""
        if isinstance(outer, Selection):
            selection = self._selection(outer)
            index: Any = selection.index
            read, places = np.unique(index, return_inverse=True)
            if len(read) and read[0] < 0:  # -1 reads nothing
                read, places = read[1:], places - 1
            return Product(Selection(places, len(read), selection.scale), _Rows(inner, read))
        left = _Rows(outer, self.index)
        if isinstance(inner, Selection | Sparse):
            return Product(left, inner)
        csr = left.csr()
        read, places = np.unique(csr.indices, return_inverse=True)
        csr = csr_array((csr.data, places, csr.indptr), shape=(len(self.index), len(read)))
        return Product(Sparse(csr), _Rows(inner, read))

    def _selection(self, selection: Selection) -> Selection:
        split = selection.split()
        index = self.index if split.index is None else split.index[self.index]
        return Selection(index, split.cols, None if split.scale is None else split.scale[self.index])

    def _convolution(self, conv: Convolution, dtype: Any) -> csr_array:
        runs = np.split(self.index, np.flatnonzero(np.diff(self.index) != 1) + 1)
        parts = [_range(conv, range(int(run[0]), int(run[-1]) + 1), dtype) for run in runs if len(run)]
        if len(parts) == 1:
            return parts[0]
        starts = np.r_[0, np.concatenate([np.diff(part.indptr) for part in parts] or [[]]).cumsum()].astype(np.int64)
        data, indices = (
            np.concatenate([getattr(part, name) for part in parts] or [np.empty(0, kind)])
            for name, kind in (("data", dtype), ("indices", np.int32))
        )
        return csr_array((data, indices, starts), shape=self.shape)

    def _copies(self, block: Matrix, dtype: Any) -> csr_array:
        """Rows of identity (x) block."""
        copy, row = np.divmod(self.index, block.shape[0])
        rows, places = np.unique(row, return_inverse=True)
        matrix = _Rows(block, rows).csr(dtype)[places]
        columns = matrix.indices + (copy * block.shape[1]).repeat(np.diff(matrix.indptr))
        return csr_array((matrix.data, columns, matrix.indptr), shape=self.shape)


def _range(conv: Convolution, rows: range, dtype: Any) -> csr_array:
    """Consecutive rows of a convolution."""
    weight, g = conv.weight.detach(), conv.geometry
    if g.groups == 1:  # only the channels of these rows: a large weight takes long to convert
        positions = prod(g.output_size)
        first, stop = rows.start // positions, -(-rows.stop // positions)
        weight = weight.narrow(1 if g.transposed else 0, first, stop - first)
        g = dataclasses.replace(g, out_channels=stop - first)
        rows = range(rows.start - first * positions, rows.stop - first * positions)
    weight = weight.to(torch.from_numpy(np.empty(0, dtype)).dtype)
    return to_csr_array(to_matrix(weight, g, layout=torch.sparse_csr, rows=rows))
