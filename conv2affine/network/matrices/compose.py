"""Products and sums of matrices that are simpler than their factors; all others wait as `Product` and `Sum`."""

from __future__ import annotations

from collections.abc import Callable
from math import gcd

import numpy as np

from conv2affine.network.matrices.convolutions import join, pad_inputs, select_inputs, select_outputs
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.layers import Convolution, Repeated, repeated
from conv2affine.network.matrices.matrix import Array, Matrix, Selection


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The product outer @ inner.

    Selections are followed through one another, and a selection or a factor for each channel goes into the weight of a
    convolution: so batch norm next to a convolution changes its weight and nothing else. Zeros around the input of a
    convolution go into its padding.
    """
    if outer.shape[1] != inner.shape[0]:
        raise ValueError(f"outer must have as many columns as inner has rows, got {outer.shape} and {inner.shape}")
    return _simpler_product(outer, inner) or Product(outer, inner)


def _simpler_product(outer: Matrix, inner: Matrix) -> Matrix | None:
    """The product without a `Product`, or with a smaller one. S, T are selections, C, D convolutions, A, B any."""
    match outer, inner:
        case Selection(is_identity=True), _:  # I B -> B
            return inner
        case _, Selection(is_identity=True):  # A I -> A
            return outer
        case Selection(), Selection():  # S T -> the selection of what T selects
            return _follow(outer, inner)
        case Selection(), Convolution():  # S C -> C with other output channels
            return select_outputs(outer, inner)
        case Convolution(), Selection():  # C S -> C with other input channels, or with more padding
            return select_inputs(outer, inner) or pad_inputs(outer, inner)
        case Convolution(), Convolution():  # C D -> a convolution, where one kernel has size 1
            return join(outer, inner)
        case Selection(), Product(Selection() as first, rest):  # S (T B) -> (S T) B
            return compose(compose(outer, first), rest)
        case Selection() | Repeated(), Selection() | Repeated():  # (I x S) (I x C) -> I x (S C)
            return _each(_simpler_product, outer, inner)
        case Selection(), Product(
            Convolution() | Repeated() as layer, rest
        ):  # S (C B) -> (S C) B, where S C is simpler
            selected = _simpler_product(outer, layer)
            return selected and compose(selected, rest)
        case Product(rest, Selection() as last), Selection():  # (A S) T -> A (S T)
            return compose(rest, compose(last, inner))
    return None


def add(first: Matrix, second: Matrix) -> Matrix:
    """The sum first + second."""
    if first.shape != second.shape:
        raise ValueError(f"matrices to add must have one shape, got {first.shape} and {second.shape}")
    return _simpler_sum(first, second) or Sum(first, second)


def _simpler_sum(first: Matrix, second: Matrix) -> Matrix | None:
    match first, second:
        case Selection(), Selection():  # diag(a) S + diag(b) S -> diag(a + b) S
            a, b = _alike(first, second)
            if np.array_equal(a.index, b.index):  # type: ignore[arg-type]  # None for both is equal, too
                return Selection(a.index, a.cols, _ones(a) + _ones(b), a.positions)
        case Convolution(), Convolution() if first.geometry == second.geometry:  # C + D -> their weights added
            return Convolution(first.weight.double() + second.weight.double(), first.geometry, copied=False)
        case Repeated(), Repeated():  # I x C + I x D -> I x (C + D)
            return _each(_simpler_sum, first, second)
    return None


def _each(
    operation: Callable[[Matrix, Matrix], Matrix | None], first: Matrix, second: Matrix
) -> Convolution | Repeated | None:
    """The result for two matrices that are one block repeated, at least one of them a `Repeated`, by their blocks."""
    times = first.times if isinstance(first, Repeated) else second.times  # type: ignore[attr-defined]
    a, b = _block(first, times), _block(second, times)
    result = None if a is None or b is None else operation(a, b)
    return repeated(result, times) if isinstance(result, Convolution) else None


def _block(matrix: Matrix, times: int) -> Matrix | None:
    """The block of a block-diagonal matrix of equal blocks; None for any other matrix."""
    if isinstance(matrix, Repeated):
        return matrix.block if matrix.times == times else None
    if not isinstance(matrix, Selection) or any(size % times for size in matrix.shape):
        return None
    rows, cols = (size // times for size in matrix.shape)
    matrix = matrix.split(gcd(matrix.positions, rows, cols))
    index, scale = (None if part is None else part.reshape(times, -1) for part in (matrix.index, matrix.scale))
    if scale is not None and (scale != scale[0]).any():
        return None
    if index is not None:
        channels = cols // matrix.positions
        expected = np.where(index[0] < 0, -1, index[0] + channels * np.arange(times)[:, None])
        if index[0].max(initial=-1) >= channels or not np.array_equal(index, expected):
            return None
    return Selection(None if index is None else index[0], cols, None if scale is None else scale[0], matrix.positions)


def _alike(first: Selection, second: Selection) -> tuple[Selection, Selection]:
    """Both, split to a common number of positions."""
    positions = gcd(first.positions, second.positions)
    return first.split(positions), second.split(positions)


def _follow(outer: Selection, inner: Selection) -> Selection:
    outer, inner = _alike(outer, inner)
    scale = outer.scale
    if inner.scale is not None:
        scale = inner.scale if outer.index is None else np.append(inner.scale, 0)[outer.index]
        scale = scale if outer.scale is None else scale * outer.scale
    if outer.index is None or inner.index is None:
        index = inner.index if outer.index is None else outer.index
    else:
        index = np.append(inner.index, -1)[outer.index]
    if index is not None and np.array_equal(index, np.arange(inner.cols // inner.positions)):
        index = None
    return Selection(index, inner.cols, scale, inner.positions)


def _ones(selection: Selection) -> Array:
    return np.ones(selection.shape[0] // selection.positions) if selection.scale is None else selection.scale
