"""Where two networks part: the first pieces of each whose values the other does not have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from conv2affine.network.equality.side import Side
from conv2affine.network.graph import Graph, Node, Piece, Value
from conv2affine.network.matrices.matrix import Array

__all__ = ["Names", "origin"]

Names = tuple[str, ...]
# Values are the same up to this many roundings of their largest element.
ROUNDINGS = 64


def origin(
    sides: Sequence[Side], values: Sequence[Mapping[Value, Array]], apart: Sequence[Value | None] = (None, None)
) -> tuple[Names, Names]:
    """The names of the first pieces of each side that compute what the other does not.

    Args:
        sides: Both.
        values: Of both, for the same inputs.
        apart: The first value of each that is known to differ. Default: the first that has no equal.
    """
    limit = ROUNDINGS * max(side.unit for side in sides)
    alone = [_alone(mine, others, limit) for mine, others in (values, values[::-1])]
    places = [_places(side.graph) for side in sides]
    ends: list[Value] = []
    for number in (0, 1):
        found = [value for value in places[number] if value in alone[number]]
        ends.append(apart[number] or (found or places[number])[0 if found else -1])
    chains = [_back(side.graph, end, others) for side, end, others in zip(sides, ends, alone, strict=True)]
    parts = [_first(chain, set(place)) for chain, place in zip(chains, places, strict=True)]
    heads = {(len(part), part[0].outputs[0].size) for part in parts if part}
    if len(heads) == 1:  # the same pieces follow one another; otherwise some are one piece on one side
        parts = [part[:1] for part in parts]
    first, second = (tuple(dict.fromkeys(name for node in part for name in _names(node))) for part in parts)
    return first, second


def _alone(values: Mapping[Value, Array], others: Mapping[Value, Array], limit: float) -> set[Value]:
    """The values that the other side does not have."""
    by_size: dict[int, list[Array]] = {}
    for array in others.values():
        by_size.setdefault(array.shape[1], []).append(array.astype(np.float64))
    alone = set()
    for value, array in values.items():
        near = limit * np.abs(array).max(initial=0)
        if not any((np.abs(array - other) <= near).all() for other in by_size.get(array.shape[1], ())):
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


def _names(node: Node) -> Names:
    return tuple(filter(None, node.origin)) or (getattr(node, "kind", "affine"),)
