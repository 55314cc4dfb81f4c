"""Rules of operators over positions: convolution, pooling, resizing."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
from torch import Tensor

from conv2affine.network.graph import Value
from conv2affine.network.matrices.layers import Separable, repeated
from conv2affine.network.rules import formulas, windows
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    check_numbers,
    constant,
    magnitudes,
    step,
    through,
    value,
    weight,
)
from conv2affine.network.rules.windows import Window

__all__ = [
    "adaptive_average_pool",
    "adaptive_max_pool",
    "average_pool",
    "convolution",
    "lp_pool",
    "max_pool",
    "resize",
    "sample",
]


def convolution(
    context: Context,
    x: Any,
    kernel: Any,
    bias: Any,
    window: Window,
    *,
    groups: int = 1,
    transposed: bool = False,
    output_padding: Sequence[int] = (),
) -> Map:
    """A convolution of each sample: there is one, unless other axes were moved into the first."""
    samples, _, *input_size = value(x).shape
    tensor, copied = weight(context, kernel)
    try:
        each = formulas.convolution(
            tensor,
            input_size,
            [axis.stride for axis in window],
            [axis.padding for axis in window],
            [axis.dilation for axis in window],
            groups,
            transposed=transposed,
            output_padding=output_padding,
            copied=copied,
        )
    except (ValueError, OverflowError) as error:
        raise NoRuleError(str(error)) from error
    matrix = repeated(each, samples)
    if matrix.shape[0] != prod(context.shape):
        raise NoRuleError(f"its result has {matrix.shape[0]} elements, and shape {context.shape} was inferred")
    if bias is None:
        return through(x, matrix)
    return through(x, matrix, np.tile(np.repeat(constant(bias), prod(context.shape[2:])), samples))


def average_pool(
    context: Context, x: Any, window: Window, *, count_include_pad: bool = True, divisor: float | None = None
) -> Map:
    """The mean of each window over the last axes; a divisor takes the place of the number of elements."""
    shape, sizes = value(x).shape, (value(x).shape[-len(window) :], context.shape[-len(window) :])
    _taps(*sizes, window)
    channels = prod(shape[: -len(window)])
    return through(
        x, windows.average_pool(channels, *sizes, window, count_include_pad=count_include_pad, divisor=divisor)
    )


def lp_pool(context: Context, x: Any, window: Window, order: float) -> Map:
    """The sum of the absolute values in each window over the last axes, for the order 1."""
    if order != 1:
        raise NoRuleError(f"its order is {order:g}, and not 1")
    return average_pool(context, magnitudes(context, x), window, divisor=1)


def max_pool(context: Context, x: Any, window: Window) -> Value:
    """The largest element of each window over the last axes."""
    shape = value(x).shape
    check_numbers(prod(context.shape) * prod(axis.kernel for axis in window))
    over = windows.join_taps(shape, _taps(shape[-len(window) :], context.shape[-len(window) :], window))
    return step(context, "window_max", value(x), call=context.call, windows=over)


def _taps(input_size: Sequence[int], output_size: Sequence[int], window: Window) -> list[Any]:
    """What windows read along each axis; one without elements has no maximum and no mean."""
    taps = windows.taps(input_size, output_size, window)
    if any((axis < 0).all(axis=1).any() for axis in taps):
        raise NoRuleError("a window lies in the padding")
    return taps


def adaptive_average_pool(context: Context, x: Any, axes: int) -> Map:
    """The means of windows over the last `axes` axes."""
    shape = value(x).shape
    return through(x, windows.adaptive_average_pool(prod(shape[:-axes]), shape[-axes:], context.shape[-axes:]))


def adaptive_max_pool(context: Context, x: Any, axes: int) -> Value:
    """The largest elements of windows over the last `axes` axes."""
    over = windows.adaptive_windows(value(x).shape, context.shape[-axes:])
    return step(context, "window_max", value(x), call=context.call, windows=over)


def resize(context: Context, x: Any, lines: Iterable[Any]) -> Map:
    """A matrix (output size, input size) for each of the last axes."""
    lines = list(lines)
    shape = value(x).shape
    return through(x, formulas.separable(prod(shape[: len(shape) - len(lines)]), lines))


def sample(context: Context, x: Any, function: Callable[[Tensor], Tensor]) -> Map:
    """What a linear function of images reads near constant positions, the same for each channel."""
    samples, channels, *sizes = value(x).shape
    if samples != 1:
        raise NoRuleError("each sample has positions of its own")
    return through(x, Separable(channels, (formulas.windowed(function, sizes),)))
