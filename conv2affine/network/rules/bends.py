"""What comparisons, masks and steps make of piecewise-linear functions; and such a function as ReLUs.

A function that does not jump is, for any knot t of it with slopes `left` and `right` around it,

f(c) = f(t) + right * relu(c - t) - left * relu(t - c) + sum over knots s > t of bend * relu(c - s), s < t, relu(s - c)

and where knots are far away, with the line of 0 in the place of the first three terms and 0 in that of t.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.rules.operands import LARGE_BOUND, Context, Map, NoRuleError, scaled, step
from conv2affine.network.rules.piecewise import Piecewise

Function = Callable[..., Piecewise]


def write(context: Context, base: Map, function: Piecewise) -> Map:
    """The map of a function of a base, with ReLUs added to the graph.

    Raises:
        NoRuleError: If it jumps; the message has the size.
    """
    jumps = function.jumps()
    if jumps.any():
        knot, element = np.unravel_index(jumps.argmax(), jumps.shape)
        raise NoRuleError(f"it jumps by {jumps[knot, element]:.3g} at {function.knots[knot, element] + 0.0:.3g}")
    knots, slopes = function.knots, function.slopes
    if not np.isfinite([*slopes, *function.offsets, *knots]).all():
        raise NoRuleError("its constants are not finite")

    def units(kind: str, knot: Array, sign: int, scale: Array, **parameters: Any) -> Map:
        if not scale.any():
            return AffineMap.constant(np.zeros(len(scale)))
        inner = scaled(base + AffineMap.constant(-knot), sign, context.shape)
        value = context.graph.add_piece(inner, context.shape, context.origin)
        bent = step(context, kind, value, **parameters)
        return _times(AffineMap.identity(bent, bent.size), scale, context.shape)

    if abs(knots).max(initial=0) > LARGE_BOUND:
        return _from_zero(base, function, units, context.shape)
    if not len(knots):
        return _times(base, slopes[0], context.shape) + AffineMap.constant(function.offsets[0])
    pivot = min(range(len(knots)), key=lambda k: (slopes[k].any() + slopes[k + 1].any(), abs(knots[k]).max()))
    knot, left, right = knots[pivot], slopes[pivot], slopes[pivot + 1]
    total: Map = AffineMap.constant(function.at[pivot])
    if left.any() and right.all():
        slope = left / right
        total += units("leaky_relu", knot, 1, right, slope=slope[0] if (slope == slope[0]).all() else slope)
    else:
        total += units("relu", knot, 1, right) + units("relu", knot, -1, -left)
    for number, (other, bend) in enumerate(zip(knots, slopes[1:] - slopes[:-1], strict=True)):
        if number != pivot:
            total += units("relu", other, 1 if number > pivot else -1, bend)
    return total


def _from_zero(base: Map, function: Piecewise, units: Callable[..., Map], shape: tuple[int, ...]) -> Map:
    """The map of a function from the line that holds at 0: c - t loses the digits of c, where |t| is much larger."""
    knots, slopes = function.knots, function.slopes
    line = (knots < 0).sum(0, keepdims=True)
    slope, offset = (np.take_along_axis(part, line, 0)[0] for part in (slopes, function.offsets))
    total = _times(base, slope, shape) + AffineMap.constant(offset)
    for knot, bend in zip(knots, slopes[1:] - slopes[:-1], strict=True):
        total += units("relu", knot, 1, bend * (knot >= 0)) + units("relu", knot, -1, bend * (knot < 0))
    return total


def _times(map: Map, scale: Array, shape: tuple[int, ...]) -> Map:
    """The product with a number for each element."""
    return scaled(map, 1 if (scale == 1).all() else scale.reshape(shape), shape)


def _compare(test: Callable[[Array], Any]) -> Function:
    return lambda difference: difference.signs(test)


def _mask(function: Piecewise) -> Piecewise:
    """A function, if it is 0 or 1."""
    if not all(np.isin(part, (0, 1)).all() for part in (function.offsets, function.at)) or not function.is_constant:
        raise NoRuleError
    return function


def _not(x: Piecewise) -> Piecewise:
    return Piecewise.line(0, np.ones_like(x.offsets[0])) - _mask(x)


def _and(first: Piecewise, second: Piecewise) -> Piecewise:
    return _mask(first) * _mask(second)


def _or(first: Piecewise, second: Piecewise) -> Piecewise:
    return _not(_and(_not(first), _not(second)))


def _xor(first: Piecewise, second: Piecewise) -> Piecewise:
    return _and(_or(first, second), _not(_and(first, second)))


def _relu(x: Piecewise) -> Piecewise:
    return x * x.signs(lambda sign: sign > 0)


def _leaky_relu(x: Piecewise, slope: Any) -> Piecewise:
    negative: Piecewise = _relu(x * -1) * slope
    return _relu(x) - negative


def _clip(x: Piecewise, low: Any, high: Any) -> Piecewise:
    n = x.offsets.shape[1]
    for bound, sign in ((np.minimum(low, high), 1), (high, -1)):
        line = Piecewise.line(0, np.broadcast_to(np.where(np.isfinite(bound), bound, 0), n))
        x += _relu((line - x) * sign) * (sign * np.isfinite(bound))
    return x


def _maximum(first: Piecewise, second: Piecewise) -> Piecewise:
    return first + _relu(second - first)


# By the names of ATen and ONNX operators: what is 0 or 1 by the sign of a difference.
COMPARISONS: dict[str, Function] = {
    **dict.fromkeys(("gt", "Greater"), _compare(lambda sign: sign > 0)),
    **dict.fromkeys(("ge", "GreaterOrEqual"), _compare(lambda sign: sign >= 0)),
    **dict.fromkeys(("lt", "Less"), _compare(lambda sign: sign < 0)),
    **dict.fromkeys(("le", "LessOrEqual"), _compare(lambda sign: sign <= 0)),
    **dict.fromkeys(("eq", "Equal"), _compare(lambda sign: sign == 0)),
    "ne": _compare(lambda sign: sign != 0),
}
# All operators that jump, or that take what does.
MASKS: dict[str, Function] = {
    **COMPARISONS,
    **dict.fromkeys(("sign", "sgn", "Sign"), lambda x: x.signs()),
    "signbit": _compare(lambda sign: sign < 0),
    **dict.fromkeys(("logical_not", "bitwise_not", "Not"), _not),
    **dict.fromkeys(("logical_and", "bitwise_and", "And"), _and),
    **dict.fromkeys(("logical_or", "bitwise_or", "Or"), _or),
    **dict.fromkeys(("logical_xor", "bitwise_xor", "Xor"), _xor),
    **dict.fromkeys(("_to_copy", "Cast"), _mask),
}
# And the kinds of steps.
FUNCTIONS: dict[str, Function] = {
    **MASKS,
    "relu": _relu,
    "leaky_relu": _leaky_relu,
    "clip": _clip,
    "abs": lambda x: x * x.signs(),
    "maximum": _maximum,
    "minimum": lambda first, second: _maximum(first * -1, second * -1) * -1,
}
