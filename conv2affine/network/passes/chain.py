"""A network of affine pieces and ReLUs as one chain: linear, ReLU, linear, ReLU, ..., linear.

The layer of a ReLU is one more than that of the last ReLU it depends on. A value that is read later than in the next
layer is carried through the ReLUs in between: as it is where it is known to be >= 0, else as relu(v), relu(-v).
So y = relu(conv2(r) + x), with r = relu(conv1(x)), becomes

    layer 1: r = relu(conv1 x), p = relu(x), n = relu(-x)      layer 2: relu(conv2 r + p - n)
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse
from scipy.sparse import csr_array

from conv2affine.network.graph import Graph, Piece, Step, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Matrix, Selection, Sparse
from conv2affine.network.proof.forward import Interval

Map = AffineMap[Value]


@dataclass(frozen=True, eq=False)
class Units:
    """The units of a layer that compute or carry one value.

    Args:
        map: What they compute from the values of the layer before.
        is_pair: Whether they are relu(v) and relu(-v), and not v itself.
        origin: The modules whose work they do.
    """

    map: Map
    is_pair: bool
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer of the chain; a ReLU follows every layer but the last.

    Args:
        units: Its rows, by the value that they compute or carry.
        before: The units of the layer before, its columns.
        bounds: Of its rows, in a box that the chain is for. Default: None, as the chain is for all inputs.
    """

    units: dict[Value, Units]
    before: dict[Value, Units]
    bounds: Interval | None = None

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols)."""
        rows, cols = (
            sum(unit.map.size * (1 + unit.is_pair) for unit in units.values()) for units in (self.units, self.before)
        )
        return rows, cols

    @property
    def nnz(self) -> int:
        """Number of entries, at most."""
        return sum(
            matrix.nnz * (2 if self.is_carried(unit) else (1 + unit.is_pair) * (1 + self.before[source].is_pair))
            for unit in self.units.values()
            for source, matrix in unit.map.terms.items()
        )

    @property
    def origin(self) -> tuple[str, ...]:
        """The modules whose work it does."""
        return tuple(dict.fromkeys(name for unit in self.units.values() for name in unit.origin))

    @property
    def bias(self) -> Array:
        """One number per row."""
        signs = [(unit.map.bias, -unit.map.bias) if unit.is_pair else (unit.map.bias,) for unit in self.units.values()]
        return np.concatenate([bias for pair in signs for bias in pair])

    def matrix(self) -> Matrix:
        """The matrix of all units; a single matrix is not written out."""
        if len(self.units) == len(self.before) == 1:
            [unit], [inputs] = self.units.values(), self.before.values()
            if not unit.is_pair and not inputs.is_pair and unit.map.terms:
                return next(iter(unit.map.terms.values()))
        blocks = []
        for unit in self.units.values():
            positive, negative = [], []  # the rows of v, or of relu(v), and those of relu(-v)
            for source, inputs in self.before.items():
                matrix = unit.map.terms.get(source)
                block = csr_array((unit.map.size, inputs.map.size)) if matrix is None else matrix.csr()
                if inputs.is_pair:
                    other = csr_array(block.shape) if self.is_carried(unit) else -block
                    positive += [block, other]
                    negative += [other, block]
                else:
                    positive.append(block)
                    negative.append(-block)
            blocks += [positive, negative] if unit.is_pair else [positive]
        return Sparse(csr_array(scipy.sparse.block_array(blocks, format="csr")))

    def is_carried(self, unit: Units) -> bool:
        """Whether a pair is a pair already in the layer before."""
        map = unit.map
        if not unit.is_pair or len(map.terms) != 1 or map.bias.any():
            return False
        [(source, matrix)] = map.terms.items()
        return self.before[source].is_pair and isinstance(matrix, Selection) and matrix.copied


def chain(graph: Graph) -> list[Layer]:
    """The layers of a graph of one input and one output, all of whose steps are ReLUs."""
    return _Chain(graph).layers()


def levels(graph: Graph) -> dict[Value, int]:
    """The number of ReLUs on the longest path to each value."""
    level = dict.fromkeys(graph.inputs, 0)
    for node in graph.nodes:
        [output] = node.outputs
        level[output] = max((level[value] for value in node.inputs), default=0) + (not isinstance(node, Piece))
    return level


def to_graph(layers: Sequence[Layer]) -> Graph:
    """The graph that computes what the layers of a chain do; each pair is one value."""
    graph = Graph()
    values = {value: graph.add_input(value.shape, value.name) for value in layers[0].before}
    for number, layer in enumerate(layers, 1):
        read, values = values, {}
        for value, unit in layer.units.items():
            map = AffineMap({read[source]: matrix for source, matrix in unit.map.terms.items()}, unit.map.bias)
            computed = graph.add_piece(map, (1, map.size), value.name)
            rectified = number < len(layers) and not unit.is_pair
            values[value] = graph.add_step("relu", [computed], computed.shape) if rectified else computed
    for value in values.values():
        graph.add_output(value)
    return graph


class _Chain:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.producer = graph.producer
        self.level = levels(graph)
        # Which values are known to be >= 0.
        self.positive: set[Value] = set()
        for node in graph.nodes:
            if not isinstance(node, Piece) or self.is_positive(node.map):
                self.positive.update(node.outputs)
        # What the units of each value compute where it first appears, and the last layer that reads it.
        self.units: dict[Value, Units] = {}
        self.last: dict[Value, int] = {}
        self.read = functools.cache(self.find)

    def layers(self) -> list[Layer]:
        """The layers of the chain."""
        depth = max([self.level[node.outputs[0]] for node in self.graph.nodes], default=0)
        [output] = self.graph.outputs
        result = {output: self.read(output, depth + 1)}
        for node in self.graph.nodes:
            if isinstance(node, Step):
                read = self.read(node.inputs[0], self.level[node.outputs[0]])
                self.units[node.outputs[0]] = Units(read.map, False, (*read.origin, *node.origin))
        before = {value: Units(AffineMap.identity(value, value.size), False) for value in self.graph.inputs}
        there: list[list[Value]] = [[] for _ in range(depth + 1)]
        for value, last in self.last.items():
            for number in range(max(self.birth(value), 1), min(last, depth + 1)):
                there[number].append(value)
        layers = []
        for number in range(1, depth + 1):
            layers.append(Layer({value: self.appear(value, number) for value in there[number]}, before))
            before = layers[-1].units
        return [*layers, Layer(result, before)]

    def appear(self, value: Value, layer: int) -> Units:
        """The units of a value in a layer: computed where it first appears, carried after that."""
        identity: Map = AffineMap.identity(value, value.size)
        carried = Units(identity, value not in self.positive)
        return self.units.get(value, carried) if layer == self.birth(value) else carried

    def birth(self, value: Value) -> int:
        """The layer where a value first appears among units; the network's input is carried from layer 1 on."""
        return self.level[value] + (not isinstance(self.producer.get(value), Step))

    def find(self, value: Value, layer: int) -> Units:
        """The units that compute a value in a layer from the values of the layer before; `read` keeps them."""
        node = self.producer.get(value)
        if isinstance(node, Piece):
            if self.level[value] == layer - 1:
                map, origin = AffineMap[Value]({}, node.map.bias), node.origin
                for source, matrix in node.map.terms.items():
                    inner = self.read(source, layer)
                    map += inner.map.then(matrix)
                    origin = tuple(dict.fromkeys(inner.origin + origin))
                return Units(map, False, origin)
            if value not in self.units:
                read = self.read(value, self.birth(value))
                self.units[value] = Units(read.map, value not in self.positive, read.origin)
        self.last[value] = max(self.last.get(value, 0), layer)
        return Units(AffineMap.identity(value, value.size), False)

    def is_positive(self, map: Map) -> bool:
        """Whether an affine map of values before is known to be >= 0."""
        return (
            self.positive.issuperset(map.terms)
            and not (map.bias < 0).any()
            and not any((part < 0).any() for matrix in map.terms.values() for part in matrix.numbers)
        )
