"""Bounds of sums that are maxima or minima: of a ReLU and of what it reads.

p x + q relu(d x) = max(p x, (p + q d) x) for q > 0, min for q < 0

So max(a, b) = a + relu(b - a) is bounded by the bounds of a and b, and not by their sum; the same holds for a clip, for
|x|, and for a maximum of maxima.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array, diags_array, eye_array

from conv2affine.network.graph import Graph, Piece, Step, Value
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Forward, Range, forward
from conv2affine.network.proof.rounding import DOUBLE, gamma

Numbers = NDArray[np.int64]
# How many ReLUs of a sum are resolved, one after the other.
DEPTH = 6


class _Sum(NamedTuple):
    matrices: Mapping[Value, csr_array]
    bias: Array


class _Maximum(NamedTuple):
    """Rows max(first, second) where the sign is > 0, min(first, second) where it is < 0; up to an error."""

    rows: Numbers
    sign: Array
    first: _Sum
    second: _Sum
    error: Array


class Maxima:
    """Finds the bounds of pieces from those of what they read."""

    def __init__(self, graph: Graph, ranges: Mapping[Value, Range], dtype: torch.dtype) -> None:
        self.producer, self.ranges, self.dtype = graph.producer, ranges, dtype
        self.errors: dict[Value, Array] = {}  # of each piece: its roundings, and those of its numbers here

    def forward(self, node: Piece, matrices: Mapping[Value, csr_array]) -> Forward:
        """What is known of a piece."""
        found = self.resolved(_Sum(matrices, node.map.bias), DEPTH)
        self.errors[node.output] = _error(found)
        return found

    def resolved(self, total: _Sum, depth: int) -> Forward:
        """The bounds of a sum, and of its maxima."""
        found = forward(*total, self.ranges, self.dtype)
        low, high = found.interval
        for rows, sign, first, second, error in self.maxima(total) if depth else ():
            ends = [self.resolved(part, depth - 1).interval for part in (first, second)]
            least, greatest = (
                np.where(sign > 0, np.maximum(*pair), np.minimum(*pair)) for pair in zip(*ends, strict=True)
            )
            error = (error + _error(found)[rows]) * (1 + 2**-20)
            low[rows] = np.maximum(low[rows], np.nextafter(least - error, -np.inf))
            high[rows] = np.minimum(high[rows], np.nextafter(greatest + error, np.inf))
        return found

    def maxima(self, total: _Sum) -> Iterator[_Maximum]:
        """The rows that are maxima of sums with no more terms, by their last ReLU."""
        matrices, later = total.matrices, np.zeros(len(total.bias))
        terms = _terms(matrices, len(later))
        for relu in [value for value in reversed([*self.ranges]) if value in matrices]:
            node, counts = self.producer.get(relu), np.diff(matrices[relu].indptr)
            rows = np.flatnonzero((counts == 1) & (later == 0) & (terms > 1))
            later = later + counts
            if len(rows) and isinstance(node, Step):
                at = matrices[relu].indptr[rows]
                q, columns = matrices[relu].data[at], matrices[relu].indices[at]
                few = np.flatnonzero(self.terms(node.inputs[0])[columns] < 2 * terms[rows])
                if len(few):
                    yield from self.split(total, relu, rows[few], q[few], columns[few])

    def terms(self, value: Value) -> Any:
        """How many terms the elements of a value have, at most."""
        node = self.producer.get(value)
        maps = node.map.terms.values() if isinstance(node, Piece) else ()
        return sum((part.counts(1) for part in maps), np.zeros(value.size) + (not maps))

    def split(self, total: _Sum, relu: Value, rows: Numbers, q: Array, columns: Numbers) -> Iterator[_Maximum]:
        """The same for rows p x + q relu(d x), where that has no more terms."""
        [x] = self.producer[relu].inputs
        node, scale = self.producer.get(x), diags_array(q)
        first = {source: part[rows] for source, part in total.matrices.items() if source is not relu}
        if isinstance(node, Piece):
            inner = {source: part.nonzero()[columns] for source, part in node.map.terms.items()}
            bias, error = node.map.bias[columns], self.errors[x][columns]
        else:
            inner, bias, error = {x: csr_array(eye_array(x.size))[columns]}, np.zeros(len(rows)), np.zeros(len(rows))
        second = dict(first)
        for source, part in inner.items():
            second[source] = csr_array(second[source] + scale @ part if source in second else scale @ part)
            second[source].eliminate_zeros()
        few = _terms(second, len(rows)) <= _terms(first, len(rows)) + 1
        bias = total.bias[rows] + q * bias
        if few.any():
            pairs = (first, total.bias[rows]), (second, bias)
            sums = [_Sum(_without(parts, few), offset[few]) for parts, offset in pairs]
            yield _Maximum(rows[few], q[few], sums[0], sums[1], (np.abs(q) * error)[few])


def _terms(matrices: Mapping[Value, csr_array], rows: int) -> Any:
    return sum((np.diff(part.indptr) for part in matrices.values()), np.zeros(rows))


def _without(matrices: Mapping[Value, csr_array], rows: Any) -> dict[Value, csr_array]:
    """Some rows, without the matrices that have no entry there."""
    parts = {source: part[rows] for source, part in matrices.items()}
    return {source: part for source, part in parts.items() if part.nnz}


def _error(found: Forward) -> Array:
    """How far what is computed may be from a sum, and what a few roundings of its entries in float64 change."""
    error: Array = found.rounding + gamma(5, DOUBLE) * found.magnitudes
    return error
