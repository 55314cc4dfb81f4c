"""The one structure of the network side: an affine map of several sources, y = sum over sources s of A_s x_s + b."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import numpy as np

from conv2affine.network.matrices.compose import add, compose
from conv2affine.network.matrices.matrix import Array, Matrix, Selection, selection

Source = TypeVar("Source", bound=Hashable)


@dataclass(frozen=True, eq=False)
class AffineMap(Generic[Source]):
    """y = sum over sources s of terms[s] @ x_s + bias, of flat vectors, per sample.

    Args:
        terms: One matrix (len(bias), size of the source) per source.
        bias: (size of y,), float64.

    Example:
        >>> double = AffineMap({"x": Selection(None, 2, np.array([2.0, 2.0]))}, np.array([0.0, 1.0]))
        >>> (double + double).evaluate({"x": np.array([[1.0, 10.0]])})
        array([[ 4., 42.]])
    """

    terms: Mapping[Source, Matrix]
    bias: Array

    @classmethod
    def identity(cls, source: Source, size: int) -> AffineMap[Source]:
        """The map y = x_source."""
        return cls({source: Selection(None, size)}, np.zeros(size))

    @classmethod
    def constant(cls, value: Array) -> AffineMap[Source]:
        """The map y = value, of no source."""
        return cls({}, np.asarray(value, np.float64).ravel())

    @property
    def size(self) -> int:
        """Elements of y."""
        return len(self.bias)

    @property
    def alias(self) -> Source | None:
        """The source that y is equal to, if it is one."""
        if len(self.terms) == 1 and not self.bias.any():
            [(source, matrix)] = self.terms.items()
            if isinstance(matrix, Selection) and matrix.is_identity:
                return source
        return None

    def then(self, matrix: Matrix) -> AffineMap[Source]:
        """The map matrix @ y."""
        bias = np.zeros(matrix.shape[0])
        if self.bias.any():  # a product with zeros is left out: constants may hold infinities that no output reads
            bias += matrix.apply(self.bias[None])[0]
        return AffineMap({source: compose(matrix, inner) for source, inner in self.terms.items()}, bias)

    def at(self, index: Any, positions: int = 1) -> AffineMap[Source]:
        """The elements of y at these places, with that many positions each; 0 where the index is -1."""
        return self.then(selection(index, self.size, positions))

    def plus(self, terms: Mapping[Source, Matrix]) -> AffineMap[Source]:
        """The map y + sum over sources s of terms[s] @ x_s."""
        sums = dict(self.terms)
        for source, matrix in terms.items():
            sums[source] = add(sums[source], matrix) if source in sums else matrix
        return AffineMap(sums, self.bias)

    def __add__(self, other: AffineMap[Source]) -> AffineMap[Source]:
        return AffineMap(self.plus(other.terms).terms, self.bias + other.bias)

    def evaluate(self, values: Mapping[Source, Array]) -> Array:
        """The outputs (batch, size) for the values (batch, size of the source) of each source."""
        terms = [matrix.apply(values[source]) for source, matrix in self.terms.items()]
        return sum(terms, self.bias[None])
