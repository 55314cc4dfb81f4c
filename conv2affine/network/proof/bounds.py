"""Bounds of all values of a network of affine pieces and ReLUs, for all inputs of a box, as a dtype computes them.

A piece computes y = A x + b + d, |d| <= r, where x is what was computed before it and r is a bound of its roundings.

forward:   y is in A c + b -+ (|A| s + r), for x in c -+ s; a maximum is between those of the bounds of its sums
backward:  a bound below, w y >= w A x + w b - |w| r, is pushed on to the network's inputs; at a ReLU, w is multiplied
           by the line below it where w > 0, by that above it where w < 0 (CROWN)
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.convolution.guard import check_left
from conv2affine.network.graph import Graph, Piece, Step, Value
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.backward import Affine, Bend, Rows, Source, lowest
from conv2affine.network.proof.forward import Forward, Interval, Range
from conv2affine.network.proof.maxima import Maxima
from conv2affine.network.proof.rounding import DOUBLE, UNDERFLOW, gamma

# A matrix with a larger share of entries is multiplied as a dense one.
DENSE = 0.25
# Numbers of a value that are pushed back at a time: few enough for a cache, enough for a product to be worth its call.
CHUNK = 2**19
BYTES = 12  # of an entry and its column


def bounds(
    graph: Graph, box: Mapping[Value, Interval], dtype: torch.dtype, *, backward: bool = True
) -> dict[Value, Interval]:
    """Bounds of every value, for all inputs in a box: no value that is computed in `dtype` is outside.

    Args:
        graph: Pieces and ReLUs only; see `to_relu`. A value that is read by a piece may be carried as two numbers,
            relu(v) and relu(-v), as in a chain.
        box: Bounds of each input, finite.
        dtype: In which the network computes.
        backward: Whether what a ReLU reads and may bend, and the outputs, are bounded backward too. Default: True.

    Raises:
        MemoryError: If the matrices of all pieces need more memory than is left.
        ValueError: If the numbers may overflow in `dtype`, or it has too few digits for a sum of that many terms.
    """
    check_memory(graph)
    found = _Bounds(graph, dtype)
    for value in graph.inputs:
        found.add_input(value, box[value])
    for node in graph.nodes:
        if isinstance(node, Piece):
            found.add_piece(node, backward)
        elif isinstance(node, Step) and node.kind == "relu":
            found.add_relu(node.inputs[0], node.outputs[0])
        else:
            raise ValueError(f"a graph with bounds must have pieces and ReLUs only, and {node.origin} is {node.kind}")
    return {value: known.interval for value, known in found.ranges.items()}


def check_memory(graph: Graph) -> None:
    """Raise MemoryError if the matrices of all pieces need more memory than is left."""
    entries = [matrix.nnz for node in graph.nodes if isinstance(node, Piece) for matrix in node.map.terms.values()]
    needed = BYTES * (sum(entries) + 4 * max(entries, default=0))
    check_left("the matrices of all pieces, in float64,", needed, "choose a smaller input")


class _Bounds:
    """What is known so far: the range of each value, the step that pushes back through it, and the elements in use."""

    def __init__(self, graph: Graph, dtype: torch.dtype) -> None:
        self.graph, self.dtype, self.users = graph, dtype, graph.users
        self.ranges: dict[Value, Range] = {}
        self.maxima = Maxima(graph, self.ranges, dtype)
        self.steps: dict[Value, Source | Affine | Bend] = {}
        self.live: dict[Value, Rows] = {}

    def add_input(self, value: Value, interval: Interval) -> None:
        """An input, between its bounds."""
        (low, high), largest = interval, interval.largest
        error = (self.sums(value.size) + gamma(4, DOUBLE)) * 2 * largest
        self.ranges[value], self.live[value] = Range(interval, largest), slice(None)
        self.steps[value] = Source((low + high) / 2, (high - low) / 2, self.error(value, error))

    def add_relu(self, x: Value, y: Value) -> None:
        """A ReLU."""
        low, high = self.ranges[x].interval
        self.ranges[y] = Range(Interval(np.maximum(low, 0), np.maximum(high, 0)), np.maximum(high, 0))
        self.live[y] = live = np.flatnonzero(high > 0)
        bent = np.flatnonzero(low[live] < 0)
        low, high, largest = (numbers[live][bent] for numbers in (low, high, self.ranges[x].largest))
        # Any slope is right with an offset that fits it at both ends, rounded up.
        upper = high / (high - low)
        offset = np.maximum(-low * upper, high - high * upper) + gamma(8, DOUBLE) * high
        error = np.zeros(len(live))
        error[bent] = gamma(2, DOUBLE) * largest + self.sums(len(bent)) * offset
        lower, error = (high > -low).astype(np.float64), self.error(y, error)
        rows = live if isinstance(self.live[x], slice) else slice(None)  # of those of x that are of use
        self.steps[y] = Bend(x, x.size, rows, bent, lower, upper, offset, error)

    def add_piece(self, node: Piece, backward: bool) -> None:
        """An affine piece."""
        y, map = node.output, node.map
        matrices = {source: matrix.nonzero() for source, matrix in map.terms.items()}
        found = self.maxima.forward(node, matrices)
        self.check(node, matrices, found)
        tallest = max((int(np.bincount(part.indices).max(initial=0)) for part in matrices.values()), default=0)
        own = gamma(tallest + 2, DOUBLE) * found.magnitudes
        # Elements that are zero for all inputs are left out.
        matrices = {source: part[:, self.live[source]] for source, part in matrices.items()}
        if map.alias is not None:  # nothing is rounded
            moved, self.ranges[y] = np.zeros(y.size), dataclasses.replace(self.ranges[map.alias], terms=2)
        else:
            moved, self.ranges[y] = found.rounding, _carried(found.interval, found.rounding)
        error = self.error(y, moved + own + self.sums(y.size) * (np.abs(map.bias) + moved))
        if backward and map.alias is None and not set(map.terms).issubset(self.graph.inputs):
            self.ranges[y] = _carried(self.tighten(y, Affine(matrices, map.bias, error)), moved)
        is_bent = not any(isinstance(user, Piece) for user in self.users[y])
        live = np.flatnonzero(self.ranges[y].interval.high > 0) if is_bent else slice(None)
        transposed = {source: _transposed(part[live]) for source, part in matrices.items()}
        self.steps[y], self.live[y] = Affine(transposed, map.bias[live], error[live]), live

    def tighten(self, value: Value, step: Affine) -> Interval:
        """The bounds of a piece, where its sign is not known, or it is an output, by pushing them back."""
        low, high = (bound.copy() for bound in self.ranges[value].interval)
        rows = np.arange(value.size) if value in self.graph.outputs else np.flatnonzero((low < 0) & (high > 0))
        before = list(self.steps.items())[::-1]
        count = max(1, CHUNK // (2 * max(len(known.largest) for known in self.ranges.values())))
        for start in range(0, len(rows), count):
            chunk = rows[start : start + count]
            parts = {source: part[chunk].toarray().T for source, part in step.matrices.items()}
            weights = {source: np.concatenate([part, -part], axis=1) for source, part in parts.items()}
            bias, error = step.bias[chunk], step.error[chunk]
            below = lowest(weights, before) + np.concatenate([bias - error, -bias - error])
            least, greatest = np.split(np.nextafter(below, -np.inf), 2)
            low[chunk], high[chunk] = np.maximum(low[chunk], least), np.minimum(high[chunk], -greatest)
        return Interval(low, high)

    def check(self, node: Piece, matrices: Mapping[Value, csr_array], found: Forward) -> None:
        """Refuse what may overflow, and sums of more terms than the dtype can tell."""
        largest = max((float(np.abs(part.data).max(initial=0)) for part in matrices.values()), default=0.0)
        if not np.isfinite(found.rounding).all():
            reason = f"have fewer terms than {self.dtype} has digits for"
        elif (found.magnitudes + 2 * found.rounding > torch.finfo(self.dtype).max).any():
            reason = f"stay finite in {self.dtype} for all inputs of the box, and cannot be shown to"
        elif largest > torch.finfo(self.dtype).max:  # an entry, of however small an input
            reason = f"have finite factors in {self.dtype}, and one of {largest:.6g} is not"
        else:
            return
        raise ValueError(f"{', '.join(node.origin)}: sums must {reason}; choose a smaller box, or another dtype")

    def sums(self, size: int) -> Any:
        """The relative error of a sum over a value, which is added to others."""
        return gamma(size + len(self.graph.nodes) + 4, DOUBLE)

    def error(self, value: Value, error: Array) -> Array:
        """The error of a step, with that of adding up what the readers of its value push back."""
        joins = max(len(self.users[value]) - 1, 0)
        largest = self.ranges[value].largest[self.live.get(value, slice(None))]
        total: Array = (error + gamma(joins, DOUBLE) * largest) * (1 + 2**-20) + UNDERFLOW
        return total


def _carried(interval: Interval, moved: Array) -> Range:
    """The range of a value v that may be carried as relu(v) and relu(-v): their signs may be rounded otherwise."""
    return Range(interval, interval.largest + 2 * moved, terms=2)


def _transposed(matrix: csr_array) -> Any:
    """The transposed matrix, as products take it fastest."""
    if matrix.nnz > DENSE * matrix.shape[0] * matrix.shape[1]:
        return np.ascontiguousarray(matrix.toarray().T)
    return matrix.T.tocsr()
