"""Rules of operators over positions: convolution, pooling, resizing, Fourier transforms.

Complex numbers are pairs in the last axis; one number there is a real one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.network.graph import Value
from conv2affine.network.matrices.layers import Separable, repeated
from conv2affine.network.matrices.matrix import Array, Sparse
from conv2affine.network.rules import formulas, windows
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    broadcast,
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
    "by_units",
    "convolution",
    "fourier",
    "lp_pool",
    "max_pool",
    "resize",
    "sample",
    "short_time_fourier",
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


def resize(context: Context, x: Any, lines: Sequence[Any]) -> Map:
    """A matrix (output size, input size) for each of the last axes."""
    shape = value(x).shape
    return through(x, formulas.separable(prod(shape[: len(shape) - len(lines)]), lines))


def sample(context: Context, x: Any, function: Callable[[Tensor], Tensor]) -> Map:
    """What a linear function of images reads near constant positions, the same for each channel."""
    samples, channels, *sizes = value(x).shape
    if samples != 1:
        raise NoRuleError("each sample has positions of its own")
    return through(x, Separable(channels, (formulas.windowed(function, sizes),)))


def by_units(context: Context, x: Any, function: Callable[[Array], Array]) -> Map:
    """An affine function of one sample, from its results for a batch of all unit vectors and 0."""
    (samples, *shape), size = value(x).shape, value(x).size
    if samples != 1:
        raise NoRuleError(f"its input has {samples} samples")
    check_numbers(size * max(size, prod(context.shape)))
    rows = function(np.eye(size + 1, size).reshape(size + 1, *shape)).reshape(size + 1, -1)
    return through(x, Sparse(csr_array((rows[:-1] - rows[-1]).T)), rows[-1])


def fourier(
    context: Context, x: Any, axis: int, length: int | None = None, *, inverse: bool = False, onesided: bool = False
) -> Map:
    """The transform along an axis, of a length to which it is cut or filled with zeros; onesided, half of it."""
    shape = value(x).shape
    axis %= len(shape)
    if axis == len(shape) - 1:
        raise NoRuleError("its axis is that of the pairs")
    half = inverse and onesided
    transform: Any = np.fft.irfft if half else np.fft.ifft if inverse else np.fft.fft
    length = length or (2 * (shape[axis] - 1) if half else shape[axis])
    matrix = _columns(transform, np.ones(shape[axis]), length, shape[-1], onesided and not inverse)
    order = [*(other for other in range(len(shape) - 1) if other != axis), axis, len(shape) - 1]
    lines = _permuted(broadcast(x, shape), shape, order)
    others = [shape[other] for other in order[:-2]]
    weight = torch.from_numpy(matrix.reshape(shape[axis] * shape[-1], -1))
    product = lines.then(formulas.matmul_right(weight, [prod(others), len(weight)], copied=False))
    return _permuted(product, [*others, *matrix.shape[2:]], np.argsort(order).tolist())


def short_time_fourier(context: Context, x: Any, step: int, window: Any, *, onesided: bool = True) -> Map:
    """The transforms of windows (samples, windows, frequencies, 2) of a signal (samples, length, 1 or 2)."""
    samples, size, parts = value(x).shape
    window = constant(window)
    matrix = _columns(np.fft.fft, window, len(window), parts, onesided)
    kernel = torch.from_numpy(matrix.reshape(len(window), parts, -1)).permute(2, 1, 0)
    each = formulas.convolution(kernel, [size], [step], [(0, 0)], [1], copied=False)
    windows = each.geometry.output_size[0]
    channels = _permuted(broadcast(x, value(x).shape), value(x).shape, (0, 2, 1))
    return _permuted(channels.then(repeated(each, samples)), [samples, len(kernel), windows], (0, 2, 1))


def _columns(transform: Callable[..., Any], window: Any, length: int, parts: int, onesided: bool) -> Any:
    """What a transform makes of each element: (elements, parts, frequencies, parts of the result)."""
    check_numbers(2 * parts * len(window) * length)
    units = np.eye(len(window))[:, None] * window * np.array([1, 1j][:parts])[:, None]
    result = transform(units, length)
    result = result[..., : length // 2 + 1] if onesided else result
    return np.stack([result.real, result.imag] if np.iscomplexobj(result) else [result], -1)


def _permuted(map: Map, shape: Sequence[int], order: Sequence[int]) -> Map:
    """The elements of a map, of this shape, with the axes in another order."""
    return map.at(np.arange(map.size).reshape(shape).transpose(order).ravel())
