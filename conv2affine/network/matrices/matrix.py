"""The matrices of a network's affine maps: kept as what they are, and written out only when asked for."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from conv2affine.network.matrices.pattern import Counts, Pattern, counts, row_starts

Array = NDArray[np.float64]


class Matrix:
    """A matrix of float64.

    Attributes:
        shape: (rows, cols).
        copied: Whether its entries are numbers of the model as they are; else they were computed.
        pattern: Where its entries are, if that is known without them.
    """

    copied: bool = False
    pattern: Pattern | None = None

    @property
    def shape(self) -> tuple[int, int]:
        raise NotImplementedError

    @property
    def numbers(self) -> tuple[Any, ...]:
        """The arrays and tensors of which its entries are products and sums."""
        raise NotImplementedError

    def apply(self, x: Array) -> Array:
        """(batch, cols) -> (batch, rows): its product with each sample, without writing it out."""
        raise NotImplementedError

    def apply_transposed(self, y: Array) -> Array:
        """(batch, rows) -> (batch, cols): the product of the transposed matrix with each sample."""
        return np.ascontiguousarray((self.csr().T @ y.T).T)

    def csr(self, dtype: Any = np.float64) -> csr_array:
        """The matrix written out by rows; the columns ascend."""
        raise NotImplementedError

    def nonzero(self) -> csr_array:
        """The matrix written out, without the zeros among its entries: products with those round nothing."""
        matrix = self.csr()
        if not matrix.data.all():
            matrix = matrix.copy()
            matrix.eliminate_zeros()
        return matrix

    def counts(self, axis: int) -> Counts:
        """Entries per row (axis 1) or per column (axis 0); where it is not written out yet, an upper bound.

        Do not write to them: they are kept.
        """
        if axis not in self._counted:
            self._counted[axis] = self._count(axis) if self.pattern is None else self.pattern.counts(axis)
        return self._counted[axis]

    @cached_property
    def _counted(self) -> dict[int, Counts]:
        return {}

    def _count(self, axis: int) -> Counts:
        """What `counts` keeps, where there is no pattern."""
        raise NotImplementedError

    def reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The columns with an entry in one of these rows; where it is not written out yet, perhaps more."""
        return self._reads(rows) if self.pattern is None else self.pattern.reads(rows)

    def _reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """What `reads` is, where there is no pattern."""
        read: NDArray[np.bool_] = self.counts(0) > 0
        return read

    @cached_property
    def nnz(self) -> int:
        """Number of entries; where it is not written out yet, an upper bound."""
        return int(self.counts(1).sum()) if self.pattern is None else self.pattern.nnz


@dataclass(frozen=True, eq=False)
class Selection(Matrix):
    """At most one entry per row: y[r, p] = scale[r] * x[index[r], p] for each position p, or 0 where index[r] is -1.

    Args:
        index: (rows / positions,); None for 0, 1, 2, ...
        cols: Number of columns.
        scale: (rows / positions,); None for ones.
        positions: Number of consecutive elements that share one index and one scale, as those of a channel do; a
            divisor of the number of rows and of columns.
    """

    index: NDArray[np.int64] | None
    cols: int
    scale: Array | None = None
    positions: int = 1

    @property
    def shape(self) -> tuple[int, int]:
        return (self.cols if self.index is None else len(self.index) * self.positions), self.cols

    @property
    def copied(self) -> bool:  # type: ignore[override]
        return self.scale is None

    @property
    def numbers(self) -> tuple[Any, ...]:
        return () if self.scale is None else (self.scale,)

    @property
    def is_identity(self) -> bool:
        return self.index is None and self.scale is None

    def split(self, positions: int = 1) -> Selection:
        """The same matrix with this number of positions, a divisor of its own."""
        parts = self.positions // positions
        if parts == 1:
            return self
        index, scale = self.index, self.scale
        if index is not None:
            index = np.where(index[:, None] < 0, -1, index[:, None] * parts + np.arange(parts)).ravel()
        return Selection(index, self.cols, None if scale is None else scale.repeat(parts), positions)

    def apply(self, x: Array) -> Array:
        y = x.reshape(len(x), self.cols // self.positions, self.positions)
        if self.index is not None:
            zeros = np.zeros((len(x), 1, self.positions))
            y = np.concatenate([y, zeros], 1)[:, self.index]  # -1 reads the zeros at the end
        if self.scale is not None:
            y = y * self.scale[:, None]
        return y.reshape(len(x), self.shape[0])

    def csr(self, dtype: Any = np.float64) -> csr_array:
        rows, cols = self.shape
        integer: Any = np.int32 if max(rows, cols) < 2**31 else np.int64
        index = np.arange(cols // self.positions) if self.index is None else self.index
        read = index >= 0
        columns = index[read, None].astype(integer) * self.positions + np.arange(self.positions, dtype=integer)
        scale = np.ones(len(columns), dtype) if self.scale is None else self.scale[read].astype(dtype)
        starts = row_starts(read, self.positions, integer)
        matrix = csr_array((scale.repeat(self.positions), columns.ravel(), starts), shape=(rows, cols))
        matrix.has_sorted_indices = True  # so that SciPy does not check
        return matrix

    def _count(self, axis: int) -> Counts:
        return self.count_channels(axis).repeat(self.positions)

    def _reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        index = self.split().index
        if index is None:
            return rows
        read = np.zeros(self.cols + 1, bool)
        read[index[rows]] = True  # -1 is the last
        return read[:-1]

    @cached_property
    def nnz(self) -> int:
        return int(self.count_channels(1).sum()) * self.positions

    def count_channels(self, axis: int) -> Counts:
        """Entries per row or per column, once for all positions."""
        channels = self.cols // self.positions
        if self.index is None:
            return np.ones(channels, np.int64)
        read = self.index >= 0
        return read.astype(np.int64) if axis == 1 else np.bincount(self.index[read], minlength=channels)


def selection(index: Any, cols: int, positions: int = 1) -> Matrix:
    """A selection, with one index for that many positions; without an index where it is the identity."""
    return Selection(None if np.array_equal(index, np.arange(cols // positions)) else index, cols, None, positions)


@dataclass(frozen=True, eq=False)
class Sparse(Matrix):
    """A matrix that is written out."""

    matrix: csr_array
    copied: bool = False

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.matrix.shape
        return rows, cols

    @property
    def numbers(self) -> tuple[Any, ...]:
        return (self.matrix.data,)

    def apply(self, x: Array) -> Array:
        return np.ascontiguousarray((self.matrix @ x.T).T)

    def csr(self, dtype: Any = np.float64) -> csr_array:
        return self.matrix.astype(dtype)

    def _count(self, axis: int) -> Counts:
        return counts(self.matrix, axis)

    def _reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        read = np.zeros(self.shape[1], bool)
        read[self.matrix.indices[rows.repeat(self.counts(1))]] = True
        return read
