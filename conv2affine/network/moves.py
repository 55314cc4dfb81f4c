"""Operators that only move elements need no rules: they are run on the numbers of the elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from conv2affine.network.affine import AffineMap
from conv2affine.network.graph import Value
from conv2affine.network.matrices import Matrix, Selection

__all__ = ["follow", "selection"]

Function = Callable[..., Any]


def follow(function: Function, values: Sequence[Value]) -> list[tuple[AffineMap[Value], tuple[int, ...]]]:
    """The affine maps of an operator that copies each element of its result from its inputs, or from constants.

    Args:
        function: The operator: takes one float64 array of the shape of each value, gives one array or several. All
            else that it reads or fills in is constant.
        values: The inputs. Each of them once.

    Returns:
        (map, shape) for each array of the result.

    Raises:
        ValueError: If an element of the result is not a copy.
    """
    arrays, first = [], 1
    for value in values:
        arrays.append(np.arange(first, first + value.size, dtype=np.float64).reshape(value.shape))
        first += value.size
    constants = _arrays(function(*(np.zeros(value.shape) for value in values)))
    return [
        (_map(values, numbers.ravel(), constant.ravel()), numbers.shape)
        for numbers, constant in zip(_arrays(function(*arrays)), constants, strict=True)
    ]


def _arrays(result: Any) -> list[Any]:
    return [np.asarray(array) for array in (result if isinstance(result, tuple | list) else [result])]


def _map(values: Sequence[Value], numbers: Any, constant: Any) -> AffineMap[Value]:
    moved = numbers != constant
    moved &= ~(np.isnan(numbers) & np.isnan(constant))
    index = np.where(moved, numbers, 0)
    total = sum(value.size for value in values)
    if (
        constant[moved].any()
        or (index != np.floor(index)).any()
        or index.min(initial=0) < 0
        or index.max(initial=0) > total
    ):
        raise ValueError("the operator does more than to move elements")
    result: AffineMap[Value] = AffineMap.constant(np.where(moved, 0, constant))
    index, first = index.astype(np.int64) - 1, 0
    for value in values:
        own = np.where((index >= first) & (index < first + value.size), index - first, -1)
        first += value.size
        if (own >= 0).any():
            result += AffineMap({value: selection(own, value.size)}, np.zeros(len(own)))
    return result


def selection(index: Any, cols: int) -> Matrix:
    """A selection; the identity where it is that."""
    identity = len(index) == cols and np.array_equal(index, np.arange(cols))
    return Selection(None if identity else index, cols)
