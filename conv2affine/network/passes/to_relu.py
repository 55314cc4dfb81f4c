"""The pass that turns piecewise-linear steps into affine pieces and ReLUs, exactly.

leaky_relu(x) = relu(x) - slope * relu(-x)    max(a, b) = a + relu(b - a)
|x|           = relu(x) + relu(-x)            min(a, b) = a - relu(a - b)

clip(x) = low + relu(x - low) - relu(x - high)     where |low| is the smaller bound
        = high - relu(high - x) + relu(low - x)    where |high| is the smaller
        = x - relu(x - high) + relu(low - x)       where both are large, as x - low rounds away the digits of x

The maximum of a window is that of its halves, and so on.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Mapping
from typing import Any

import numpy as np
import torch

from conv2affine.network.graph import Graph, Node, Piece, Step, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.passes.simplify import Rewritten, rewrite
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import LARGE_BOUND

Map = AffineMap[Value]


def to_relu(graph: Graph, dtype: torch.dtype, kinds: Container[str] | None = None) -> Graph:
    """A graph in which piecewise-linear steps of these kinds, by default of all, are affine pieces and ReLUs.

    The result computes in this dtype: a bound that no number of it exceeds is dropped.
    """
    largest = torch.finfo(dtype).max
    sizes: dict[Value, Any] = {}

    def rule(node: Node) -> Rewritten:
        if isinstance(node, Piece):
            sizes[node.output] = _size(node.map, sizes)
        if not isinstance(node, Step) or node.kind == "relu" or (kinds is not None and node.kind not in kinds):
            return None
        part, origin = Graph(), node.name
        writer = _Writer(part, origin, largest, sizes)
        result = RULES[node.kind](writer, *map(_identity, node.inputs), **node.parameters)
        value = part.add_piece(result, node.outputs[0].shape, origin)
        return part.nodes, value

    return rewrite(graph, rule)


@dataclasses.dataclass(frozen=True)
class _Writer:
    """Adds the pieces and ReLUs of one step to a graph; `largest` is the largest number of the dtype."""

    graph: Graph
    origin: str
    largest: float
    sizes: Mapping[Value, Any]

    def size(self, map: Map) -> Any:
        """How large the constants and factors are in each element of a value."""
        [source] = map.terms
        return self.sizes.get(source, np.zeros(map.size))

    def value(self, map: Map) -> Value:
        """The value of a map."""
        return self.graph.add_piece(map, (1, map.size), self.origin)

    def relu(self, map: Map) -> Map:
        """The ReLU of a map."""
        value = self.graph.add_step("relu", [self.value(map)], (1, map.size), origin=self.origin)
        return _identity(value)


def _size(map: Map, sizes: Mapping[Value, Any]) -> Any:
    """The largest of the constant and of the factors that make each element; roughly, and 0 for usual factors."""
    largest = 0.0
    for source, matrix in map.terms.items():
        factor = max((float(abs(part).max()) for part in matrix.numbers if len(part)), default=1.0)
        largest = max(largest, factor * max(1.0, float(np.max(sizes.get(source, 0), initial=0))))
    return np.maximum(abs(map.bias), largest if largest > LARGE_BOUND else 0)


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
    low, high = np.where(low <= -writer.largest, -np.inf, low), np.where(high >= writer.largest, np.inf, high)
    from_x = np.minimum(-low, high) > LARGE_BOUND
    from_low = ~from_x & (abs(low) <= abs(high))
    from_high = ~from_x & ~from_low
    bends = low < high
    result = _where(from_x, x) + AffineMap.constant(np.where(from_low, low, 0) + np.where(from_high, high, 0))
    for mask, sign, bound, slope in (
        (from_low, 1, low, 1),
        (from_low | from_x, 1, high, -1),
        (from_high, -1, high, -1),
        (from_high | from_x, -1, low, 1),
    ):
        result += _bend(writer, x, mask & bends & np.isfinite(bound), sign, bound, slope)
    return result


def _bend(writer: _Writer, x: Map, mask: Any, sign: int, bound: Any, slope: int) -> Map:
    """The map slope * relu(sign * (x - bound)) where the mask holds, else 0."""
    places = np.flatnonzero(mask)
    if not len(places):
        return AffineMap.constant(np.zeros(x.size))
    offset = AffineMap[Value].constant(-sign * bound[places])
    units = _scaled(writer.relu(_scaled(x.at(places), sign) + offset), slope)
    return units if mask.all() else units.at(np.where(mask, mask.cumsum() - 1, -1))


def _abs(writer: _Writer, x: Map) -> Map:
    return writer.relu(x) + writer.relu(_scaled(x, -1))


def _maximum(writer: _Writer, a: Map, b: Map) -> Map:
    a, b = _smaller_first(writer, a, b)
    return a + writer.relu(_minus(b, a))


def _minimum(writer: _Writer, a: Map, b: Map) -> Map:
    a, b = _smaller_first(writer, a, b)
    return _minus(a, writer.relu(_minus(a, b)))


def _smaller_first(writer: _Writer, a: Map, b: Map) -> tuple[Map, Map]:
    """The operands, swapped where a has the large constant: a + relu(b - a) loses the digits of b where a is -1e9."""
    is_large = _is_large(writer.size(a), writer.size(b))
    if not is_large.any():
        return a, b
    return _where(~is_large, a) + _where(is_large, b), _where(~is_large, b) + _where(is_large, a)


def _is_large(bias: Any, other: Any) -> Any:
    return bias > np.maximum(LARGE_BOUND, other)


def _window_max(writer: _Writer, x: Map, windows: Any) -> Map:
    """A tree: each round halves the windows; a pair that occurs in several of them is compared once."""
    bias = writer.size(x)
    windows = -np.sort(-windows, axis=1)
    windows = np.where(np.diff(windows, axis=1, prepend=-2) == 0, -1, windows)  # each once
    while (windows := _packed(windows)).shape[1] > 1:
        if windows.shape[1] % 2:
            windows = np.pad(windows, ((0, 0), (0, 1)), constant_values=-1)
        pairs, inverse = np.unique(windows.reshape(-1, 2), axis=0, return_inverse=True)
        swapped = (pairs[:, 1] >= 0) & _is_large(bias[pairs[:, 0]], bias[pairs[:, 1]])
        first, second = np.where(swapped, pairs.T[::-1], pairs.T)
        bias = bias[first]
        compared = np.flatnonzero(second >= 0)
        larger = writer.relu(_minus(x.at(second[compared]), x.at(first[compared])))
        places = np.full(len(pairs), -1)
        places[compared] = np.arange(len(compared))
        x = _identity(writer.value(x.at(first) + larger.at(places)))
        windows = np.where(windows[:, ::2] < 0, -1, inverse.reshape(windows.shape[0], -1))
    return x.at(windows[:, 0])


def _packed(windows: Any) -> Any:
    """The windows with -1 last, and no more of them than the largest window needs."""
    windows = -np.sort(-windows, axis=1)
    return windows[:, : max(1, (windows >= 0).sum(1).max(initial=0))]


def _window_min(writer: _Writer, x: Map, windows: Any) -> Map:
    return _scaled(_window_max(writer, _scaled(x, -1), windows), -1)


def _where(mask: Any, map: Map) -> Map:
    """The map where the mask holds, else 0."""
    return map if mask.all() else map.at(np.where(mask, np.arange(map.size), -1))


RULES: dict[str, Callable[..., Map]] = {
    "leaky_relu": _leaky_relu,
    "clip": _clip,
    "abs": _abs,
    "maximum": _maximum,
    "minimum": _minimum,
    "window_max": _window_max,
    "window_min": _window_min,
}
