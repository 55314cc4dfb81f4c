"""Where two networks part: the first pieces of each whose values the other does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_array, hstack

from conv2affine.network.equality.forms import Form
from conv2affine.network.equality.side import Side
from conv2affine.network.graph import Graph, Node, Piece, Step, Value
from conv2affine.network.matrices.matrix import Array

Names = tuple[str, ...]
# Values are the same up to this many roundings of their largest element.
ROUNDINGS = 64


def origin(sides: Sequence[Side], points: Array, apart: Sequence[Value | None]) -> tuple[Names, Names]:
    """The names of the first pieces of each side that compute what the other does not.

    Args:
        sides: Both.
        points: Inputs, some where they differ.
        apart: The first value of each that is known to differ; for None, the first that has no equal.
    """
    unit = max(side.unit for side in sides)
    graphs, values = [side.whole for side in sides], [side.whole_values(points) for side in sides]
    alone = [_alone(mine, others, ROUNDINGS * unit) for mine, others in (values, values[::-1])]
    places = [_places(graph) for graph in graphs]
    ends: list[Value] = []
    for number in (0, 1):
        found = [value for value in places[number] if value in alone[number]]
        known = _whole(sides[number], apart[number])
        ends.append(known or (found or places[number])[0 if found else -1])
    chains = [_back(graph, end, others) for graph, end, others in zip(graphs, ends, alone, strict=True)]
    parts = [_first(chain, set(place)) for chain, place in zip(chains, places, strict=True)]
    parts = [_without_equal(part, graph, unit) for part, graph in zip(parts, graphs[::-1], strict=True)]
    names = {tuple(map(_names, part)) for part in parts}
    heads = {(len(part), part[0].outputs[0].size) for part in parts if part}
    if len(names) == 1 or len(heads) == 1:  # the same pieces follow one another, or some are one piece on one side
        parts = [part[:1] for part in parts]
    first, second = (tuple(dict.fromkeys(name for node in part for name in _names(node))) for part in parts)
    return first, second


def _whole(side: Side, value: Value | None) -> Value | None:
    """A value of the graph of ReLUs; of those inside of a step, what that makes; None for an input."""
    made = side.whole.producer
    if value is None or value in made:
        return value
    if value in side.graph.inputs:
        return None
    name = _names(side.graph.producer[value])
    steps = (step.outputs[0] for step in side.whole.nodes if isinstance(step, Step) and _names(step) == name)
    return next(steps, None)


def _alone(values: Mapping[Value, Array], others: Mapping[Value, Array], limit: float) -> set[Value]:
    """The values that the other side does not have."""
    by_size: dict[int, list[Array]] = {}
    for array in others.values():
        by_size.setdefault(array.shape[1], []).append(array.astype(np.float64))
    alone = set()
    for value, array in values.items():
        near = limit * np.abs(array).max(axis=1, keepdims=True, initial=0, where=np.isfinite(array))
        if not any(
            np.isclose(array, other, 0, near, equal_nan=True).all() for other in by_size.get(array.shape[1], ())
        ):
            alone.add(value)
    return alone


def _places(graph: Graph) -> list[Value]:
    """The values that steps read or make, in order, and the output: what both have, however they get there."""
    steps = [node for node in graph.nodes if not isinstance(node, Piece)]
    ends = {value for node in steps for value in (*node.inputs, *node.outputs)}
    made = [value for node in graph.nodes for value in node.outputs if value in ends]
    return [*made, graph.outputs[0]]


def _back(graph: Graph, end: Value, alone: set[Value]) -> list[Node]:
    """The nodes on the way to a value that only this side has, in order."""
    wanted, chain = {end}, list[Node]()
    for node in reversed(graph.nodes):
        if wanted.intersection(node.outputs):
            chain.insert(0, node)
            wanted.update(value for value in node.inputs if value in alone)
    return chain


def _first(chain: Sequence[Node], places: set[Value]) -> list[Node]:
    """The nodes up to the first value that a step reads."""
    part = []
    for node in chain:
        part.append(node)
        if places.intersection(node.outputs):
            break
    return part


def _without_equal(part: list[Node], graph: Graph, unit: float) -> list[Node]:
    """The nodes but for the last ones that the other graph has too: these are fed with what differs."""
    others = [node for node in graph.nodes if isinstance(node, Piece)]
    while len(part) > 1 and any(_is_same(part[-1], other, unit) for other in others):
        part = part[:-1]
    return part


def _is_same(node: Node, other: Piece, unit: float) -> bool:
    """Whether two pieces have the same entries, up to rounding."""
    if not isinstance(node, Piece) or not node.inputs or _sizes(node) != _sizes(other):
        return False
    forms = []
    for each in (node, other):
        matrix = csr_array(hstack([part.csr() for part in each.map.terms.values()]))
        forms.append(Form(matrix, each.map.bias, np.abs(each.map.bias), np.zeros(each.map.size)))
    return bool(forms[0].equals(forms[1], unit).all())


def _sizes(node: Piece) -> list[Any]:
    return [(matrix.shape, matrix.nnz) for matrix in node.map.terms.values()]


def _names(node: Node) -> Names:
    return tuple(filter(None, node.origin)) or (getattr(node, "kind", "affine"),)
