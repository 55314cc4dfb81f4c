"""Products and sums of matrices that are simpler than their factors; all others wait as `Product` and `Sum`."""

from __future__ import annotations

import dataclasses
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.network.matrices.layers import Convolution
from conv2affine.network.matrices.matrix import Array, Matrix, Product, Selection, Sum

__all__ = ["add", "compose"]


def compose(outer: Matrix, inner: Matrix) -> Matrix:
    """The product outer @ inner.

    Selections are followed through one another, and a selection or a factor for each channel goes into the weight of a
    convolution: so batch norm next to a convolution changes its weight and nothing else. Zeros around the input of a
    convolution go into its padding.
    """
    if outer.shape[1] != inner.shape[0]:
        raise ValueError(f"outer must have as many columns as inner has rows, got {outer.shape} and {inner.shape}")
    if isinstance(outer, Selection) and outer.is_identity:
        return inner
    if isinstance(inner, Selection) and inner.is_identity:
        return outer
    if isinstance(outer, Selection):
        if isinstance(inner, Selection):
            return _follow(outer, inner)
        if isinstance(inner, Convolution):
            return _select_outputs(outer, inner) or Product(outer, inner)
        if isinstance(inner, Product) and isinstance(inner.outer, Selection):
            return compose(compose(outer, inner.outer), inner.inner)
        if isinstance(inner, Product) and isinstance(inner.outer, Convolution):
            selected = _select_outputs(outer, inner.outer)
            return compose(selected, inner.inner) if selected else Product(outer, inner)
    if isinstance(inner, Selection):
        if isinstance(outer, Convolution):
            return _select_inputs(outer, inner) or _pad_inputs(outer, inner) or Product(outer, inner)
        if isinstance(outer, Product) and isinstance(outer.inner, Selection):
            return compose(outer.outer, compose(outer.inner, inner))
    if isinstance(outer, Convolution) and isinstance(inner, Convolution):
        return _join(outer, inner) or Product(outer, inner)
    return Product(outer, inner)


def add(first: Matrix, second: Matrix) -> Matrix:
    """The sum first + second."""
    if first.shape != second.shape:
        raise ValueError(f"matrices to add must have one shape, got {first.shape} and {second.shape}")
    if isinstance(first, Selection) and isinstance(second, Selection):
        a, b = _alike(first, second)
        if _same(a.index, b.index):
            return Selection(a.index, a.cols, _ones(a) + _ones(b), a.positions)
    if isinstance(first, Convolution) and isinstance(second, Convolution) and first.geometry == second.geometry:
        return Convolution(first.weight.double() + second.weight.double(), first.geometry, copied=False)
    return Sum(first, second)


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


def _select_outputs(selection: Selection, conv: Convolution) -> Matrix | None:
    """The product selection @ conv, where the selection treats each output channel as a whole."""
    g = conv.geometry
    found = _channels(selection, prod(g.output_size))
    if found is None:
        return None
    channels, scale = found
    weight, copied = _grouped(conv), conv.copied
    if channels is None or (g.groups == 1 and (channels >= 0).all()):
        if channels is not None:
            weight = weight[:, torch.from_numpy(channels)]
            conv = _with_channels(conv, g.in_channels, len(channels))
        if scale is not None:
            weight, copied = _scaled(weight, scale), False
        return Convolution(_ungrouped(conv, weight), conv.geometry, copied)
    read = channels >= 0
    if scale is None or len(np.unique(channels[read])) < read.sum():
        return None
    # Channels that are placed among others, as by a concatenation: the factors go into the weight all the same.
    factors = np.ones(g.out_channels)
    factors[channels[read]] = scale[read]
    scaled = Convolution(_ungrouped(conv, _scaled(weight, factors)), g, copied=False)
    return Product(dataclasses.replace(selection, scale=None), scaled)


def _scaled(weight: Tensor, factors: Array) -> Tensor:
    """A grouped weight with a factor for each output channel."""
    groups, _, _, *kernel_size = weight.shape
    return weight.double() * torch.tensor(factors).view(groups, -1, 1, *(1 for _ in kernel_size))


def _select_inputs(conv: Convolution, selection: Selection) -> Convolution | None:
    """The product conv @ selection, where the selection treats each input channel as a whole and reads every one."""
    g = conv.geometry
    found = _channels(selection, prod(g.input_size))
    if found is None:
        return None
    channels, scale = found
    weight = _grouped(conv)
    if scale is not None:
        weight = weight.double() * torch.tensor(scale).view(g.groups, 1, -1, *(1 for _ in g.kernel_size))
    if channels is not None:
        read = channels >= 0
        in_channels = selection.cols // prod(g.input_size)
        # Each once: no weights add up, and none are made for channels that nothing reads.
        if g.groups != 1 or not np.array_equal(np.sort(channels[read]), np.arange(in_channels)):
            return None
        weight = weight[:, :, torch.from_numpy(np.flatnonzero(read)[np.argsort(channels[read])])]
        conv = _with_channels(conv, in_channels, g.out_channels)
    return Convolution(_ungrouped(conv, weight), conv.geometry, conv.copied and scale is None)


def _pad_inputs(conv: Convolution, selection: Selection) -> Matrix | None:
    """The product conv @ selection, where the selection puts zeros around its input: they are padding."""
    g = conv.geometry
    if g.transposed or selection.index is None:
        return None
    each = selection.split()
    index: Any = each.index
    index = index.reshape(g.in_channels, *g.input_size)
    read = np.nonzero(index >= 0)[1:]
    if not len(read[0]):
        return None
    first, last = [int(axis.min()) for axis in read], [int(axis.max()) for axis in read]
    inside = (slice(None), *(slice(low, high + 1) for low, high in zip(first, last, strict=True)))
    if not np.array_equal(index[inside].ravel(), np.arange(selection.cols)):
        return None
    sides = zip(g.padding, first, last, g.input_size, strict=True)
    geometry = dataclasses.replace(
        g,
        input_size=index[inside].shape[1:],
        padding=tuple((left + low, right + size - 1 - high) for (left, right), low, high, size in sides),
    )
    padded = Convolution(conv.weight, geometry, conv.copied)
    if each.scale is None:
        return padded
    return compose(padded, Selection(None, each.cols, each.scale.reshape(index.shape)[inside].ravel()))


def _join(outer: Convolution, inner: Convolution) -> Convolution | None:
    """The product of two convolutions of which one has a kernel of size 1: a convolution."""
    a, b = outer.geometry, inner.geometry
    if (
        a.transposed
        or b.transposed
        or b.groups != 1
        or (a.in_channels, a.input_size) != (b.out_channels, b.output_size)
    ):
        return None
    if _is_pointwise(b) and all(step == 1 for step in b.stride):
        frame, stride = a, a.stride
    elif _is_pointwise(a):
        frame, stride = b, tuple(first * second for first, second in zip(a.stride, b.stride, strict=True))
    else:
        return None
    left = _grouped(outer).double().flatten(3)  # (group, output, intermediate, tap)
    right = (
        inner.weight.detach().double().reshape(a.groups, -1, b.in_channels, prod(b.kernel_size))
    )  # (group, intermediate, input, tap)
    weight = torch.einsum("gomk,gmil->goikl", left, right)
    geometry = Geometry(
        b.in_channels,
        a.out_channels,
        kernel_size=frame.kernel_size,
        input_size=b.input_size,
        stride=stride,
        padding=frame.padding,
        dilation=frame.dilation,
    )
    return Convolution(weight.reshape(a.out_channels, b.in_channels, *frame.kernel_size), geometry, copied=False)


def _is_pointwise(g: Geometry) -> bool:
    """Whether the kernel has size 1, and nothing is padded."""
    return all(size == 1 for size in g.kernel_size) and not any(map(any, g.padding))


def _channels(selection: Selection, positions: int) -> tuple[NDArray[np.int64] | None, Array | None] | None:
    """(index, scale) over channels of so many positions, if the selection treats these as a whole."""
    if selection.shape[0] % positions or selection.cols % positions:
        return None
    selection = selection.split(gcd(selection.positions, positions))
    index, scale, positions = selection.index, selection.scale, positions // selection.positions
    if scale is not None:
        scales = scale.reshape(-1, positions)
        scale = scales[:, 0]
        if (scales != scale[:, None]).any():
            return None
    if index is not None:
        indices = index.reshape(-1, positions)
        index = indices[:, 0] // positions
        expected = np.where(index[:, None] < 0, -1, index[:, None] * positions + np.arange(positions))
        if not np.array_equal(indices, expected):
            return None
    return index, scale


def _grouped(conv: Convolution) -> Tensor:
    """The weight as (groups, out/group, in/group, *kernel_size)."""
    weight = conv.weight.detach()
    weight = weight.reshape(conv.geometry.groups, -1, *weight.shape[1:])
    return weight.transpose(1, 2) if conv.geometry.transposed else weight


def _ungrouped(conv: Convolution, weight: Tensor) -> Tensor:
    return (weight.transpose(1, 2) if conv.geometry.transposed else weight).flatten(0, 1)


def _with_channels(conv: Convolution, in_channels: int, out_channels: int) -> Convolution:
    """The same with other numbers of channels; its weight still has to be replaced."""
    g = conv.geometry
    geometry = Geometry(
        in_channels,
        out_channels,
        kernel_size=g.kernel_size,
        input_size=g.input_size,
        stride=g.stride,
        padding=g.padding,
        dilation=g.dilation,
        output_padding=g.output_padding,
        transposed=g.transposed,
    )
    return Convolution(conv.weight, geometry, conv.copied)


def _same(first: NDArray[np.int64] | None, second: NDArray[np.int64] | None) -> bool:
    return first is second if first is None or second is None else np.array_equal(first, second)


def _ones(selection: Selection) -> Array:
    return np.ones(selection.shape[0] // selection.positions) if selection.scale is None else selection.scale
