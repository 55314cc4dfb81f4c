"""The pure-Python implementation that everything else is tested against: readable, and slow.

It scatters, tap by tap, along the padded input. It shares only the reading of a layer's parameters with the rest of
the package. `conv` is always one of PyTorch's six convolution layers, and `input_size` is (I_1, ..., I_D), or one int
for all axes. Where the output would be empty, a ValueError is raised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import product
from math import prod

import torch
from torch import Tensor, nn

from conv2affine.convolution.arguments import Conv, Sizes
from conv2affine.convolution.parameters import weight_and_bias

__all__ = [
    "dec_tuple",
    "enc_tuple",
    "output_size",
    "range2d",
    "to_bias",
    "to_linear",
    "to_matrix",
    "torch_conv_layer_to_affine",
]


def to_matrix(conv: Conv, input_size: Sizes) -> Tensor:
    """The matrix of a convolution layer, written one weight at a time.

        A[(co, o), (ci, i)] = sum over taps k that join o and i of  w[co, ci, k]

    Returns:
        A tensor of shape (out_channels * prod(output size), in_channels * prod(input_size)), dtype of the weight.
        Element [r, c] is the factor of input element c in output element r, both in C order.

    Example:
        >>> conv = nn.Conv1d(1, 1, 2, bias=False).requires_grad_(False)
        >>> _ = conv.weight.copy_(torch.tensor([[[1.0, 2.0]]]))
        >>> to_matrix(conv, 3)
        tensor([[1., 2., 0.],
                [0., 1., 2.]])
    """
    inputs = _per_axis(input_size, len(conv.kernel_size))
    outputs = output_size(conv, inputs)
    weight = weight_and_bias(conv)[0].detach()
    in_group, out_group = conv.in_channels // conv.groups, conv.out_channels // conv.groups
    matrix = torch.zeros(conv.out_channels * prod(outputs), conv.in_channels * prod(inputs), dtype=weight.dtype)
    joins = list(_transposed_joins(conv, inputs) if conv.transposed else _joins(conv, inputs))
    for group, co_in_group, ci_in_group in product(range(conv.groups), range(out_group), range(in_group)):
        co, ci = group * out_group + co_in_group, group * in_group + ci_in_group
        for k, o, i in joins:
            w = weight[(ci, co_in_group, *k) if conv.transposed else (co, ci_in_group, *k)]
            row = enc_tuple((co, *o), (conv.out_channels, *outputs))
            col = enc_tuple((ci, *i), (conv.in_channels, *inputs))
            # The first weight of an entry is copied: 0.0 + (-0.0) would lose the sign.
            matrix[row, col] = matrix[row, col] + w if matrix[row, col] != 0 else w
    return matrix


def to_bias(conv: Conv, input_size: Sizes) -> Tensor:
    """The bias of a convolution layer, one entry per row of the matrix.

        b[(co, o)] = bias[co]

    Returns:
        A tensor of shape (out_channels * prod(output size),), zeros where the layer has no bias. Element [r] is added
        to output element r.

    Example:
        >>> to_bias(nn.Conv1d(1, 1, 2, bias=False), 3)
        tensor([0., 0.])
    """
    outputs = output_size(conv, input_size)
    weight, bias = weight_and_bias(conv)
    vector = torch.zeros(conv.out_channels * prod(outputs), dtype=weight.dtype)
    if bias is not None:
        for co, *o in product(range(conv.out_channels), *map(range, outputs)):
            vector[enc_tuple((co, *o), (conv.out_channels, *outputs))] = bias.detach()[co]
    return vector


def to_linear(conv: Conv, input_size: Sizes) -> nn.Linear:
    """The fully-connected layer that is equivalent to a convolution layer.

        fc(x.flatten(1)) == conv(x).flatten(1)

    Returns:
        An `nn.Linear` of the layer's dtype, without a bias where the layer has none. `weight[r, c]` is the factor of
        input element c in output element r.

    Example:
        >>> to_linear(nn.Conv2d(2, 5, 3, padding=1), (6, 7))
        Linear(in_features=84, out_features=210, bias=True)
    """
    matrix = to_matrix(conv, input_size)
    rows, cols = matrix.shape
    weight, bias = weight_and_bias(conv)
    with torch.random.fork_rng(devices=[]):  # the constructor draws a weight
        linear = nn.Linear(cols, rows, bias=bias is not None, dtype=matrix.dtype)
    linear.weight = nn.Parameter(matrix, weight.requires_grad)
    if bias is not None:
        linear.bias = nn.Parameter(to_bias(conv, input_size), bias.requires_grad)
    return linear


def torch_conv_layer_to_affine(conv: Conv, input_size: Sizes) -> nn.Linear:
    """The well-known script's name for `to_linear`."""
    return to_linear(conv, input_size)


def output_size(conv: Conv, input_size: Sizes) -> tuple[int, ...]:
    """Output size of a convolution layer.

        O = (I + left + right - dilation * (K - 1) - 1) // stride + 1                        (convolution)
        O = (I - 1) * stride - 2 * padding + dilation * (K - 1) + output_padding + 1         (transposed)

    Example:
        >>> output_size(nn.Conv2d(1, 1, 3, stride=2), (6, 7))
        (2, 3)
    """
    inputs = _per_axis(input_size, len(conv.kernel_size))
    sizes = []
    for axis, size in enumerate(inputs):
        left, right = _padding(conv, axis)
        reach = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        if conv.transposed:
            o = (size - 1) * conv.stride[axis] - left - right + reach + conv.output_padding[axis] + 1
        else:
            o = (size + left + right - reach - 1) // conv.stride[axis] + 1
        if o < 1:
            raise ValueError(f"input_size ({size}) of axis {axis} must leave an output, got size {o}")
        sizes.append(o)
    return tuple(sizes)


def enc_tuple(tup: Iterable[int], shape: Iterable[int]) -> int:
    """Place in C order of a coordinate, one number per axis, in a tensor of this shape.

        enc_tuple((a, b, c), (A, B, C)) = (a * B + b) * C + c

    Raises:
        ValueError: If there is not one coordinate per axis, or one is out of its bounds.

    Example:
        >>> enc_tuple((1, 2), (3, 4))
        6
    """
    tup, shape = tuple(tup), tuple(shape)
    if len(tup) != len(shape):
        raise ValueError(f"tup {tup} must have one coordinate per axis of shape {shape}")
    x = 0
    for coordinate, size in zip(tup, shape, strict=True):
        if not 0 <= coordinate < size:
            raise ValueError(f"coordinate {coordinate} of tup {tup} must lie in [0, {size}), the size of its axis")
        x = x * size + coordinate
    return x


def dec_tuple(x: int, shape: Iterable[int]) -> tuple[int, ...]:
    """The coordinate at place x in C order; the inverse of `enc_tuple`.

        dec_tuple((a * B + b) * C + c, (A, B, C)) = (a, b, c)

    Raises:
        ValueError: If the place is not from 0 to prod(shape) - 1.

    Example:
        >>> dec_tuple(6, (3, 4))
        (1, 2)
    """
    shape = tuple(shape)
    if not 0 <= x < prod(shape):
        raise ValueError(f"x ({x}) must lie in [0, {prod(shape)}), the places of shape {shape}")
    tup = []
    for size in reversed(shape):
        tup.append(x % size)
        x //= size
    return tuple(reversed(tup))


def range2d(a: int, b: int) -> Iterator[tuple[int, int]]:
    """All (row, column) of an image of a rows and b columns, in C order.

    Example:
        >>> list(range2d(2, 2))
        [(0, 0), (0, 1), (1, 0), (1, 1)]
    """
    yield from product(range(a), range(b))


def _joins(conv: Conv, inputs: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """(k, o, i): tap k of a convolution joins output position o and input position i; tap by tap."""
    # The input coordinate at each coordinate of the padded axis, None for a zero.
    padded = [_padded(size, *_padding(conv, axis), conv.padding_mode) for axis, size in enumerate(inputs)]
    for k in product(*map(range, conv.kernel_size)):
        for o in product(*map(range, output_size(conv, inputs))):
            i = [
                padded[axis][o[axis] * conv.stride[axis] + k[axis] * conv.dilation[axis]] for axis in range(len(inputs))
            ]
            if None not in i:
                yield k, o, tuple(i)  # type: ignore[arg-type]


def _transposed_joins(conv: Conv, inputs: tuple[int, ...]) -> Iterator[tuple[tuple[int, ...], ...]]:
    """(k, o, i): tap k of a transposed convolution sends input position i to output position o."""
    outputs = output_size(conv, inputs)
    for k in product(*map(range, conv.kernel_size)):
        for i in product(*map(range, inputs)):
            o = tuple(
                i[axis] * conv.stride[axis] - _padding(conv, axis)[0] + k[axis] * conv.dilation[axis]
                for axis in range(len(inputs))
            )
            if all(0 <= coordinate < size for coordinate, size in zip(o, outputs, strict=True)):
                yield k, o, i


def _padded(size: int, left: int, right: int, padding_mode: str) -> list[int | None]:
    """The padded axis: the input coordinate at each of its coordinates, None for a zero."""
    inside: list[int | None] = list(range(size))
    if padding_mode == "zeros":
        return [None] * left + inside + [None] * right
    if padding_mode == "replicate":  # aaa|abcd|ddd
        return [0] * left + inside + [size - 1] * right
    if padding_mode == "circular":  # bcd|abcd|abc
        return inside[size - left :] + inside + inside[:right]
    if padding_mode == "reflect":  # dcb|abcd|cba
        return inside[1 : left + 1][::-1] + inside + inside[size - 1 - right : size - 1][::-1]
    raise ValueError(f"padding_mode ({padding_mode!r}) must be 'zeros', 'circular', 'reflect' or 'replicate'")


def _padding(conv: Conv, axis: int) -> tuple[int, int]:
    """(left, right) padding of an axis."""
    if conv.padding_mode != "zeros":  # what `forward` pads with, last axis first
        sides = conv._reversed_padding_repeated_twice[::-1]
        return sides[2 * axis + 1], sides[2 * axis]
    if conv.padding == "valid":
        return 0, 0
    if conv.padding == "same":
        total = conv.dilation[axis] * (conv.kernel_size[axis] - 1)
        return total // 2, total - total // 2
    return int(conv.padding[axis]), int(conv.padding[axis])


def _per_axis(sizes: Sizes, dims: int) -> tuple[int, ...]:
    return tuple(sizes) if isinstance(sizes, Iterable) else (sizes,) * dims
