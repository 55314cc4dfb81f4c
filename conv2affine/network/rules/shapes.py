"""Rules of operators that move elements: most are run on element numbers."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.matrix import selection
from conv2affine.network.rules.formulas import gather_sums
from conv2affine.network.rules.moves import concatenate, follow
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    broadcast,
    check_finite,
    check_numbers,
    constant,
    scaled,
    step,
    through,
    value,
)
from conv2affine.network.rules.windows import Window, taps

__all__ = ["concat", "copy", "fold", "move", "pad", "put_at"]


def move(context: Context, *arguments: Any, **attributes: Any) -> Any:
    """Any operator that only moves elements, whatever its arguments are."""
    check_numbers(sum(value.size for value in context.inputs) + sum(map(prod, context.shapes)))
    try:
        return follow(lambda *arrays: context.call.run(arrays), context.inputs)
    except Exception as error:  # it does more than move elements, or it fails
        raise NoRuleError(str(error)) from error


def copy(context: Context, x: Any) -> Map:
    """The value itself."""
    return broadcast(value(x), context.shape)


def concat(context: Context, parts: Sequence[Any], axis: int) -> Any:
    """All parts, concatenated along an axis."""
    return concatenate(parts, context.shape, axis) or move(context)


def pad(context: Context, sides: Any, fill: Any) -> Map:
    """A constant on both sides of each axis; negative numbers cut elements off."""
    fill = constant(fill)
    [x] = context.inputs
    kept = [(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(x.shape, sides, strict=True)]
    shape = tuple(stop - start + max(0, a) + max(0, b) for (start, stop), (a, b) in zip(kept, sides, strict=True))
    if shape != context.shape or any(start > stop for start, stop in kept):
        raise NoRuleError(f"pads = {np.transpose(sides).ravel().tolist()}")
    check_numbers(x.size + prod(shape))

    def run(array: Any) -> Any:
        return np.pad(array[tuple(slice(*ends) for ends in kept)], np.clip(sides, 0, None), constant_values=fill)

    [(map, _)] = follow(run, context.inputs)
    return map


def put_at(context: Context, x: Any, other: Any, places: Any, how: str, *, include_self: bool = True) -> Any:
    """The "sum", "mean", "max" or "min" of x and of the elements of another operand.

    Args:
        context: Of the operator.
        x: Broadcast to the result.
        other: Broadcast to `places`.
        places: For each element of the other operand, an element number of x.
        how: One of these.
        include_self: Whether x itself counts where something is put; elsewhere it stays.
    """
    if how in ("max", "min"):
        return _extreme_at(context, x, other, places, f"window_{how}", include_self)
    if how not in ("sum", "mean"):
        raise NoRuleError(f"it is the {how} of elements")
    size = prod(context.shape)
    counts = np.bincount(places.ravel(), minlength=size)
    own = broadcast(x, context.shape)
    if not include_self:
        own = scaled(own, counts == 0, (size,))
    total = own + broadcast(other, places.shape).then(gather_sums(places.ravel(), size))
    return scaled(total, 1 / np.maximum(counts + include_self, 1), (size,)) if how == "mean" else total


def _extreme_at(context: Context, x: Any, other: Any, places: Any, kind: str, include_self: bool) -> Value:
    size, at = prod(context.shape), places.ravel()
    counts = np.bincount(at, minlength=size)
    windows = np.full((size, 1 + counts.max(initial=0)), -1)
    check_numbers(windows.size)
    own = broadcast(x, context.shape)
    # The infinity that a maximum starts from counts only where nothing is put.
    counted = (counts == 0) | (include_self & (own.bias != {"window_max": -np.inf, "window_min": np.inf}[kind]))
    windows[:, 0] = np.where(counted, np.arange(size), -1)
    order = np.argsort(at, kind="stable")
    rank = np.arange(len(at)) - np.repeat(np.cumsum(counts) - counts, counts)  # among those of one place
    windows[at[order], 1 + rank] = size + order
    numbers = np.arange(size + len(at))
    own = own.at(np.append(windows[:, 0], np.full(len(at), -1)))
    both = own + broadcast(other, places.shape).at(np.maximum(numbers - size, -1))
    check_finite(both)
    read = context.graph.add_piece(both, (1, len(numbers)), context.origin)
    return step(context, kind, read, windows=windows)


def fold(context: Context, x: Any, window: Window) -> Map:
    """The sum of windows (samples, channels * window, positions), each added where it would be read, as col2im does."""
    image = context.shape[2:]
    counts = [
        (size + sum(axis.padding) - (axis.kernel - 1) * axis.dilation - 1) // axis.stride + 1
        for size, axis in zip(image, window, strict=True)
    ]
    lines = taps(image, counts, window)
    grids = np.ix_(*(np.arange(axis.kernel) for axis in window), *map(np.arange, counts))
    places: Any = np.arange(prod(context.shape[:2])).reshape(-1, *(1 for _ in grids))
    inside: Any = True
    for number, (line, size) in enumerate(zip(lines, image, strict=True)):
        at = line[grids[len(window) + number], grids[number]]
        places, inside = places * size + at, inside & (at >= 0)
    kept = np.flatnonzero(np.broadcast_to(inside, places.shape))
    if places.size != value(x).size:
        raise NoRuleError(f"its windows lie at {counts}")
    read = through(x, selection(kept, places.size))
    return read.then(gather_sums(places.ravel()[kept], prod(context.shape)))
