"""Rules of the nonlinear steps that `network.kinds` defines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import selection
from conv2affine.network.rules.bends import write
from conv2affine.network.rules.formulas import diagonal
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    Rule,
    as_shape,
    check_numbers,
    constant,
    elementwise,
    step,
    through,
    value,
)
from conv2affine.network.rules.piecewise import Piecewise

__all__ = [
    "clip",
    "extremum",
    "hard_sigmoid",
    "leaky_relu",
    "order",
    "plain",
    "running_extremum",
    "shrink",
    "threshold",
]

# Elements that are put in order; 32 take 191 comparators.
MAX_ORDERED = 32


def plain(kind: str) -> Rule:
    """The rule of a kind of one input and no parameters."""

    def rule(context: Context, x: Any) -> Value:
        return step(context, kind, value(x))

    return rule


def leaky_relu(context: Context, x: Any, slope: Any = 0.01) -> Value:
    """The value where it is positive, else slope times it."""
    return step(context, "leaky_relu", value(x), slope=elementwise(context, slope))


def clip(context: Context, x: Any, low: Any = None, high: Any = None) -> Value:
    """The value between two bounds, values or constants; None for no bound."""
    if isinstance(low, Value) or isinstance(high, Value):
        for kind, bound in (("maximum", low), ("minimum", high)):
            x = x if bound is None else extremum(kind)(context, x, bound)
        return value(x)
    low = elementwise(context, -np.inf if low is None else low)
    high = elementwise(context, np.inf if high is None else high)
    return step(context, "clip", as_shape(context, x), low=low, high=high)


def threshold(context: Context, x: Any, low: Any, below: Any) -> Value:
    """The value where it is larger than low, else `below`."""
    if low != below:
        raise NoRuleError(f"it jumps by {abs(low - below):.3g} at {low:.3g}")
    return clip(context, x, low)


def shrink(context: Context, x: Any, *, bias: float = 0.0, lambd: float = 0.5) -> Map:
    """The value - bias where it is larger than lambd, + bias where it is smaller than -lambd, else 0."""
    if lambd < 0:
        raise NoRuleError(f"lambd = {lambd}")
    source = value(x)
    columns = ([-lambd, lambd], [1, 0, 1], [bias, 0, -bias], [0, 0])
    parts = [np.repeat(np.array(column, np.float64)[:, None], source.size, axis=1) for column in columns]
    return write(context, AffineMap.identity(source, source.size), Piecewise(*parts).simpler())


def hard_sigmoid(context: Context, x: Any, slope: float = 0.2, offset: float = 0.5) -> Value:
    """The clip of slope * x + offset between 0 and 1."""
    source = value(x)
    inner = through(source, diagonal(slope, source.shape), np.full(source.size, offset))
    return clip(context, context.graph.add_piece(inner, source.shape, context.origin), 0, 1)


def extremum(kind: str) -> Rule:
    """The rule of "maximum" or "minimum" of all operands, one after the other; constants are bounds."""
    bound, tightest = {"maximum": ("low", np.maximum), "minimum": ("high", np.minimum)}[kind]

    def rule(context: Context, *terms: Any) -> Value:
        constants = [constant(term) for term in terms if not isinstance(term, Value)]
        first, *others = [as_shape(context, term) for term in terms if isinstance(term, Value)]
        for other in others:
            first = step(context, kind, first, other)
        if constants:
            first = clip(context, first, **{bound: tightest.reduce(np.broadcast_arrays(*constants))})
        return first

    return rule


def running_extremum(context: Context, x: Any, axis: int, how: str) -> Value:
    """The "max" or "min" of the elements up to each one along an axis."""
    shape = value(x).shape
    axis %= len(shape)
    check_numbers(value(x).size * shape[axis])
    lines = np.moveaxis(np.arange(value(x).size).reshape(shape), axis, -1)[..., None, :]
    windows = np.where(np.tri(shape[axis], dtype=bool), lines, -1)
    windows = np.moveaxis(windows, -2, axis).reshape(-1, shape[axis])
    return step(context, f"window_{how}", value(x), call=context.call, windows=windows)


def order(context: Context, x: Any, axis: int, ranks: Sequence[int]) -> Map:
    """The elements of these ranks along an axis, 0 for the smallest, by comparators."""
    source = value(x)
    size = source.shape[axis]
    if size > MAX_ORDERED:
        raise NoRuleError(f"it puts {size} elements in order, more than {MAX_ORDERED}")
    lines = np.moveaxis(np.arange(source.size).reshape(source.shape), axis, 0)
    positions, graph = lines[0].size, context.graph

    def rows(value: Value, index: Any) -> Map:
        return AffineMap.identity(value, value.size).at(index, positions)

    def piece(map: Map) -> Value:
        return graph.add_piece(map, (1, map.size), context.origin)

    current = piece(through(source, selection(lines.ravel(), source.size)))
    for pairs in _comparators(size, ranks):
        sides = [piece(rows(current, each)) for each in pairs]
        index = np.arange(size)
        index[pairs.ravel()] = -1
        total = rows(current, index)
        for kind, each in zip(("minimum", "maximum"), pairs, strict=True):
            index = np.full(size, -1)
            index[each] = np.arange(len(each))
            total += rows(graph.add_step(kind, sides, sides[0].shape, origin=context.origin), index)
        current = piece(total)
    places = np.asarray(ranks)[:, None] * positions + np.arange(positions)
    places = np.moveaxis(places.reshape(-1, *lines.shape[1:]), 0, axis)
    return through(current, selection(places.ravel(), current.size))


def _comparators(size: int, ranks: Sequence[int]) -> list[Any]:
    """Rounds (2, pairs) of a network that sorts, by Batcher's merge exchange, as far as these ranks depend on them."""
    rounds = []
    largest = 1 << max(0, (size - 1).bit_length() - 1)
    for bit in (largest >> number for number in range(largest.bit_length())):
        apart, rest, other = bit, 0, largest
        while apart:
            first = np.arange(size - apart)
            first = first[(first & bit) == rest]
            rounds.append(np.stack([first, first + apart]))
            apart, rest, other = other - bit, bit, other >> 1
    needed = np.isin(np.arange(size), ranks)
    for number, pairs in reversed(list(enumerate(rounds))):
        rounds[number] = pairs[:, needed[pairs].any(0)]
        needed[rounds[number]] = True
    return [pairs for pairs in rounds if pairs.size]
