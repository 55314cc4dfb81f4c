"""Where a matrix has entries, known and counted without them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

Counts = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Pattern:
    """Where a matrix over (channel, *position) has entries: full blocks on the diagonal (x) axes[0] (x) axes[1] ...

    Args:
        groups: Number of blocks.
        rows: Output channels of a block.
        cols: Input channels of a block.
        axes: For each spatial axis a matrix of bool, (output size, input size).
    """

    groups: int
    rows: int
    cols: int
    axes: tuple[csr_array, ...]

    def __matmul__(self, other: Pattern) -> Pattern | None:
        """The pattern of a product; None if the sizes do not fit, or neither number of groups divides the other."""
        groups = min(self.groups, other.groups)
        if (
            self.groups * self.cols != other.groups * other.rows
            or [a.shape[1] for a in self.axes] != [b.shape[0] for b in other.axes]
            or self.groups % groups
            or other.groups % groups
        ):
            return None
        rows, cols = self.groups * self.rows // groups, other.groups * other.cols // groups
        return Pattern(groups, rows, cols, tuple(a @ b for a, b in zip(self.axes, other.axes, strict=True)))

    @property
    def nnz(self) -> int:
        return self.groups * self.rows * self.cols * prod(int(axis.nnz) for axis in self.axes)

    def counts(self, axis: int) -> Counts:
        """Entries per row (axis 1) or per column (axis 0)."""
        lines, each = (self.rows, self.cols) if axis == 1 else (self.cols, self.rows)
        result = np.full(self.groups * lines, each)
        for part in self.axes:
            result = np.multiply.outer(result, counts(part, axis)).ravel()
        return result

    def reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """The columns with an entry in one of these rows."""
        read: Any = rows.reshape(self.groups, self.rows, *(axis.shape[0] for axis in self.axes)).any(1)
        for number, axis in enumerate(self.axes, 1):
            first = np.moveaxis(read, number, 0)
            read = np.moveaxis((axis.T @ first.reshape(len(first), -1)).reshape(-1, *first.shape[1:]), 0, number)
        columns: NDArray[np.bool_] = read.reshape(self.groups, 1, -1).repeat(self.cols, 1).ravel()
        return columns


def counts(matrix: csr_array, axis: int) -> Counts:
    """Entries per row (axis 1) or per column (axis 0)."""
    result = np.diff(matrix.indptr) if axis == 1 else np.bincount(matrix.indices, minlength=matrix.shape[1])
    return result.astype(np.int64, copy=False)


def places(matrix: csr_array) -> csr_array:
    """True at each entry of a matrix."""
    return csr_array((np.ones(matrix.nnz, bool), matrix.indices, matrix.indptr), shape=matrix.shape)


def row_starts(read: NDArray[np.bool_], positions: int, dtype: Any) -> NDArray[Any]:
    """Row starts of a matrix with one entry in each row of a channel that is read, and none in the others."""
    if read.all():
        return np.arange(len(read) * positions + 1, dtype=dtype)
    entries = read.astype(dtype)
    starts = np.zeros(len(read) * positions + 1, dtype)
    before = (entries.cumsum(dtype=dtype) - entries) * positions
    inside = entries[:, None] * np.arange(1, positions + 1, dtype=dtype)
    np.add(before[:, None], inside, out=starts[1:].reshape(len(read), positions))
    return starts
