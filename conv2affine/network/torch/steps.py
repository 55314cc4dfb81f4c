"""One rule per ATen operator that is a nonlinear step with a meaning of its own; see `kinds`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import NoRuleError, as_shape, constant, elementwise, step, value
from conv2affine.network.rules.table import Table
from conv2affine.network.torch.rules import Context, per_axis

__all__ = ["RULES"]

RULES = Table()
rule = RULES.rule


@rule("relu")
def relu(context: Context, input: Any) -> Value:
    return step(context, "relu", value(input))


@rule("abs")
def absolute(context: Context, input: Any) -> Value:
    return step(context, "abs", value(input))


@rule("leaky_relu")
def leaky_relu(context: Context, input: Any, negative_slope: Any = 0.01) -> Value:
    return step(context, "leaky_relu", value(input), slope=constant(negative_slope))


@rule("prelu")
def prelu(context: Context, input: Any, weight: Any) -> Value:
    slope, shape = constant(weight), value(input).shape
    if len(shape) > 1:
        slope = slope.reshape(1, -1, *(1 for _ in shape[2:]))
    return step(context, "leaky_relu", value(input), slope=elementwise(context, slope))


@rule("hardtanh")
def hardtanh(context: Context, input: Any, min_val: Any = -1, max_val: Any = 1) -> Value:
    return clamp(context, input, min_val, max_val)


@rule("clamp")
def clamp(context: Context, input: Any, min: Any = None, max: Any = None) -> Value:
    low = elementwise(context, -np.inf if min is None else min)
    high = elementwise(context, np.inf if max is None else max)
    return step(context, "clip", as_shape(context, input), low=low, high=high)


@rule("hardsigmoid")
def hardsigmoid(context: Context, input: Any) -> Value:
    source = value(input)
    inner = AffineMap.identity(source, source.size).then(rules.diagonal(1 / 6, source.shape), np.full(source.size, 0.5))
    scaled = context.graph.add_piece(inner, source.shape, context.origin)
    return step(context, "clip", scaled, low=np.float64(0), high=np.float64(1))


@rule("threshold")
def threshold(context: Context, input: Any, threshold: Any, value: Any) -> Value:
    if threshold != value:
        raise NoRuleError  # it jumps
    return clamp(context, input, threshold)


@rule("maximum")
def maximum(context: Context, input: Any, other: Any) -> Value:
    if not isinstance(input, Value):
        input, other = other, input
    if not isinstance(other, Value):
        return clamp(context, input, min=other)
    return step(context, "maximum", as_shape(context, input), as_shape(context, other))


@rule("minimum")
def minimum(context: Context, input: Any, other: Any) -> Value:
    if not isinstance(input, Value):
        input, other = other, input
    if not isinstance(other, Value):
        return clamp(context, input, max=other)
    return step(context, "minimum", as_shape(context, input), as_shape(context, other))


@rule("amax", "max.dim", "amin", "min.dim")
def amax(context: Context, input: Any, dim: Any = None, keepdim: bool = False) -> Value:
    source = value(input)
    axes = [dim] if isinstance(dim, int) else dim or range(len(source.shape))
    windows = rules.reduce_windows(source.shape, axes)
    kind = "window_max" if context.name in ("amax", "max") else "window_min"
    return step(context, kind, source, operator=context.operator, windows=windows)


@rule("max_pool1d", "max_pool2d", "max_pool3d", "max_pool2d_with_indices")
def max_pool(
    context: Context,
    input: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    dilation: Sequence[int] = (1,),
    ceil_mode: bool = False,
) -> Value:
    source, axes = value(input), context.axes
    kernel = per_axis(kernel_size, axes)
    windows = rules.pool_windows(
        source.shape,
        context.shape[-axes:],
        kernel,
        per_axis(stride, axes) if stride else kernel,
        per_axis(padding, axes),
        per_axis(dilation, axes),
    )
    return step(context, "window_max", source, operator=context.operator, windows=windows)


@rule("adaptive_max_pool1d", "adaptive_max_pool2d", "adaptive_max_pool3d")
def adaptive_max_pool(context: Context, input: Any, output_size: Any) -> Value:
    source = value(input)
    windows = rules.adaptive_windows(source.shape, context.shape[-context.axes :])
    return step(context, "window_max", source, operator=context.operator, windows=windows)
