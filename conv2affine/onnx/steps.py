"""One rule per ONNX operator that is a nonlinear step with a meaning of its own; see `network.kinds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import Map, as_shape, constant, elementwise, step, value
from conv2affine.network.rules.table import Table
from conv2affine.onnx.rules import Context, pool_windows, reduced_axes, window, window_padding

__all__ = ["RULES"]

RULES = Table()
rule = RULES.rule


@rule("Relu")
def relu(context: Context, x: Any) -> Value:
    return step(context, "relu", value(x))


@rule("Abs")
def absolute(context: Context, x: Any) -> Value:
    return step(context, "abs", value(x))


@rule("LeakyRelu")
def leaky_relu(context: Context, x: Any, *, alpha: float = 0.01) -> Value:
    return step(context, "leaky_relu", value(x), slope=np.float64(alpha))


@rule("PRelu")
def prelu(context: Context, x: Any, slope: Any) -> Value:
    return step(context, "leaky_relu", value(x), slope=elementwise(context, slope))


@rule("Clip")
def clip(context: Context, x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Value:
    """The bounds are attributes before opset 11."""
    low, high = (a if b is None else b for a, b in ((low, min), (high, max)))
    bounds = (
        elementwise(context, -np.inf if low is None else low),
        elementwise(context, np.inf if high is None else high),
    )
    return step(context, "clip", as_shape(context, x), low=bounds[0], high=bounds[1])


@rule("HardSigmoid")
def hard_sigmoid(context: Context, x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Value:
    source = value(x)
    inner: Map = AffineMap.identity(source, source.size)
    inner = inner.then(rules.diagonal(alpha, source.shape), np.full(source.size, beta))
    scaled = context.graph.add_piece(inner, source.shape, context.origin)
    return step(context, "clip", scaled, low=np.float64(0), high=np.float64(1))


@rule("Max", "Min")
def extremum(context: Context, *terms: Any) -> Value:
    """Of all terms, one after the other; constants are bounds."""
    kind, bound = ("maximum", "low") if context.operator.op_type == "Max" else ("minimum", "high")
    constants = [constant(term) for term in terms if not isinstance(term, Value)]
    first, *others = [as_shape(context, term) for term in terms if isinstance(term, Value)]
    for other in others:
        first = step(context, kind, first, other)
    if constants:
        limit = (np.maximum if bound == "low" else np.minimum).reduce(np.broadcast_arrays(*constants))
        bounds: Any = {"low": np.float64(-np.inf), "high": np.float64(np.inf), bound: elementwise(context, limit)}
        first = step(context, "clip", first, **bounds)
    return first


@rule("MaxPool")
def max_pool(
    context: Context,
    x: Any,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    storage_order: int = 0,
    strides: Sequence[int] | None = None,
) -> Value:
    source = value(x)
    input_size = source.shape[2:]
    kernel, stride, dilation = window(kernel_shape, strides, dilations)
    padding = window_padding(auto_pad, pads, input_size, kernel, stride, dilation)
    windows = pool_windows(source.shape, context.shape[2:], kernel, stride, padding, dilation)
    return step(context, "window_max", source, operator=context.operator, windows=windows)


@rule("GlobalMaxPool")
def global_max_pool(context: Context, x: Any) -> Value:
    shape = value(x).shape
    windows = rules.reduce_windows(shape, range(2, len(shape)))
    return step(context, "window_max", value(x), operator=context.operator, windows=windows)


@rule("ReduceMax", "ReduceMin")
def reduce_max(
    context: Context,
    x: Any,
    axes_input: Any = None,
    *,
    axes: Any = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Value:
    over = reduced_axes(x, axes if axes_input is None else axes_input, noop_with_empty_axes)
    kind = "window_max" if context.operator.op_type == "ReduceMax" else "window_min"
    windows = rules.reduce_windows(value(x).shape, over)
    return step(context, kind, value(x), operator=context.operator, windows=windows)
