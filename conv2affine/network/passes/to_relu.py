"""The pass that turns piecewise-linear steps into affine pieces and ReLUs, exactly.

leaky_relu(x) = relu(x) - slope * relu(-x)           max(a, b) = a + relu(b - a)
clip(x)       = low + relu(x - low) - relu(x - high)  min(a, b) = a - relu(a - b)
|x|           = relu(x) + relu(-x)                    the maximum of a window: of its halves, and so on
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container
from typing import Any

import numpy as np

from conv2affine.network.graph import Graph, Node, Step, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.simplify import replace_inputs
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.moves import selection

__all__ = ["to_relu"]

Map = AffineMap[Value]


def to_relu(graph: Graph, kinds: Container[str] | None = None) -> Graph:
    """A graph in which steps of these kinds, or of all that are piecewise linear, are pieces and ReLUs."""
    names: dict[Value, Value] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        node = replace_inputs(old, names)
        if isinstance(node, Step) and node.kind in RULES and (kinds is None or node.kind in kinds):
            part = Graph()
            origin = (*node.origin, node.kind)[0]
            writer = _Writer(part, node.outputs[0].shape, origin)
            result = RULES[node.kind](writer, *map(_identity, node.inputs), **node.parameters)
            names[node.outputs[0]] = part.add_piece(result, node.outputs[0].shape, origin)
            nodes += part.nodes
        else:
            nodes.append(node)
    return dataclasses.replace(graph, nodes=nodes, outputs=[names.get(value, value) for value in graph.outputs])


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Adds what becomes of one step to a graph."""

    graph: Graph
    shape: tuple[int, ...]
    origin: str

    def value(self, map: Map) -> Value:
        """The value of a map."""
        return self.graph.add_piece(map, (1, map.size), self.origin)

    def relu(self, map: Map) -> Map:
        """The ReLU of a map."""
        [value] = self.graph.add_step("relu", [self.value(map)], [(1, map.size)], origin=self.origin)
        return _identity(value)


def _identity(value: Value) -> Map:
    return AffineMap.identity(value, value.size)


def _scaled(map: Map, scale: Any) -> Map:
    return map.then(rules.diagonal(scale, (map.size,)))


def _minus(first: Map, second: Map) -> Map:
    return first + _scaled(second, -1)


def _leaky_relu(writer: _Writer, x: Map, slope: Any) -> Map:
    return _minus(writer.relu(x), _scaled(writer.relu(_scaled(x, -1)), slope))


def _clip(writer: _Writer, x: Map, low: Any, high: Any) -> Map:
    low, high = (np.broadcast_to(np.asarray(bound, np.float64), x.size) for bound in (np.minimum(low, high), high))
    result: Map = _where(np.isinf(low), x)
    if np.isfinite(low).any():
        result += _where(np.isfinite(low), _plus(writer.relu(_plus(x, -low)), low))
    if np.isfinite(high).any():
        result = _minus(result, _where(np.isfinite(high), writer.relu(_plus(x, -high))))
    return result


def _abs(writer: _Writer, x: Map) -> Map:
    return writer.relu(x) + writer.relu(_scaled(x, -1))


def _maximum(writer: _Writer, a: Map, b: Map) -> Map:
    return a + writer.relu(_minus(b, a))


def _minimum(writer: _Writer, a: Map, b: Map) -> Map:
    return _minus(a, writer.relu(_minus(a, b)))


def _window_max(writer: _Writer, x: Map, windows: Any) -> Map:
    """A tree: each round halves the windows; a pair that occurs in several of them is compared once."""
    while windows.shape[1] > 1:
        windows = -np.sort(-windows, axis=1)  # what is no element comes last
        if windows.shape[1] % 2:
            windows = np.pad(windows, ((0, 0), (0, 1)), constant_values=-1)
        pairs, inverse = np.unique(windows.reshape(-1, 2), axis=0, return_inverse=True)
        first, second = pairs[:, 0], pairs[:, 1]
        compared = np.flatnonzero(second >= 0)
        larger = writer.relu(_minus(_at(x, second[compared]), _at(x, first[compared])))
        places = np.full(len(pairs), -1)
        places[compared] = np.arange(len(compared))
        x = _identity(writer.value(_at(x, first) + _at(larger, places)))
        windows = np.where(windows[:, ::2] < 0, -1, inverse.reshape(windows.shape[0], -1))
    return _at(x, windows[:, 0])


def _window_min(writer: _Writer, x: Map, windows: Any) -> Map:
    return _scaled(_window_max(writer, _scaled(x, -1), windows), -1)


def _at(map: Map, index: Any) -> Map:
    return map.then(selection(index, map.size))


def _plus(map: Map, constant: Array) -> Map:
    """The map with a constant added where that is finite."""
    return map + AffineMap.constant(np.where(np.isfinite(constant), constant, 0))


def _where(mask: Any, map: Map) -> Map:
    """The map where the mask holds, else 0."""
    return map if mask.all() else _at(map, np.where(mask, np.arange(map.size), -1))


RULES: dict[str, Callable[..., Map]] = {
    "leaky_relu": _leaky_relu,
    "clip": _clip,
    "abs": _abs,
    "maximum": _maximum,
    "minimum": _minimum,
    "window_max": _window_max,
    "window_min": _window_min,
}
