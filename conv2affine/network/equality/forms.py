"""Values of a network as affine maps of its units: the elements that its nonlinear steps compute."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.rounding import DOUBLE, gamma

Mask = NDArray[np.bool_]
Numbers = NDArray[np.int64]
# Entries are equal if they differ by at most this many roundings of the largest in their row: those of a batch norm
# that is folded into a convolution, and of the products and sums of pieces that follow one another.
ROUNDINGS = 32


@dataclass(frozen=True)
class Form:
    """Elements as affine maps of units: matrix @ units + bias.

    Args:
        matrix: (elements, units).
        bias: (elements,).
        size: The largest of |matrix| |units| + |bias|, and of all that was added up on the way there.
        error: How far an element that is computed may be from the map of the units that are; 0 without a box.
    """

    matrix: csr_array
    bias: Array
    size: Array
    error: Array

    def __getitem__(self, rows: Numbers) -> Form:
        return Form(self.matrix[rows], self.bias[rows], self.size[rows], self.error[rows])

    def times(self, factor: Any) -> Form:
        """Each element times a number."""
        scale = np.abs(factor)
        rounded = np.where((scale == 1) | (scale == 0), 0, gamma(4, DOUBLE)) * scale * self.size
        matrix = self.matrix.copy()
        matrix.data *= np.repeat(factor, np.diff(matrix.indptr))
        return Form(matrix, factor * self.bias, scale * self.size, scale * self.error + rounded)

    def plus(self, other: Form) -> Form:
        """The sum, without the entries that cancel."""
        matrix = csr_array(self.matrix + other.matrix)
        matrix.eliminate_zeros()
        return Form(matrix, self.bias + other.bias, self.size + other.size, self.error + other.error)

    def at(self, places: Numbers) -> Form:
        """The elements at these places; 0 where it is -1."""
        read = places >= 0
        vectors = (np.where(read, vector[places], 0) for vector in (self.bias, self.size, self.error))
        return Form(csr_array(selected(places, len(self.bias)) @ self.matrix), *vectors)

    def where(self, mask: Mask, other: Form) -> Form:
        """Elements of this form where the mask holds, else of the other."""
        if other is self or not mask.any():
            return other
        kept, left = (csr_array(diags_array(1.0 * each)) for each in (mask, ~mask))
        pairs = ((getattr(self, name), getattr(other, name)) for name in ("bias", "size", "error"))
        matrix = csr_array(kept @ self.matrix + left @ other.matrix)
        return Form(matrix, *(np.where(mask, *pair) for pair in pairs))

    def keys(self, random: Array) -> Array:
        """The elements for random units, the last row of which is that of the bias."""
        keys: Array = self.matrix @ random[:-1] + self.bias[:, None] * random[-1]
        return keys

    def equals(self, other: Form, unit: float) -> Mask:
        """Which elements have entries that differ by a few roundings of relative size `unit` at most."""
        largest = np.maximum(_largest(self.matrix), _largest(other.matrix))
        offset = np.abs(self.bias - other.bias) <= ROUNDINGS * unit * np.maximum(self.size, other.size)
        result: Mask = (_largest(self.matrix - other.matrix) <= ROUNDINGS * unit * largest) & offset
        return result

    def is_sum(self, positive: Mask, sign: int = 1) -> Mask:
        """Which elements, times a sign, are >= 0: without an entry < 0, of units that are, by this mask."""
        data = sign * self.matrix.data
        wrong = (data < 0) | ((data != 0) & ~positive[self.matrix.indices])
        count = np.concatenate([[0], np.cumsum(wrong)])
        result: Mask = (count[self.matrix.indptr[1:]] == count[self.matrix.indptr[:-1]]) & (sign * self.bias >= 0)
        return result

    def gap(self, other: Form, largest: Array) -> Array:
        """How far the elements of two maps of the same units may be apart, rounded up."""
        apart = abs(self.matrix - other.matrix) @ largest + np.abs(self.bias - other.bias)
        n = self.matrix.shape[1] + 8
        total: Array = apart * (1 + gamma(n, DOUBLE)) + gamma(8, DOUBLE) * (self.size + other.size)
        return total


def selected(columns: Numbers, width: int) -> csr_array:
    """The matrix whose rows have a 1 in these columns; none where it is -1."""
    read = columns >= 0
    starts = np.concatenate([[0], np.cumsum(read)])
    return csr_array((np.ones(read.sum()), columns[read], starts), shape=(len(columns), width))


def _largest(matrix: csr_array) -> Array:
    if not matrix.shape[0]:
        return np.zeros(0)
    found: Array = abs(matrix).max(axis=1).toarray().ravel()
    return found
