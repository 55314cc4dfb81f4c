"""Rules of the nonlinear steps that `network.kinds` defines."""

from __future__ import annotations

from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.rules.bends import write
from conv2affine.network.rules.formulas import diagonal
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    Rule,
    as_shape,
    constant,
    elementwise,
    step,
    through,
    value,
)
from conv2affine.network.rules.piecewise import Piecewise

__all__ = ["clip", "extremum", "hard_sigmoid", "leaky_relu", "plain", "shrink", "threshold"]


def plain(kind: str) -> Rule:
    """The rule of a kind of one input and no parameters."""

    def rule(context: Context, x: Any) -> Value:
        return step(context, kind, value(x))

    return rule


def leaky_relu(context: Context, x: Any, slope: Any = 0.01) -> Value:
    """The value where it is positive, else slope times it."""
    return step(context, "leaky_relu", value(x), slope=elementwise(context, slope))


def clip(context: Context, x: Any, low: Any = None, high: Any = None) -> Value:
    """The value between two bounds; None for no bound."""
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
