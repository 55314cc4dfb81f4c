"""The pass that leaves out the ReLUs that are stable in a box: always 0 there, or always their input.

relu(x) = 0 where x <= 0 in the box, x where x >= 0: the latter is left out if that adds no entries.

What a layer of a chain reads later than in the next layer is carried there, as relu(v) and relu(-v) where its sign is
not known:

v = relu(v) where v >= 0, -relu(-v) where v <= 0
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from conv2affine.network.graph import Graph, Node, Piece, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Matrix, Selection
from conv2affine.network.passes.chain import levels
from conv2affine.network.passes.merge import merge
from conv2affine.network.passes.simplify import Rewritten, rewrite, simplify
from conv2affine.network.proof.forward import Interval

Map = AffineMap[Value]
Mask = NDArray[np.bool_]


def stable(graph: Graph, bounds: Mapping[Value, Interval]) -> Graph:
    """A graph of pieces and ReLUs that computes the same in a box, given the bounds of all its values there."""
    writer = _Writer(graph, dict(bounds))
    return writer.carry(simplify(merge(simplify(writer.leave_out()))))


class _Writer:
    def __init__(self, graph: Graph, bounds: dict[Value, Interval]) -> None:
        self.graph, self.bounds = graph, bounds  # new values get bounds too
        self.users, self.producer = graph.users, graph.producer

    def leave_out(self) -> Graph:
        """The graph without ReLUs that are zero, that nothing reads, or that are their input, where that pays."""
        read = self.read(self.graph)

        def rule(node: Node) -> Rewritten:
            if isinstance(node, Piece):
                return None
            [x], [y], part = node.inputs, node.outputs, Graph()
            straight = read[y] & (self.bounds[x].low >= 0)
            if not self.pays(self.producer[y], straight, read[y] & ~straight):
                straight = np.zeros_like(straight)
            map = self.rectified(part, x, read[y] & ~straight)
            if straight.any():
                map += Map.identity(x, x.size).at(np.where(straight, np.arange(x.size), -1))
            value = part.add_piece(map, y.shape, y.name)
            self.bounds[value] = self.bounds[y]
            return part.nodes, value

        return rewrite(self.graph, rule)

    def read(self, graph: Graph) -> dict[Value, Mask]:
        """Which elements of each value have a part in the outputs, for some input in the box."""
        read = {value: np.zeros(value.size, bool) for value in graph.users}
        for value in graph.outputs:
            read[value][:] = True
        for node in reversed(graph.nodes):
            [y] = node.outputs
            if isinstance(node, Piece):
                for source, matrix in node.map.terms.items():
                    read[source][_columns(matrix, read[y])] = True
            else:
                read[y] &= self.bounds[y].high > 0
                read[node.inputs[0]] |= read[y]
        return read

    def pays(self, node: Node, straight: Mask, bent: Mask) -> bool:
        """Whether merging these elements of a ReLU into what reads them adds no entries."""
        [x], [y] = node.inputs, node.outputs
        piece, readers = self.producer.get(x), [user for user in self.users[y] if isinstance(user, Piece)]
        if not isinstance(piece, Piece) or len(readers) < len(self.users[y]):
            return False
        inner = {source: matrix.counts(1)[straight] for source, matrix in piece.map.terms.items()}
        outer = [reader.map.terms[y] for reader in readers] + [Selection(None, y.size)] * (y in self.graph.outputs)
        before, after = sum(int(counts.sum()) for counts in inner.values()), 0
        for matrix in outer:
            each = matrix.counts(0)[straight]
            before += int(each.sum())
            after += sum(min(int(each @ counts), matrix.shape[0] * source.size) for source, counts in inner.items())
        if bent.any():  # the layer stays, and what the piece reads is carried through it
            if not all(self.signs(source).all() for source in inner):
                return False
            after += sum(source.size for source in inner)
        return bool(straight.any() and after <= before)

    def carry(self, graph: Graph) -> Graph:
        """The graph with ReLUs for what is carried, one for each element whose sign is known."""
        level, read = levels(graph), self.read(graph)
        late = {value: np.zeros(value.size, bool) for value in level}
        for piece in [node for node in graph.nodes if isinstance(node, Piece)]:
            for source, matrix in piece.map.terms.items():
                if level[source] < level[piece.output]:
                    late[source][_columns(matrix, read[piece.output])] = True
        carried: dict[Value, Map] = {}
        nodes: list[Node] = []
        for node in graph.nodes:
            if isinstance(node, Piece):
                map, origins = AffineMap[Value]({}, node.map.bias), dict(node.origins)
                for source, matrix in node.map.terms.items():
                    inner = Map.identity(source, source.size)
                    if level[source] < level[node.output]:
                        if source not in carried:
                            part = Graph()
                            carried[source] = self.by_sign(part, source, late[source])
                            nodes += part.nodes
                        inner = carried[source]
                    map += inner.then(matrix)
                    origins.update(dict.fromkeys(inner.terms, node.origins[source]))
                node = Piece(node.output, map, {source: origins[source] for source in map.terms})
            nodes.append(node)
        return dataclasses.replace(graph, nodes=nodes)

    def by_sign(self, part: Graph, x: Value, read: Mask) -> Map:
        """The elements of a value that are read, by ReLUs of those whose sign is known."""
        low, high = self.bounds[x]
        unknown = read & ~self.signs(x)
        map = self.rectified(part, x, read & (low >= 0)) + self.rectified(part, x, read & (low < 0) & (high <= 0), -1)
        if unknown.all():
            return Map.identity(x, x.size)
        if unknown.any():
            few = part.add_piece(Map.identity(x, x.size).at(np.flatnonzero(unknown)), (1, unknown.sum()), x.name)
            map += Map.identity(few, few.size).at(np.where(unknown, unknown.cumsum() - 1, -1))
        return map

    def signs(self, x: Value) -> Mask:
        """The elements whose sign is known."""
        low, high = self.bounds[x]
        known: Mask = (low >= 0) | (high <= 0)
        return known

    def rectified(self, part: Graph, x: Value, mask: Mask, sign: int = 1) -> Map:
        """The map sign * relu(sign * x) where the mask holds, else 0."""
        if not mask.any():
            return AffineMap.constant(np.zeros(x.size))
        places = np.flatnonzero(mask)
        few = part.add_piece(_at(Map.identity(x, x.size), places, sign), (1, len(places)), x.name)
        y = part.add_step("relu", [few], few.shape, origin=x.name)
        low, high = (bound[mask] for bound in self.bounds[x][::sign])
        self.bounds[few] = Interval(sign * low, sign * high)
        self.bounds[y] = Interval(*(np.maximum(bound, 0) for bound in self.bounds[few]))
        return _at(Map.identity(y, y.size), np.where(mask, mask.cumsum() - 1, -1), sign)


def _columns(matrix: Matrix, rows: Mask) -> NDArray[np.int64]:
    """The columns that have numbers other than 0 in these rows, each once or several times."""
    part = matrix.csr()[np.flatnonzero(rows)]
    columns: NDArray[np.int64] = part.indices[part.data != 0]
    return columns


def _at(map: Map, index: NDArray[np.int64], sign: int) -> Map:
    """The elements of a map at these places, times a sign; 0 where the index is -1."""
    if sign == 1:
        return map.at(index)
    return map.then(Selection(index, map.size, np.full(len(index), float(sign))))
