"""Products with a convolution that are convolutions, or simpler than the product."""

from __future__ import annotations

import dataclasses
from math import gcd, prod
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from conv2affine.convolution.geometry import Geometry
from conv2affine.network.matrices.expressions import Product
from conv2affine.network.matrices.layers import Convolution
from conv2affine.network.matrices.matrix import Array, Matrix, Selection


def select_outputs(selection: Selection, conv: Convolution) -> Matrix | None:
    """The product selection @ conv, where the selection treats each output channel as a whole."""
    g = conv.geometry
    found = _channels(selection, prod(g.output_size))
    if found is None:
        return None
    channels, scale = found
    weight, copied = g.group_weight(conv.weight.detach()), conv.copied
    if channels is None or (g.groups == 1 and (channels >= 0).all()):
        if channels is not None:
            weight = weight[:, torch.from_numpy(channels)]
            g = dataclasses.replace(g, out_channels=len(channels))
        if scale is not None:
            weight, copied = _scaled(weight, scale), False
        return Convolution(g.ungroup_weight(weight), g, copied)
    read = channels >= 0
    if scale is None or len(np.unique(channels[read])) < read.sum():
        return None
    # Channels that are placed among others, as by a concatenation: only the factors go into the weight.
    factors = np.ones(g.out_channels)
    factors[channels[read]] = scale[read]
    scaled = Convolution(g.ungroup_weight(_scaled(weight, factors)), g, copied=False)
    return Product(dataclasses.replace(selection, scale=None), scaled)


def select_inputs(conv: Convolution, selection: Selection) -> Convolution | None:
    """The product conv @ selection, where the selection treats each input channel as a whole and reads every one."""
    g = conv.geometry
    found = _channels(selection, prod(g.input_size))
    if found is None:
        return None
    channels, scale = found
    weight = g.group_weight(conv.weight.detach())
    if scale is not None:
        weight = weight.double() * torch.tensor(scale).view(g.groups, 1, -1, *(1 for _ in g.kernel_size))
    if channels is not None:
        read = channels >= 0
        in_channels = selection.cols // prod(g.input_size)
        # Each once: no weights add up, and none are made for channels that nothing reads.
        if g.groups != 1 or not np.array_equal(np.sort(channels[read]), np.arange(in_channels)):
            return None
        weight = weight[:, :, torch.from_numpy(np.flatnonzero(read)[np.argsort(channels[read])])]
        g = dataclasses.replace(g, in_channels=in_channels)
    return Convolution(g.ungroup_weight(weight), g, conv.copied and scale is None)


def pad_inputs(conv: Convolution, selection: Selection) -> Matrix | None:
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
    scale = Selection(None, each.cols, each.scale.reshape(index.shape)[inside].ravel())
    return select_inputs(padded, scale) or Product(padded, scale)


def join(outer: Convolution, inner: Convolution) -> Convolution | None:
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
    left = a.group_weight(outer.weight.detach()).double().flatten(3)  # (group, output, intermediate, tap)
    right = (
        inner.weight.detach().double().reshape(a.groups, -1, b.in_channels, prod(b.kernel_size))
    )  # (group, intermediate, input, tap)
    weight = torch.einsum("gomk,gmil->goikl", left, right)
    geometry = dataclasses.replace(
        frame, in_channels=b.in_channels, out_channels=a.out_channels, input_size=b.input_size, stride=stride, groups=1
    )
    return Convolution(weight.reshape(geometry.weight_size), geometry, copied=False)


def _is_pointwise(g: Geometry) -> bool:
    """Whether the kernel has size 1, and nothing is padded."""
    return all(size == 1 for size in g.kernel_size) and not any(map(any, g.padding))


def _scaled(weight: Tensor, factors: Array) -> Tensor:
    """A grouped weight with a factor for each output channel."""
    groups, _, _, *kernel_size = weight.shape
    return weight.double() * torch.tensor(factors).view(groups, -1, 1, *(1 for _ in kernel_size))


def _channels(selection: Selection, positions: int) -> tuple[NDArray[np.int64] | None, Array | None] | None:
    """(index, scale) over channels of `positions` elements each, if the selection treats these as a whole."""
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
