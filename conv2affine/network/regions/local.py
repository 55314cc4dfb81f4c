"""A network around points: at each of them one affine map, and the walls within which it holds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import reduce

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from conv2affine.network.graph import Graph, Piece, Step, Value
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.matrix import Array, Matrix, Selection, Sparse
from conv2affine.network.passes.ends import slices
from conv2affine.network.regions.sides import Side, side_of

# Numbers that are computed at a time.
CHUNK = 2**24


class LocalMap:
    """The affine maps of a network around points.

    Arrays have the axes (point, sample, element); an axis of points of size 1 stands for any number where all points
    have the same.

    Args:
        graph: Of one input and one output, without `Kept` nodes.
        x: (points, inputs).
    """

    def __init__(self, graph: Graph, x: Array) -> None:
        self.graph, self.points = graph, len(x)
        self.sides: dict[Step, Side] = {}
        self.largest = abs(x).max(1, initial=1)  # of the values at each point

        def add(step: Step, z: Array) -> Side:
            here = np.broadcast_to(z[:, 0], (self.points, z.shape[2]))
            self.sides[step] = side_of(step, here)
            self.largest = np.maximum(self.largest, abs(here).max(1, initial=0))
            return self.sides[step]

        # At the points themselves.
        self.output, self.walls = self._run(x[:, None], True, add)
        walls = [side.is_wall for side in self.sides.values()]
        self.is_wall = np.concatenate(walls, 1) if walls else np.zeros((self.points, 0), bool)

    @property
    def shape(self) -> tuple[int, int]:
        """(outputs, inputs)."""
        return self.graph.outputs[0].size, self.graph.inputs[0].size

    @property
    def point_bytes(self) -> int:
        """What a point takes while it is computed: its values, and arrays of the size of its walls; measured."""
        return 16 * self._values + 48 * int(self.walls.shape[2])

    @property
    def _values(self) -> int:
        """Elements of all values."""
        return sum(value.size for value in (*self.graph.inputs, *self.graph.producer))

    def forward(self, x: Array, constants: bool = True) -> tuple[Array, Array]:
        """The outputs and the walls of samples (points, samples, inputs), which need not be where the map is exact.

        Without constants, x are directions, and the results are products with matrices.
        """
        return self._run(x, constants, lambda step, z: self.sides[step])

    def _run(self, x: Array, constants: bool, side: Callable[[Step, Array], Side]) -> tuple[Array, Array]:
        values = {self.graph.inputs[0]: x}
        walls = [np.zeros((self.points, x.shape[1], 0))]
        for node in self.graph.nodes:
            if isinstance(node, Piece):
                result = np.zeros((1, x.shape[1], node.output.size))
                if constants:
                    result = result + node.map.bias
                for source, matrix in node.map.terms.items():
                    result = result + _flat(matrix.apply, values[source])
            elif isinstance(node, Step):
                z = np.concatenate(np.broadcast_arrays(*(values[value] for value in node.inputs)), 2)
                result, found = side(node, z).forward(z, constants)
                walls.append(np.broadcast_to(found, (self.points, *found.shape[1:])))
            values[node.outputs[0]] = result
        output = values[self.graph.outputs[0]]
        return np.broadcast_to(output, (self.points, *output.shape[1:])), np.concatenate(walls, 2)

    def backward(self, y: Array, walls: Array | None = None) -> Array:
        """The products of samples of the outputs with the matrices, y @ A; those of walls with theirs are added."""
        samples, stop = y.shape[1], self.walls.shape[2]
        gradients = {self.graph.outputs[0]: y}

        def add(value: Value, gradient: Array) -> None:
            gradients[value] = gradients[value] + gradient if value in gradients else gradient

        for node in reversed(self.graph.nodes):
            y = gradients.pop(node.outputs[0])
            if isinstance(node, Piece):
                for source, matrix in node.map.terms.items():
                    add(source, _flat(matrix.apply_transposed, y))
            elif isinstance(node, Step):
                side, size = self.sides[node], sum(value.size for value in node.inputs)
                z = side.backward(y, size)
                if walls is not None:
                    stop, last = stop - side.is_wall.shape[1], stop
                    z = z + side.wall_backward(walls[:, :, stop:last], size)
                for value, part in zip(node.inputs, slices(node.inputs), strict=True):
                    add(value, z[:, :, part])
        nothing = np.zeros((1, samples, self.shape[1]))
        x = gradients.get(self.graph.inputs[0], nothing)
        return np.broadcast_to(x, (self.points, *x.shape[1:]))

    def chunks(self, samples: int, walls: int) -> Iterator[slice]:
        """Slices of samples, of which each has the values of the network and these walls."""
        step = max(1, CHUNK // max(1, self.points * (walls + self._values)))
        return (slice(start, min(start + step, samples)) for start in range(0, samples, step))

    def columns(self) -> Iterator[Array]:
        """The transposed matrix of the walls, (points, inputs, walls), some inputs at a time."""
        for part in self.chunks(self.shape[1], self.walls.shape[2]):
            yield np.where(self.is_wall[:, None], self.forward(_units(part, self.shape[1]), constants=False)[1], 0)

    def rows(self) -> Iterator[tuple[slice, Array]]:
        """The matrix of the outputs, (points, outputs, inputs), some outputs at a time."""
        for part in self.chunks(self.shape[0], 0):
            yield part, self.backward(_units(part, self.shape[0]))

    def wall_rows(self, walls: NDArray[np.int64]) -> Array:
        """(points, rows, inputs): the rows of the matrix of the walls with these numbers, (points, rows)."""
        units = np.zeros((*walls.shape, self.walls.shape[2]))
        np.put_along_axis(units, walls[:, :, None], 1, 2)
        return self.backward(np.zeros((1, walls.shape[1], self.shape[0])), units)

    def norms(self) -> Array:
        """(points, walls): the norms of the rows of the walls."""
        return reduce(np.hypot, (norm(columns, 1) for columns in self.columns()), np.zeros(self.is_wall.shape))

    def entries(self) -> tuple[int, int]:
        """The most entries that the matrix of the outputs and that of the walls of a single point can have."""
        identity = Selection(None, self.shape[1])
        rows: dict[Value, Matrix] = {self.graph.inputs[0]: identity}
        total = 0
        for node in self.graph.nodes:
            if isinstance(node, Piece):
                terms: list[Matrix] = [Product(matrix, rows[source]) for source, matrix in node.map.terms.items()]
                nothing = Sparse(csr_array((node.output.size, self.shape[1])))
                rows[node.output] = reduce(Sum, terms) if terms else nothing
            elif isinstance(node, Step):
                sizes = sum(value.size for value in node.inputs)
                parts = []
                for value, part in zip(node.inputs, slices(node.inputs), strict=True):
                    index = np.full(sizes, -1)
                    index[part] = np.arange(value.size)
                    parts.append(
                        rows[value] if len(node.inputs) == 1 else Product(Selection(index, value.size), rows[value])
                    )
                rows[node.outputs[0]], entries = self.sides[node].entries(reduce(Sum, parts))
                total += entries
        return rows[self.graph.outputs[0]].nnz, total


def norm(x: Array, axis: int) -> Array:
    """The 2-norm along an axis, also where the squares are too small or too large for a float64."""
    largest = abs(x).max(axis, keepdims=True, initial=0)
    scale = np.where(largest > 0, largest, 1)
    result: Array = np.sqrt(np.square(x / scale).sum(axis)) * scale.squeeze(axis)
    return result


def _flat(function: Callable[[Array], Array], x: Array) -> Array:
    """A function of (samples, elements) for several points."""
    points, samples, _ = x.shape
    return function(x.reshape(points * samples, -1)).reshape(points, samples, -1)


def _units(part: slice, size: int) -> Array:
    """Rows of the identity, for any point."""
    return np.eye(part.stop - part.start, size, part.start)[None]
