"""The pass that makes one vector of several inputs, and one of several outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from itertools import accumulate, pairwise

import numpy as np

from conv2affine.network.graph import Graph, Node, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import selection
from conv2affine.network.passes.simplify import replace_inputs


def join_ends(graph: Graph) -> Graph:
    """A graph of one input and one output, which hold the elements of all inputs, or of all outputs, in order.

    A single input or output stays as it is.
    """
    return _join_outputs(_join_inputs(graph))


def slices(values: Sequence[Value]) -> tuple[slice, ...]:
    """Where the elements of each value are in the vector of all."""
    return tuple(slice(*ends) for ends in pairwise(accumulate((value.size for value in values), initial=0)))


def _join_inputs(graph: Graph) -> Graph:
    if len(graph.inputs) == 1:
        return graph
    joined = Graph()
    vector = joined.add_input((1, sum(value.size for value in graph.inputs)), "inputs")
    parts: dict[Value, Value] = {}
    for value, part in zip(graph.inputs, slices(graph.inputs), strict=True):
        matrix = selection(np.arange(part.start, part.stop), vector.size)
        parts[value] = joined.add_piece(AffineMap({vector: matrix}, np.zeros(value.size)), value.shape, value.name)
    nodes: list[Node] = [*joined.nodes, *(replace_inputs(node, parts) for node in graph.nodes)]
    outputs = [parts.get(value, value) for value in graph.outputs]
    return dataclasses.replace(graph, inputs=joined.inputs, nodes=nodes, outputs=outputs)


def _join_outputs(graph: Graph) -> Graph:
    if len(graph.outputs) == 1:
        return graph
    joined = Graph(inputs=graph.inputs, nodes=list(graph.nodes))
    size = sum(value.size for value in graph.outputs)
    map: AffineMap[Value] = AffineMap.constant(np.zeros(size))
    for value, part in zip(graph.outputs, slices(graph.outputs), strict=True):
        index = np.full(size, -1)
        index[part] = np.arange(value.size)
        map = map.plus({value: selection(index, value.size)})
    joined.add_output(joined.add_piece(map, (1, size), "outputs"))
    return joined
