"""Rules of Fourier transforms of complex numbers that are pairs in the last axis; one number there is a real one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch

from conv2affine.network.matrices.layers import repeated
from conv2affine.network.rules import formulas
from conv2affine.network.rules.moves import selection
from conv2affine.network.rules.operands import Context, Map, NoRuleError, broadcast, check_numbers, constant, value

__all__ = ["fourier", "short_time_fourier"]

Transform = Callable[..., Any]


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


def _columns(transform: Transform, window: Any, length: int, parts: int, onesided: bool) -> Any:
    """What a transform makes of each element: (elements, parts, frequencies, parts of the result)."""
    check_numbers(2 * parts * len(window) * length)
    units = np.eye(len(window))[:, None] * window * np.array([1, 1j][:parts])[:, None]
    result = transform(units, length)
    result = result[..., : length // 2 + 1] if onesided else result
    return np.stack([result.real, result.imag] if np.iscomplexobj(result) else [result], -1)


def _permuted(map: Map, shape: Sequence[int], order: Sequence[int]) -> Map:
    """The elements of a map, of this shape, with the axes in another order."""
    return map.then(selection(np.arange(map.size).reshape(shape).transpose(order).ravel(), map.size))
