"""Operators that only move elements need no rules: they are run on element numbers.

Concatenation has a function of its own: it is frequent, and cheaper without running it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Matrix, selection

Function = Callable[..., Any]


def follow(function: Function, values: Sequence[Value]) -> list[tuple[AffineMap[Value], tuple[int, ...]]]:
    """The affine maps of an operator that copies each element of its result from its inputs, or from constants.

    Args:
        function: The operator: takes one float64 array of the shape of each value, returns one array or several.
            Anything else that it reads or fills in is constant.
        values: The inputs, each once.

    Returns:
        (map, shape) for each array of the result.

    Raises:
        ValueError: If an element of the result is not a copy.
    """
    sizes = [value.size for value in values]
    total = sum(sizes)

    def run(elements: Any) -> list[Any]:
        parts = np.split(elements, np.cumsum(sizes)[:-1]) if sizes else []
        return _arrays(function(*(part.reshape(value.shape) for part, value in zip(parts, values, strict=True))))

    # None of the other numbers is an element number, and both signs occur, so that max and clip are noticed.
    other = np.random.default_rng(0).random(total)
    other -= 0.5
    numbers, checks = run(np.arange(1.0, total + 1)), run(other)
    # Where all elements change with those of the inputs, none is constant; NaN says so, as it equals nothing.
    changed = all((number != check).all() for number, check in zip(numbers, checks, strict=True))
    constants = [np.broadcast_to(np.nan, number.shape) for number in numbers] if changed else run(np.zeros(total))
    results = zip(numbers, constants, checks, strict=True)
    return [(_map(values, other, *(array.ravel() for array in arrays)), arrays[0].shape) for arrays in results]


def _arrays(result: Any) -> list[Any]:
    return [np.asarray(array) for array in (result if isinstance(result, tuple | list) else [result])]


def _map(values: Sequence[Value], other: Any, numbers: Any, constant: Any, check: Any) -> AffineMap[Value]:
    moved = (numbers != constant) & ~np.isnan(numbers)
    index = np.where(moved, numbers, 0).astype(np.int64)
    index -= 1
    # The same places with other elements: that exposes sums of elements.
    copies = np.where(moved, np.take(other, index, mode="clip"), constant) if len(other) else constant
    differ = copies != check
    if (
        index.min(initial=-1) < -1
        or index.max(initial=-1) >= len(other)
        or not np.isnan([copies[differ], check[differ]]).all()
    ):
        raise ValueError("the operator does more than move elements")
    terms = {}
    for value in values:
        read = (index >= 0) & (index < value.size)
        if read.any():
            terms[value] = selection(np.where(read, index, -1), value.size)
        index -= value.size
    return AffineMap(terms, np.where(moved, 0, constant).astype(np.float64, copy=False))


def concatenate(values: Sequence[Any], shape: Sequence[int], axis: int) -> AffineMap[Value] | None:
    """The map of a concatenation, as `follow` finds it, without running it.

    Args:
        values: What is concatenated, in order; a value may occur several times.
        shape: Of the result.
        axis: Along which; may be negative.

    Returns:
        The map; None if something is constant or has another number of axes, or if the result has no elements.
    """
    if not all(isinstance(value, Value) and len(value.shape) == len(shape) for value in values) or not prod(shape):
        return None
    axis %= len(shape)
    before, total, after = prod(shape[:axis]), shape[axis], prod(shape[axis + 1 :])
    start = 0
    indices: dict[Value, Any] = {}
    for value in values:
        index = indices.setdefault(value, np.full((before, total), -1))
        stop = start + value.shape[axis]
        index[:, start:stop] = np.arange(before * (stop - start)).reshape(before, -1)
        start = stop
    terms = {value: selection(index.ravel(), value.size, after) for value, index in indices.items() if value.size}
    return AffineMap(terms, np.zeros(before * total * after))


def read_through(matrix: Matrix, index: Any) -> tuple[Any, Any]:
    """Which elements of its source a selection reads for these of its output, and their factors; -1 for none."""
    each = matrix.split()  # type: ignore[attr-defined]
    places = np.arange(each.cols) if each.index is None else each.index
    scale = 1.0 if each.scale is None else np.where(index < 0, 0, each.scale[index])
    return np.where(index < 0, -1, places[index]), scale


def read_broadcast(argument: Any, shape: Sequence[int], index: Any) -> Any:
    """Which elements of an argument these elements of a result of this shape read; -1 for none."""
    own = argument.shape if hasattr(argument, "shape") else np.shape(argument)
    places = np.broadcast_to(np.arange(prod(own)).reshape(own), shape).ravel()
    return np.where(index < 0, -1, places[index])
