"""The windows of pooling and reductions: the matrices of their means, and the elements that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.matrices.layers import Separable
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.rules.formulas import convolution


class Axis(NamedTuple):
    """The window and its steps along one axis; padding is (left, right)."""

    kernel: int
    stride: int = 1
    padding: tuple[int, int] = (0, 0)
    dilation: int = 1

    def inputs(self, outputs: int) -> Any:
        """(outputs, kernel): the input that each output and tap read, inside or not."""
        first = np.arange(outputs)[:, None] * self.stride - self.padding[0]
        return first + np.arange(self.kernel) * self.dilation


Window = Sequence[Axis]


def average_pool(
    channels: int,
    input_size: Sequence[int],
    output_size: Sequence[int],
    window: Window,
    *,
    count_include_pad: bool,
    divisor: float | None = None,
) -> Matrix:
    """Average pooling; the output size shows whether it was rounded up."""
    kernel_size, stride, padding, dilation = zip(*window, strict=True)
    sizes = list(zip(window, input_size, output_size, strict=True))
    # Rounded down, no window leaves the padded input.
    full = all((i + sum(a.padding) - (a.kernel - 1) * a.dilation - 1) // a.stride + 1 == o for a, i, o in sizes)
    if full and (divisor or not any(map(any, padding))):
        # All windows are alike: a convolution, which may be merged with the one before it.
        count = divisor or prod(kernel_size)
        weight = torch.full((channels, 1, *kernel_size), 1 / count, dtype=torch.float64)
        return convolution(weight, input_size, stride, padding, dilation, channels, copied=False)
    axes = []
    for axis, size, outputs in sizes:
        inputs = axis.inputs(outputs)
        inside = (inputs >= 0) & (inputs < size)
        counted = (inputs < size + axis.padding[1]) if count_include_pad else inside
        weights = inside / (1 if divisor else counted.sum(1, keepdims=True))
        axes.append(_axis(weights[inside], inputs[inside], inside.sum(1), size))
    if divisor:
        axes[0] = axes[0] / divisor
    return Separable(channels, tuple(axes))


def adaptive_average_pool(channels: int, input_size: Sequence[int], output_size: Sequence[int]) -> Separable:
    """The mean of each window of an adaptive pooling."""
    axes = []
    for size, outputs in zip(input_size, output_size, strict=True):
        inputs = _adaptive(size, outputs)
        inside = inputs >= 0
        lengths = inside.sum(1)
        axes.append(_axis(1 / np.repeat(lengths, lengths), inputs[inside], lengths, size))
    return Separable(channels, tuple(axes))


def _axis(weights: Array, inputs: Any, lengths: Any, size: int) -> csr_array:
    return csr_array((weights, inputs, np.r_[0, np.cumsum(lengths)]), shape=(len(lengths), size))


def taps(input_size: Sequence[int], output_size: Sequence[int], window: Window) -> list[Any]:
    """The inputs (outputs, taps) that a window reads along each axis, -1 for none."""
    lines = [(axis.inputs(outputs), size) for axis, size, outputs in zip(window, input_size, output_size, strict=True)]
    return [np.where((inputs >= 0) & (inputs < size), inputs, -1) for inputs, size in lines]


def join_taps(shape: Sequence[int], taps: Sequence[Any]) -> Any:
    """The windows, as the step `window_max` takes them, from what they read along each of the last axes."""
    windows = np.arange(prod(shape[: len(shape) - len(taps)]))[:, None]
    for size, line in zip(shape[len(shape) - len(taps) :], taps, strict=True):
        before, after = windows[:, None, :, None], line[None, :, None, :]
        joined = np.where((before < 0) | (after < 0), -1, before * size + after)
        windows = joined.reshape(len(windows) * len(line), -1)
    return windows


def adaptive_windows(shape: Sequence[int], output_size: Sequence[int]) -> Any:
    """The windows of an adaptive pooling over the last axes."""
    return join_taps(shape, list(map(_adaptive, shape[-len(output_size) :], output_size)))


def reduce_windows(shape: Sequence[int], axes: Iterable[int]) -> Any:
    """The windows of a reduction over axes."""
    reduced = sorted(axis % len(shape) for axis in axes)
    kept = [axis for axis in range(len(shape)) if axis not in reduced]
    numbers = np.arange(prod(shape)).reshape(shape).transpose(*kept, *reduced)
    return numbers.reshape(-1, prod(shape[axis] for axis in reduced))


def _adaptive(size: int, outputs: int) -> Any:
    """The inputs (outputs, taps) of each output o, floor(o * I / O) to ceil((o + 1) * I / O), -1 for none."""
    o = np.arange(outputs)
    starts, stops = o * size // outputs, -(-(o + 1) * size // outputs)
    inputs = starts[:, None] + np.arange((stops - starts).max())
    return np.where(inputs < stops[:, None], inputs, -1)
