"""What people do instead, each written here as briefly and as fast as its idea allows.

All of them are for 2-D layers with padding in numbers. Where a step would only hurt (a copy to make the result
contiguous, say), it is left out.
"""

from __future__ import annotations

from functools import partial, reduce
from itertools import product
from operator import add
from typing import Any

import numpy as np
import scipy.sparse as sp
import torch
import torch.nn.functional as F
from torch import Tensor

Sizes = tuple[int, int]


def original_loop(conv: Any, input_size: Sizes) -> Tensor:
    """The idea of the well-known script: a six-deep loop, one weight at a time."""
    (height, width), (out_height, out_width) = input_size, output_size(conv, input_size)
    weight, (top, left), (down, right) = conv.weight, conv.padding, conv.stride
    matrix = torch.zeros(conv.out_channels * out_height * out_width, conv.in_channels * height * width)
    for co, oy, ox in product(range(conv.out_channels), range(out_height), range(out_width)):
        row = (co * out_height + oy) * out_width + ox
        for ci, ky, kx in product(*map(range, weight.shape[1:])):
            iy, ix = oy * down - top + ky, ox * right - left + kx
            if 0 <= iy < height and 0 <= ix < width:
                matrix[row, (ci * height + iy) * width + ix] = weight[co, ci, ky, kx]
    return matrix


def conv_of_eye(conv: Any, input_size: Sizes) -> Tensor:
    """A batch of all unit images: output n is column n."""
    cols = conv.in_channels * input_size[0] * input_size[1]
    images = torch.eye(cols).view(cols, conv.in_channels, *input_size)
    return without_bias(conv, images).flatten(1).T


def conv_of_eye_csr(conv: Any, input_size: Sizes) -> Tensor:
    """The dense matrix, then its non-zeros."""
    return conv_of_eye(conv, input_size).to_sparse_csr()


def jacrev(conv: Any, input_size: Sizes) -> Tensor:
    """The Jacobian by reverse mode: one vector-Jacobian product per row, batched."""
    jacobian = torch.func.jacrev(partial(without_bias, conv))(torch.zeros(conv.in_channels, *input_size))
    return jacobian.flatten(3).flatten(0, 2)


def unfold_scatter(conv: Any, input_size: Sizes) -> Tensor:
    """`F.unfold` of an image of column numbers says where each weight goes."""
    columns, values = unfolded(conv, input_size, torch.int64)
    cols = conv.in_channels * input_size[0] * input_size[1]
    # Column 0 takes what falls into the padding.
    return torch.zeros(len(columns), 1 + cols).scatter_(1, columns, values)[:, 1:]


def unfold_csr(conv: Any, input_size: Sizes) -> Tensor:
    """The same column numbers, row by row in ascending order, are the indices of a CSR tensor."""
    columns, values = unfolded(conv, input_size, torch.int32)
    cols = conv.in_channels * input_size[0] * input_size[1]
    inside = columns > 0
    row_starts = F.pad(inside.sum(1).cumsum(0), (1, 0)).int()
    parts = row_starts, columns[inside] - 1, values[inside]
    return torch.sparse_csr_tensor(*parts, (len(columns), cols), check_invariants=False)


def slice_by_slice(conv: Any, input_size: Sizes) -> Tensor:
    """The idea of pytorch issue 26781: all channels of one output position at once, as a slice."""
    sizes = output_size(conv, input_size)
    weight = full_weight(conv)
    matrix = torch.zeros(conv.out_channels, *sizes, conv.in_channels, *input_size)
    ys, xs = ([window(conv, axis, o, input_size[axis]) for o in range(sizes[axis])] for axis in (0, 1))
    for (oy, (ky, iy)), (ox, (kx, ix)) in product(enumerate(ys), enumerate(xs)):
        matrix[:, oy, ox, :, iy, ix] = weight[:, :, ky, kx]
    return matrix.flatten(3).flatten(0, 2)


def einconv_einsum(conv: Any, input_size: Sizes) -> Tensor:
    """The index patterns of einconv, one per axis, contracted with the weight."""
    from einconv import index_pattern  # optional

    y, x = (
        index_pattern(size, *numbers, dtype=torch.float32)
        for size, *numbers in zip(input_size, conv.kernel_size, conv.stride, conv.padding, conv.dilation, strict=True)
    )  # (k, o, i) each
    return torch.einsum("dckl,kyh,lxw->dyxchw", conv.weight, y, x).flatten(3).flatten(0, 2)


def kron_csr(conv: Any, input_size: Sizes) -> sp.csr_array:
    """One Kronecker product per tap, channels by positions, summed."""
    weight = full_weight(conv).numpy()
    ys, xs = (selectors(conv, axis, size) for axis, size in enumerate(input_size))
    taps = product(enumerate(ys), enumerate(xs))
    return reduce(add, (sp.kron(sp.csr_array(weight[:, :, ky, kx]), sp.kron(y, x), "csr") for (ky, y), (kx, x) in taps))


def kron_dense(conv: Any, input_size: Sizes) -> Tensor:
    """The same as an array."""
    return torch.from_numpy(kron_csr(conv, input_size).toarray())


def coo_per_tap(conv: Any, input_size: Sizes) -> sp.csr_array:
    """The idea of Orion: index arrays tap by tap, joined, and sorted by SciPy."""
    weight = full_weight(conv).numpy()
    ys, xs = (selectors(conv, axis, size) for axis, size in enumerate(input_size))
    parts = []
    for (ky, y), (kx, x) in product(enumerate(ys), enumerate(xs)):
        positions = sp.kron(y, x, "coo")
        outputs, inputs = positions.shape
        co, ci = weight[:, :, ky, kx].nonzero()
        rows, cols = np.add.outer(co * outputs, positions.row), np.add.outer(ci * inputs, positions.col)
        values = np.broadcast_to(weight[co, ci, ky, kx, None], rows.shape)
        parts.append((rows.ravel(), cols.ravel(), values.ravel()))
    rows, cols, values = map(np.concatenate, zip(*parts, strict=True))
    shape = (conv.out_channels * outputs, conv.in_channels * inputs)
    return sp.coo_array((values, (rows, cols)), shape).tocsr()


def output_size(conv: Any, input_size: Sizes) -> tuple[int, ...]:
    """Output height and width."""
    reach = [d * (k - 1) for d, k in zip(conv.dilation, conv.kernel_size, strict=True)]
    axes = zip(input_size, conv.stride, conv.padding, reach, conv.output_padding, strict=True)
    if conv.transposed:
        return tuple((size - 1) * step - 2 * pad + far + extra + 1 for size, step, pad, far, extra in axes)
    return tuple((size + 2 * pad - far - 1) // step + 1 for size, step, pad, far, _ in axes)


def without_bias(conv: Any, x: Tensor) -> Tensor:
    """conv(x) - bias, the linear part of the layer."""
    if conv.transposed:
        options = (conv.stride, conv.padding, conv.output_padding, conv.groups, conv.dilation)
        return F.conv_transpose2d(x, conv.weight, None, *options)
    return conv._conv_forward(x, conv.weight, None)


def full_weight(conv: Any) -> Tensor:
    """The weight as (co, ci, ky, kx), zeros where groups do not meet."""
    blocks = conv.weight.unflatten(0, (conv.groups, -1))  # (g, co, ci, ky, kx), or (g, ci, co, ky, kx)
    blocks = blocks.transpose(1, 2) if conv.transposed else blocks
    full = torch.zeros(conv.groups, blocks.shape[1], conv.groups, *blocks.shape[2:])
    for group, block in enumerate(blocks):
        full[group, :, group] = block
    return full.flatten(2, 3).flatten(0, 1)


def unfolded(conv: Any, input_size: Sizes, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """1 + the column of each weight of each row, 0 in the padding; and that weight."""
    cols = conv.in_channels * input_size[0] * input_size[1]
    image = torch.arange(1, cols + 1, dtype=torch.float64).view(1, conv.in_channels, *input_size)
    columns = F.unfold(image, conv.kernel_size, conv.dilation, conv.padding, conv.stride)  # (1, ci * k, o)
    columns = columns.to(dtype).view(conv.groups, 1, -1, columns.shape[2]).transpose(2, 3)  # (g, 1, o, ci * k)
    values = conv.weight.view(conv.groups, -1, 1, columns.shape[3])  # (g, co, 1, ci * k)
    columns, values = torch.broadcast_tensors(columns, values)
    return columns.reshape(-1, columns.shape[3]), values.reshape(-1, columns.shape[3])


def window(conv: Any, axis: int, o: int, size: int) -> tuple[slice, slice]:
    """Taps of one axis that fall inside the input for output coordinate o, and the inputs they read."""
    dilation, first = conv.dilation[axis], o * conv.stride[axis] - conv.padding[axis]
    start = max(0, -(first // dilation))
    stop = min(conv.kernel_size[axis], -((first - size) // dilation))
    if stop <= start:
        return slice(0, 0), slice(0, 0)
    return slice(start, stop), slice(first + start * dilation, first + (stop - 1) * dilation + 1, dilation)


def selectors(conv: Any, axis: int, size: int) -> list[sp.csr_array]:
    """For each tap of one axis the (o, i) matrix of ones where o reads i through it."""
    outputs = output_size(conv, (size, size))[axis]
    few, many = (size, outputs) if conv.transposed else (outputs, size)
    result = []
    for k in range(conv.kernel_size[axis]):
        place = np.arange(few) * conv.stride[axis] - conv.padding[axis] + k * conv.dilation[axis]
        inside = np.flatnonzero((place >= 0) & (place < many))
        ones = np.ones(len(inside), np.float32)
        selector = sp.csr_array((ones, (inside, place[inside])), (few, many))
        result.append(selector.T.tocsr() if conv.transposed else selector)
    return result
