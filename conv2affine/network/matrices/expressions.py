"""Products and sums of matrices that wait: they are written out only when asked for."""

from __future__ import annotations

from collections import Counter
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from conv2affine.network.matrices.matrix import Array, Matrix, Selection
from conv2affine.network.matrices.pattern import Counts, Pattern, row_starts


@dataclass(frozen=True, eq=False)
class Product(Matrix):
    """outer @ inner."""

    outer: Matrix
    inner: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.outer.shape[0], self.inner.shape[1]

    @property
    def numbers(self) -> tuple[Any, ...]:
        return self.outer.numbers + self.inner.numbers

    def apply(self, x: Array) -> Array:
        y: Array = _once(self, self.outer.apply, _once(self, self.inner.apply, x))
        return y

    def apply_transposed(self, y: Array) -> Array:
        if has_shared_parts(self):
            return super().apply_transposed(y)
        return self.inner.apply_transposed(self.outer.apply_transposed(y))

    def csr(self, dtype: Any = np.float64) -> csr_array:
        if isinstance(self.outer, Selection):
            # Numbers that only change places can be rounded before that.
            product = _rows(self.outer, _once(self, self.inner.csr, dtype if self.outer.scale is None else np.float64))
        elif isinstance(self.inner, Selection):
            product = _columns(_once(self, self.outer.csr, np.float64), self.inner)
        else:
            product = _once(self, self.outer.csr, np.float64) @ _once(self, self.inner.csr, np.float64)
        if not product.has_sorted_indices:
            product.sort_indices()
        return product.astype(dtype, copy=False)

    def _count(self, axis: int) -> Counts:
        # The side whose counts are wanted decides, exactly so if the other side is a selection.
        near, far = (self.outer, self.inner) if axis == 1 else (self.inner, self.outer)
        if isinstance(near, Selection) and near.index is not None:
            index: Any = near.split().index
            counts = far.counts(axis)
            if axis == 1:
                counts = np.append(counts, 0)[index]
            else:
                read = index >= 0
                counts = np.bincount(index[read], counts[read], near.cols).astype(np.int64)
            return counts
        max_count = int(far.counts(axis).max(initial=0))
        return np.minimum(near.counts(axis) * max_count, self.shape[axis])

    def _reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if has_shared_parts(self):
            return super()._reads(rows)
        return self.inner.reads(self.outer.reads(rows))

    @cached_property
    def nnz(self) -> int:
        if self.pattern is not None:
            return self.pattern.nnz
        # With one entry per column, a selection copies each row of `inner` once; with one per row, it moves the columns
        # of `outer`, some of them perhaps to the same place.
        for matrix, other, axis in ((self.outer, self.inner, 0), (self.inner, self.outer, 1)):
            if isinstance(matrix, Selection) and (matrix.count_channels(axis) == 1).all():
                return min(other.nnz, prod(self.shape))
        return min(int(self.outer.counts(0) @ self.inner.counts(1)), prod(self.shape))

    @cached_property
    def pattern(self) -> Pattern | None:  # type: ignore[override]
        outer, inner = self.outer.pattern, self.inner.pattern
        return None if outer is None or inner is None else outer @ inner


@dataclass(frozen=True, eq=False)
class Sum(Matrix):
    """first + second."""

    first: Matrix
    second: Matrix

    @property
    def shape(self) -> tuple[int, int]:
        return self.first.shape

    @property
    def numbers(self) -> tuple[Any, ...]:
        return self.first.numbers + self.second.numbers

    def apply(self, x: Array) -> Array:
        y: Array = _once(self, self.first.apply, x) + _once(self, self.second.apply, x)
        return y

    def apply_transposed(self, y: Array) -> Array:
        if has_shared_parts(self):
            return super().apply_transposed(y)
        return self.first.apply_transposed(y) + self.second.apply_transposed(y)

    def csr(self, dtype: Any = np.float64) -> csr_array:
        return csr_array(_once(self, self.first.csr, np.float64) + _once(self, self.second.csr, np.float64)).astype(
            dtype, copy=False
        )

    def _count(self, axis: int) -> Counts:
        counts: Counts = np.minimum(self.first.counts(axis) + self.second.counts(axis), self.shape[axis])
        return counts

    def _reads(self, rows: NDArray[np.bool_]) -> NDArray[np.bool_]:
        if has_shared_parts(self):
            return super()._reads(rows)
        return self.first.reads(rows) | self.second.reads(rows)


# While a product or a sum is written out or applied: what occurs several times in it, and what that gave.
_shared: ContextVar[dict[Matrix, dict[Any, tuple[Any, Any]]] | None] = ContextVar("shared", default=None)


def _once(whole: Product | Sum, method: Any, argument: Any) -> Any:
    """The result of a method of a part of `whole`, run once for an argument where the part occurs several times.

    A recurrence as of T[k] = 2 A T[k - 1] - T[k - 2] would else take exponential time.
    """
    shared = _shared.get()
    if shared is None:
        token = _shared.set({matrix: {} for matrix, times in _occurrences(whole).items() if times > 1})
        try:
            return _once(whole, method, argument)
        finally:
            _shared.reset(token)
    results = shared.get(method.__self__)
    if results is None:
        return method(argument)
    key = method.__name__, id(argument)
    if key not in results:
        results[key] = argument, method(argument)  # with the argument, so that no other gets its id
    return results[key][1]


def has_shared_parts(matrix: Product | Sum) -> bool:
    """Whether a part occurs several times: its transposed product is another one each time, so it cannot run once."""
    return max(_occurrences(matrix).values(), default=0) > 1


def _occurrences(matrix: Product | Sum) -> Counter[Matrix]:
    """How many products and sums inside of a matrix have each product and sum as a part."""
    counts: Counter[Matrix] = Counter()
    stack: list[Matrix] = [matrix]
    while stack:
        node = stack.pop()
        parts = (node.outer, node.inner) if isinstance(node, Product) else (node.first, node.second)  # type: ignore[attr-defined]
        for part in parts:
            if isinstance(part, Product | Sum):
                counts[part] += 1
                if counts[part] == 1:
                    stack.append(part)
    return counts


def _rows(selection: Selection, matrix: csr_array) -> csr_array:
    """The product selection @ matrix, without a product."""
    is_sorted = matrix.has_sorted_indices
    if selection.index is not None:
        rows, cols = matrix.shape
        read = selection.index >= 0
        if np.array_equal(selection.index[read], np.arange(rows // selection.positions)):
            # All rows in their order, with empty ones between.
            before = row_starts(read, selection.positions, np.intp)
            matrix = csr_array((matrix.data, matrix.indices, matrix.indptr[before]), shape=(len(before) - 1, cols))
        else:
            selection = selection.split()
            with_zero = (matrix.data, matrix.indices, np.append(matrix.indptr, matrix.indptr[-1]))
            matrix = csr_array(with_zero, shape=(rows + 1, cols))[selection.index % (rows + 1)]  # -1 reads the last row
    if selection.scale is not None:
        scale: Any = selection.split().scale
        data = matrix.data * scale.repeat(np.diff(matrix.indptr))
        matrix = csr_array((data, matrix.indices, matrix.indptr), shape=matrix.shape)
    if is_sorted:
        matrix.has_sorted_indices = True  # so that SciPy does not check again
    return matrix


def _columns(matrix: csr_array, selection: Selection) -> csr_array:
    """The product matrix @ selection, without a product."""
    data, indices, indptr, selection = matrix.data, matrix.indices, matrix.indptr, selection.split()
    if selection.scale is not None:
        data = data * selection.scale[indices]
    if selection.index is not None:
        indices = selection.index[indices]
        read = indices >= 0
        if not read.all():
            data, indices, indptr = data[read], indices[read], np.r_[0, read.cumsum()][indptr]
    product = csr_array((data, indices, indptr), shape=(matrix.shape[0], selection.cols))
    product.sum_duplicates()
    return product
