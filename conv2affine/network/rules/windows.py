"""The windows of pooling and reductions: the matrices of their means, and the elements that they hold."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.matrices.layers import Separable
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.rules.formulas import convolution

__all__ = [
    "adaptive_average_pool",
    "adaptive_windows",
    "average_pool",
    "join_taps",
    "reduce_windows",
    "taps",
]

Pairs = Sequence[tuple[int, int]]


def average_pool(
    channels: int,
    input_size: Sequence[int],
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
    *,
    count_include_pad: bool,
    divisor: float | None = None,
) -> Matrix:
    """Average pooling; the output size shows whether it was rounded up."""
    lines = list(zip(input_size, output_size, kernel_size, stride, padding, dilation, strict=True))
    # Rounded down, no window leaves the padded input.
    full = all((i + sum(sides) - (k - 1) * d - 1) // s + 1 == o for i, o, k, s, sides, d in lines)
    if full and (divisor or not any(map(any, padding))):
        # All windows are alike: a convolution, which may become one with that before it.
        count = divisor or prod(kernel_size)
        weight = torch.full((channels, 1, *kernel_size), 1 / count, dtype=torch.float64)
        return convolution(weight, input_size, stride, padding, dilation, channels, copied=False)
    axes = []
    for size, outputs, kernel, step, sides, apart in lines:
        inputs = _inputs(outputs, kernel, step, sides[0], apart)
        inside = (inputs >= 0) & (inputs < size)
        counted = (inputs < size + sides[1]) if count_include_pad else inside
        weights = inside / (1 if divisor else counted.sum(1, keepdims=True))
        axes.append(_axis(weights[inside], inputs[inside], inside.sum(1), size))
    if divisor:
        axes[0] = axes[0] / divisor
    return Separable(channels, tuple(axes))


def adaptive_average_pool(channels: int, input_size: Sequence[int], output_size: Sequence[int]) -> Separable:
    """The mean over inputs floor(o * I / O) to ceil((o + 1) * I / O) for each output o."""
    axes = []
    for size, outputs in zip(input_size, output_size, strict=True):
        starts, stops = _adaptive(size, outputs)
        taps = np.arange(size)[None]
        inside = (taps >= starts[:, None]) & (taps < stops[:, None])
        lengths = stops - starts
        axes.append(_axis(1 / np.repeat(lengths, lengths), np.nonzero(inside)[1], lengths, size))
    return Separable(channels, tuple(axes))


def _axis(weights: Array, inputs: Any, lengths: Any, size: int) -> csr_array:
    return csr_array((weights, inputs, np.r_[0, np.cumsum(lengths)]), shape=(len(lengths), size))


def taps(
    input_size: Sequence[int],
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Pairs,
    dilation: Sequence[int],
) -> list[Any]:
    """The inputs (outputs, taps) that a pooling reads along each axis, -1 for none."""
    taps = []
    for size, outputs, kernel, step, (left, _), apart in zip(
        input_size, output_size, kernel_size, stride, padding, dilation, strict=True
    ):
        inputs = _inputs(outputs, kernel, step, left, apart)
        taps.append(np.where((inputs >= 0) & (inputs < size), inputs, -1))
    return taps


def join_taps(shape: Sequence[int], taps: Sequence[Any]) -> Any:
    """The windows, as the step `window_max` takes them, from what they read along each of the last axes."""
    windows = np.arange(prod(shape[: len(shape) - len(taps)]))[:, None]
    for size, line in zip(shape[len(shape) - len(taps) :], taps, strict=True):
        before, after = windows[:, None, :, None], line[None, :, None, :]
        joined = np.where((before < 0) | (after < 0), -1, before * size + after)
        windows = joined.reshape(len(windows) * len(line), -1)
    return windows


def adaptive_windows(shape: Sequence[int], output_size: Sequence[int]) -> Any:
    """The windows of an adaptive pooling over the last axes: inputs floor(o * I / O) to ceil((o + 1) * I / O)."""
    taps = []
    for size, outputs in zip(shape[-len(output_size) :], output_size, strict=True):
        starts, stops = _adaptive(size, outputs)
        inputs = starts[:, None] + np.arange((stops - starts).max())
        taps.append(np.where(inputs < stops[:, None], inputs, -1))
    return join_taps(shape, taps)


def reduce_windows(shape: Sequence[int], axes: Iterable[int]) -> Any:
    """The windows of a reduction over axes."""
    reduced = sorted(axis % len(shape) for axis in axes)
    kept = [axis for axis in range(len(shape)) if axis not in reduced]
    numbers = np.arange(prod(shape)).reshape(shape).transpose(*kept, *reduced)
    return numbers.reshape(-1, prod(shape[axis] for axis in reduced))


def _adaptive(size: int, outputs: int) -> tuple[Any, Any]:
    o = np.arange(outputs)
    return o * size // outputs, -(-(o + 1) * size // outputs)


def _inputs(outputs: int, kernel: int, step: int, left: int, apart: int) -> Any:
    """The input that each output and tap read, inside or not."""
    return np.arange(outputs)[:, None] * step - left + np.arange(kernel) * apart
