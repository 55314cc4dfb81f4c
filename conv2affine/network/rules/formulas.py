"""The matrices of affine operators, in neutral arguments: importers name the operator and read its arguments."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np
import scipy.sparse
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.network.matrices.layers import Convolution, Repeated, Separable, repeated
from conv2affine.network.matrices.matrix import Array, Selection, Sparse

# Along an axis: what the widest interpolation reads, the cubic one.
WINDOW = 4
Pairs = Sequence[tuple[int, int]]


def convolution(
    weight: Tensor,
    input_size: Iterable[int],
    stride: Iterable[int],
    padding: Pairs,
    dilation: Iterable[int],
    groups: int = 1,
    *,
    transposed: bool = False,
    output_padding: Iterable[int] = (),
    copied: bool = True,
) -> Convolution:
    """A convolution that pads with zeros, without its bias; arguments as in `Geometry`."""
    kernel_size = tuple(weight.shape[2:])
    channels = (weight.shape[0], weight.shape[1] * groups)  # of the weight's first and second axis
    in_channels, out_channels = channels if transposed else channels[::-1]
    geometry = Geometry(
        in_channels,
        out_channels,
        kernel_size=kernel_size,
        input_size=tuple(input_size),
        stride=tuple(stride),
        padding=tuple(padding),
        dilation=tuple(dilation),
        groups=groups,
        output_padding=tuple(output_padding) or (0,) * len(kernel_size),
        transposed=transposed,
    )
    return Convolution(weight, geometry, copied)


def diagonal(scale: Any, shape: Sequence[int]) -> Selection:
    """The product scale * x, for a scale that is broadcast to the shape of x."""
    scale = np.asarray(scale, np.float64)
    axes = scale.ndim
    while axes and scale.shape[axes - 1] == 1:  # these elements share a factor, and are the positions of a selection
        axes -= 1
    kept = len(shape) - scale.ndim + axes if axes else 0
    positions = max(1, prod(shape[kept:]))
    scale = np.broadcast_to(scale.reshape(scale.shape[:axes]), shape[:kept]).flatten()  # a copy: it may be written to
    return Selection(None, prod(shape), scale[: prod(shape) // positions], positions)  # none if an axis has size 0


def batch_norm(
    shape: Sequence[int], weight: Any, bias: Any, mean: Any, variance: Any, eps: float
) -> tuple[Selection, Array]:
    """(x - mean) / sqrt(variance + eps) * weight + bias per channel, the second axis; weight and bias may be None."""
    mean, variance = (np.asarray(part, np.float64) for part in (mean, variance))
    scale = (1 if weight is None else np.asarray(weight, np.float64)) / np.sqrt(variance + eps)
    offset = (0 if bias is None else np.asarray(bias, np.float64)) - mean * scale
    by_channel = (1, -1, *(1 for _ in shape[2:]))
    return diagonal(scale.reshape(by_channel), shape), np.broadcast_to(offset.reshape(by_channel), shape).ravel()


def matmul_right(weight: Tensor, shape: Sequence[int], *, copied: bool = True) -> Convolution | Repeated:
    """The product x @ weight, for x (*batch, n, k) and a weight (k, m) or (*batch, k, m) that is broadcast."""
    *batch, n, k = shape
    if prod(weight.shape[:-2]) == 1:  # of all rows
        return repeated(_pointwise(weight.mT.reshape(-1, k), 1, 1, copied), prod(batch) * n)
    groups = prod(batch) * n
    blocks = weight.mT.unsqueeze(-3).expand(*batch, n, -1, k)
    return _pointwise(blocks.reshape(groups * weight.shape[-1], k), groups, 1, copied)


def matmul_left(weight: Tensor, shape: Sequence[int], *, copied: bool = True) -> Convolution | Repeated:
    """The product weight @ x, for x (*batch, k, n) and a weight (m, k) or (*batch, m, k) that is broadcast."""
    *batch, k, n = shape
    if prod(weight.shape[:-2]) == 1:  # of all x
        return repeated(_pointwise(weight.reshape(-1, k), 1, n, copied), prod(batch))
    groups = prod(batch)
    return _pointwise(weight.expand(*batch, -1, k).reshape(groups * weight.shape[-2], k), groups, n, copied)


def sparse_left(matrix: csr_array, positions: int, *, copied: bool = True) -> Sparse:
    """The product matrix @ x, for x (cols of the matrix, positions); the matrix is not written to."""
    if not matrix.has_canonical_format:  # columns that ascend, each once
        matrix = matrix.copy()
        matrix.sum_duplicates()
        copied = False
    if positions > 1:
        matrix = csr_array(scipy.sparse.kron(matrix, _identity(positions), format="csr"))
    return Sparse(matrix, copied)


def _pointwise(blocks: Tensor, groups: int, positions: int, copied: bool) -> Convolution:
    """A convolution with a kernel of size 1: one block (out/group, in/group) per group, at each position."""
    geometry = Geometry(groups * blocks.shape[1], len(blocks), kernel_size=(1,), input_size=(positions,), groups=groups)
    return Convolution(blocks.unsqueeze(-1), geometry, copied)


def reduce(shape: Sequence[int], axes: Iterable[int], *, mean: bool) -> Separable:
    """The sum or mean over axes; the second axis, if it is not one of them, is the channels of the matrix."""
    reduced = {axis % len(shape) for axis in axes}
    factors = [
        csr_array(np.full((1, size), 1 / size if mean else 1.0)) if axis in reduced else _identity(size)
        for axis, size in enumerate(shape)
    ]
    if shape[0] == 1 and len(shape) > 1 and 1 not in reduced:
        return Separable(shape[1], tuple(factors[2:]) or (_identity(1),))
    return Separable(1, tuple(factors))


def separable(channels: int, axes: Iterable[Any]) -> Separable:
    """The same on each channel, an axis at a time, as interpolation is; axes are arrays (output size, input size)."""
    return Separable(channels, tuple(csr_array(axis).astype(np.float64) for axis in axes))


def _identity(size: int) -> csr_array:
    return csr_array(scipy.sparse.eye_array(size, format="csr"))


def gather_sums(places: Any, rows: int) -> Sparse:
    """Element k of the input is added to element places[k] of the output."""
    ones = (np.ones(len(places)), (places, np.arange(len(places))))
    return Sparse(csr_array(ones, shape=(rows, len(places))))


def windowed(function: Callable[[Tensor], Tensor], shape: Sequence[int]) -> csr_array:
    """The matrix of a linear function of batches of this shape whose results read elements less than WINDOW apart.

    Elements that are WINDOW apart are never read together. So all of them are one input: once ones, which gives the
    weights, and once their numbers, which gives the places.
    """
    axes = np.ogrid[tuple(slice(size) for size in shape)]
    classes = sum(axis % WINDOW * WINDOW**number for number, axis in enumerate(axes))
    ones = np.arange(WINDOW ** len(shape)).reshape(-1, *(1 for _ in shape)) == classes
    numbers = np.arange(1.0, prod(shape) + 1).reshape(shape)
    weights, sums = (function(torch.from_numpy(batch)).flatten(1).numpy() for batch in (1.0 * ones, ones * numbers))
    read = weights != 0
    cols = np.rint(sums[read] / weights[read]).astype(np.int64) - 1
    return csr_array((weights[read], (np.nonzero(read)[1], cols)), shape=(weights.shape[1], prod(shape)))
