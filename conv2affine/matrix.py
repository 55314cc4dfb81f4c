"""The matrix of a convolution, and its bias, as tensors."""

from __future__ import annotations

import torch
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize, Padding, Sizes, check_weight, integers
from conv2affine.convolution.build import checked_request, expand
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import BUILDERS, Layout, named_layout
from conv2affine.convolution.parameters import read, weight_and_bias

__all__ = ["conv_matrix", "conv_transpose_matrix", "to_bias", "to_matrix"]


def to_matrix(
    conv: Conv | Tensor,
    input_size: InputSize | Geometry,
    *,
    layout: Layout = torch.strided,
    rows: range | None = None,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Tensor:
    """The matrix A of a convolution layer.

        flatten(conv(x)) == A @ flatten(x) + b
        A[(co, o), (ci, i)] = sum over taps k with tap(o, k) == i of  w[co, ci, k]

    Args:
        conv: `nn.Conv1d`, `Conv2d`, `Conv3d`, `ConvTranspose1d`, `ConvTranspose2d` or `ConvTranspose3d`, with any
            options. The weight is the one that the next `forward` uses, also if it is parametrised, or computed by the
            hooks of `torch.nn.utils.prune`, `weight_norm` or `spectral_norm`; other hooks are not called, and the layer
            does not change. Or the weight itself, a tensor of shape `geometry.weight_size`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input, batch first, of
            which only the shape is read. With a weight, the `Geometry`.
        layout: `torch.strided`, or `torch.sparse_csr`, `torch.sparse_csc` or `torch.sparse_coo`, which hold only the
            entries: the elements that a weight goes to, even where the weight is 0; sorted, each once. Or "dense" or
            "sparse", the first two. Default: `torch.strided`.
        rows: A block of output rows, `range(start, stop)`; not with `torch.sparse_csc`. Default: all of them.
        index_dtype: Dtype of the indices of a CSR or CSC matrix, `torch.int32` or `torch.int64`. Default: int32 where
            it can count the entries, otherwise int64.
        drop_zeros: Whether entries that are 0 are left out of a sparse matrix. Default: False.

    Returns:
        A tensor of shape (len(rows), in_channels * prod(input_size)), dtype and device of the weight, in new memory.
        Element [r, c] is the factor of input element c in output element rows[r], both counted in C order over
        (channel, *position). It is differentiable in the layer's parameters: any number of times if dense, once if
        sparse. PyTorch's backward through `@` makes a dense gradient of a sparse matrix; that through `.values()` and
        `torch.sparse.mm` does not.

    Raises:
        TypeError: If `conv` is neither one of the six layers nor a weight with its `Geometry`, or is a subclass that
            computes something else.
        ValueError: If sizes do not fit, or the layout cannot be as requested; the message has the numbers.
        MemoryError: If there is not enough memory left; the message has the bytes of each layout.

    Example:
        >>> conv = torch.nn.Conv1d(1, 1, 2, bias=False).requires_grad_(False)
        >>> _ = conv.weight.copy_(torch.tensor([[[1.0, 2.0]]]))
        >>> to_matrix(conv, 4)
        tensor([[1., 2., 0., 0.],
                [0., 1., 2., 0.],
                [0., 0., 1., 2.]])
    """
    layout = named_layout(layout)
    weight, _, geometry = read(conv, input_size)
    request = checked_request(weight, geometry, layout, rows, index_dtype, drop_zeros)
    return BUILDERS[layout](weight, geometry, request)


def to_bias(conv: Conv, input_size: InputSize) -> Tensor:
    """The vector b of a convolution layer: its bias, expanded to one entry per row of the matrix.

        b[(co, o)] = bias[co]

    Args:
        conv: A convolution layer, as in `to_matrix`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input.

    Returns:
        A tensor of shape (rows of the matrix,), in new memory; zeros where the layer has no bias.
        Element [r] is added to output element r. Gradients reach `conv.bias`.

    Raises:
        TypeError: As `to_matrix`.
        ValueError: As `to_matrix`.
        MemoryError: If there is not enough memory left.

    Example:
        >>> conv = torch.nn.Conv1d(1, 2, 2).requires_grad_(False)
        >>> _ = conv.bias.copy_(torch.tensor([5.0, 7.0]))
        >>> to_bias(conv, 4)
        tensor([5., 5., 5., 7., 7., 7.])
    """
    geometry = Geometry.from_layer(conv, input_size)
    weight, bias = weight_and_bias(conv)
    geometry.check_weight(weight)
    return expand(weight.new_zeros(geometry.out_channels) if bias is None else bias, geometry)


def conv_matrix(
    weight: Tensor,
    input_size: InputSize,
    stride: Sizes = 1,
    padding: Padding = 0,
    dilation: Sizes = 1,
    groups: int = 1,
    *,
    padding_mode: str = "zeros",
    layout: Layout = torch.strided,
    rows: range | None = None,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Tensor:
    """The matrix of a convolution, from its weight; parameters as in `F.conv2d`.

        A[(co, o), (ci, i)] = sum over taps k with i == o * stride - padding + k * dilation of
                              weight[co, ci, k]

    Args:
        weight: (out_channels, in_channels / groups, K_1, ..., K_D), D from 1 to 3; floating,
            complex or integer; bool and float8 where no taps overlap.
        input_size: (I_1, ..., I_D), or one int for all axes, or an example input, batch first.
        stride: Int or one per axis. Default: 1.
        padding: Int, one per axis, one (left, right) pair per axis, "valid" or "same". Default: 0.
        dilation: Int or one per axis. Default: 1.
        groups: Number of groups. Default: 1.
        padding_mode: "zeros", "circular", "reflect" or "replicate": what lies around the input.
            Default: "zeros".
        layout: As in `to_matrix`.
        rows: As in `to_matrix`.
        index_dtype: As in `to_matrix`.
        drop_zeros: As in `to_matrix`.

    Returns:
        The matrix, as in `to_matrix`.

    Raises:
        TypeError: If `weight` is not a strided tensor, or its dtype cannot be copied, or added where taps overlap.
        ValueError: If sizes do not fit; the message has the numbers.
        MemoryError: As `to_matrix`.

    Example:
        >>> conv_matrix(torch.tensor([[[1, 2, 3]]]), 3, padding=1, padding_mode="circular")
        tensor([[2, 3, 1],
                [1, 2, 3],
                [3, 1, 2]])
    """
    out_channels, in_group, kernel_size = _weight_sizes(weight)
    [groups] = integers("groups", groups, 1, at_least=1)
    geometry = Geometry(
        in_group * groups,
        out_channels,
        kernel_size,
        input_size=input_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        padding_mode=padding_mode,
    )
    return to_matrix(weight, geometry, layout=layout, rows=rows, index_dtype=index_dtype, drop_zeros=drop_zeros)


def conv_transpose_matrix(
    weight: Tensor,
    input_size: InputSize,
    stride: Sizes = 1,
    padding: Sizes = 0,
    output_padding: Sizes = 0,
    groups: int = 1,
    dilation: Sizes = 1,
    *,
    layout: Layout = torch.strided,
    rows: range | None = None,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Tensor:
    """The matrix of a transposed convolution, from its weight; parameters as in `F.conv_transpose2d`.

        A[(co, o), (ci, i)] = sum over taps k with o == i * stride - padding + k * dilation of
                              weight[ci, co, k]

    Args:
        weight: (in_channels, out_channels / groups, K_1, ..., K_D), D from 1 to 3; floating,
            complex or integer; bool and float8 where no taps overlap.
        input_size: (I_1, ..., I_D), or one int for all axes, or an example input, batch first.
        stride: Int or one per axis. Default: 1.
        padding: Int or one per axis: how much is cut off both sides of the output. Default: 0.
        output_padding: Int or one per axis: how much is added at the right. Default: 0.
        groups: Number of groups. Default: 1.
        dilation: Int or one per axis. Default: 1.
        layout: As in `to_matrix`.
        rows: As in `to_matrix`.
        index_dtype: As in `to_matrix`.
        drop_zeros: As in `to_matrix`.

    Returns:
        The matrix, as in `to_matrix`.

    Raises:
        TypeError: If `weight` is not a strided tensor, or its dtype cannot be copied, or added where taps overlap.
        ValueError: If sizes do not fit; the message has the numbers.
        MemoryError: As `to_matrix`.

    Example:
        >>> conv_transpose_matrix(torch.tensor([[[1, 2, 3]]]), 2, stride=2)
        tensor([[1, 0],
                [2, 0],
                [3, 1],
                [0, 2],
                [0, 3]])
    """
    in_channels, out_group, kernel_size = _weight_sizes(weight)
    [groups] = integers("groups", groups, 1, at_least=1)
    geometry = Geometry(
        in_channels,
        out_group * groups,
        kernel_size,
        input_size=input_size,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=groups,
        output_padding=output_padding,
        transposed=True,
    )
    return to_matrix(weight, geometry, layout=layout, rows=rows, index_dtype=index_dtype, drop_zeros=drop_zeros)


def _weight_sizes(weight: Tensor) -> tuple[int, int, tuple[int, ...]]:
    """The first two sizes, which are channels, and the kernel's."""
    check_weight(weight)
    if not 3 <= weight.dim() <= 5 or 0 in weight.shape:
        raise ValueError(
            "weight must have 3 to 5 axes of size >= 1, (channels, channels, *kernel_size), "
            f"got shape {tuple(weight.shape)}{'; for one kernel, pass kernel[None, None]' * (weight.dim() < 3)}"
        )
    first, second, *kernel_size = weight.shape
    return first, second, tuple(kernel_size)
