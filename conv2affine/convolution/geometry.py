"""The checked description of one conversion: all numbers that decide where in the matrix each weight goes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial
from math import prod
from typing import Any

from torch import Tensor

from conv2affine.convolution.arguments import (
    INT64_MAX,
    LAYERS,
    Conv,
    InputSize,
    Padding,
    Sizes,
    check_layer,
    check_weight,
    input_sizes,
    integers,
    is_iterable,
    shown,
)
from conv2affine.convolution.padding import check_padding_mode, output_along, padding_pairs, transposed_output_along


@dataclass(frozen=True, slots=True, init=False)
class Geometry:
    """One convolution at one input size: all that decides where in the matrix each weight goes.

    Along each axis, the output size is

        O = (I + left + right - dilation * (K - 1) - 1) // stride + 1                        (convolution)
        O = (I - 1) * stride - left - right + dilation * (K - 1) + output_padding + 1        (transposed)

    The constructor takes what the layer's constructor takes, checks it, and stores it with one entry per axis.

    Args:
        in_channels: Input channels, over all groups.
        out_channels: Output channels, over all groups.
        kernel_size: Kernel size K per axis; its length, 1 to 3, is the number of axes.
        input_size: Input size I per axis, as in `x.shape[-D:]`, or one int for all axes, or an example input, batch
            first, of which only the shape is read.
        stride: Step per axis, or one int. Default: 1.
        padding: Padding on both sides per axis, or one int, or a pair (left, right) per axis, or "valid" (none), or
            "same" (output size = input size; needs stride 1). Stored as pairs. Default: 0.
        dilation: Distance between kernel taps per axis, or one int. Default: 1.
        groups: Number of groups. Default: 1.
        padding_mode: "zeros", "circular", "reflect" or "replicate". Default: "zeros".
        output_padding: Size added at the right of a transposed convolution's output. Default: 0.
        transposed: Whether this is a transposed convolution. Default: False.

    Raises:
        ValueError: Where a number is out of its range, numbers do not fit together, or the size of the matrix does not
            fit into 64 bits. The message has the numbers.
        TypeError: Where a number is not an integer.

    Example:
        >>> geometry = Geometry(3, 16, kernel_size=(3, 3), input_size=32, stride=2, padding=1)
        >>> geometry.output_size
        (16, 16)
        >>> geometry.shape
        (4096, 3072)
    """

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    input_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str
    output_padding: tuple[int, ...]
    transposed: bool
    output_size: tuple[int, ...] = field(init=False)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: Iterable[int],
        *,
        input_size: InputSize,
        stride: Sizes = 1,
        padding: Padding = 0,
        dilation: Sizes = 1,
        groups: int = 1,
        padding_mode: str = "zeros",
        output_padding: Sizes = 0,
        transposed: bool = False,
    ) -> None:
        if not is_iterable(kernel_size):
            raise ValueError(
                f"kernel_size ({kernel_size}) must have one entry per axis: ({kernel_size},) for a 1-D convolution"
            )
        kernel_size = tuple(kernel_size)
        dims = len(kernel_size)
        if not 1 <= dims <= 3:
            raise ValueError(f"kernel_size ({shown(kernel_size)}) must have 1, 2 or 3 axes")
        store = partial(object.__setattr__, self)
        store("padding_mode", padding_mode)
        store("transposed", transposed)
        store("in_channels", integers("in_channels", in_channels, 1, at_least=1)[0])
        store("out_channels", integers("out_channels", out_channels, 1, at_least=1)[0])
        store("groups", integers("groups", groups, 1, at_least=1)[0])
        store("kernel_size", integers("kernel_size", kernel_size, dims, at_least=1))
        store("input_size", input_sizes(input_size, self.in_channels, dims))
        store("stride", integers("stride", stride, dims, at_least=1))
        store("dilation", integers("dilation", dilation, dims, at_least=1))
        store("output_padding", integers("output_padding", output_padding, dims, at_least=0))
        for name, channels in (("in_channels", self.in_channels), ("out_channels", self.out_channels)):
            if channels % self.groups:
                raise ValueError(f"{name} ({channels}) must be divisible by groups ({self.groups})")
        store("padding", padding_pairs(padding, self.kernel_size, self.stride, self.dilation, transposed))
        check_padding_mode(padding_mode, self.input_size, self.padding, self.output_padding, transposed)
        along = transposed_output_along if transposed else output_along
        sizes = self.input_size, self.kernel_size, self.stride, self.padding, self.dilation, self.output_padding
        store("output_size", tuple(along(axis, *each) for axis, each in enumerate(zip(*sizes, strict=True))))
        rows, cols = self.shape
        if rows * cols > INT64_MAX:
            raise ValueError(
                f"the matrix would have {rows} x {cols} elements, more than a signed 64-bit integer "
                f"counts (input_size {self.input_size}, output size {self.output_size})"
            )

    @classmethod
    def from_layer(cls, conv: Conv, input_size: InputSize) -> Geometry:
        """The geometry of a layer at an input size.

        Args:
            conv: One of PyTorch's six convolution layers.
            input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input, batch
                first, of which only the shape is read.

        Returns:
            The geometry.

        Raises:
            TypeError: If `conv` is not such a layer, or is a subclass that computes something else.
            ValueError: If the layer is lazy and has seen no data, or the sizes do not fit.

        Example:
            >>> import torch
            >>> conv = torch.nn.Conv1d(1, 2, 3)
            >>> Geometry.from_layer(conv, torch.zeros(10, 1, 5)).shape
            (6, 5)
        """
        check_layer(conv)
        transposed = isinstance(conv, LAYERS[3:])
        padding: Any = conv.padding
        if conv.padding_mode != "zeros" and not transposed:
            # What `forward` pads with. It stays as it is if `padding` is changed later.
            sides = conv._reversed_padding_repeated_twice
            padding = list(zip(sides[::2], sides[1::2], strict=True))[::-1]
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            input_size=input_size,
            stride=conv.stride,
            padding=padding,
            dilation=conv.dilation,
            groups=conv.groups,
            padding_mode=conv.padding_mode,
            output_padding=conv.output_padding if transposed else 0,
            transposed=transposed,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix: all output elements by all input elements of one sample."""
        return self.out_channels * prod(self.output_size), self.in_channels * prod(self.input_size)

    def check_weight(self, weight: Tensor) -> None:
        """Refuse what is not a strided tensor of numbers (TypeError) of shape `weight_size` (ValueError)."""
        check_weight(weight)
        if weight.shape != self.weight_size:
            raise ValueError(
                f"weight must have shape {self.weight_size} for {self.in_channels} -> {self.out_channels} "
                f"channels in {self.groups} group(s) with kernel_size {self.kernel_size}, got "
                f"{tuple(weight.shape)}"
            )

    def group_weight(self, weight: Tensor) -> Tensor:
        """The grouped weight, the one form of a weight that the operators take; a view.

        Args:
            weight: (out, in/groups, *kernel_size), or (in, out/groups, *kernel_size) if transposed.

        Returns:
            A view of shape (groups, out/group, in/group, *kernel_size).

        Raises:
            TypeError: As `check_weight`.
            ValueError: As `check_weight`.

        Example:
            >>> import torch
            >>> conv = torch.nn.Conv1d(4, 6, 3, groups=2)
            >>> Geometry.from_layer(conv, 8).group_weight(conv.weight).shape
            torch.Size([2, 3, 2, 3])
        """
        self.check_weight(weight)
        view = weight.view(self.groups, -1, *weight.shape[1:])  # the first axis counts over all groups
        return view.transpose(1, 2) if self.transposed else view

    def ungroup_weight(self, weight: Tensor) -> Tensor:
        """The inverse of `group_weight`; a copy for a transposed convolution of several groups, else a view.

        Example:
            >>> import torch
            >>> geometry = Geometry(4, 6, (3,), input_size=8, groups=2)
            >>> geometry.ungroup_weight(torch.zeros(geometry.grouped_size)).shape
            torch.Size([6, 2, 3])
        """
        return (weight.transpose(1, 2) if self.transposed else weight).flatten(0, 1)

    @property
    def weight_size(self) -> tuple[int, ...]:
        """(out, in/groups, *kernel_size), or (in, out/groups, *kernel_size) if transposed."""
        first, second = self.out_channels, self.in_channels
        if self.transposed:
            first, second = second, first
        return (first, second // self.groups, *self.kernel_size)

    @property
    def grouped_size(self) -> tuple[int, ...]:
        """(groups, out/group, in/group, *kernel_size)."""
        groups = self.groups
        return groups, self.out_channels // groups, self.in_channels // groups, *self.kernel_size

    def operator_arguments(self) -> tuple[list[int], str, bool]:
        """(geometry, padding_mode, transposed) as every operator takes them; see csrc/convolution.h.

        The first is input_size, output_size, stride, left padding and dilation in one list; the right padding shows in
        the output size.

        Example:
            >>> Geometry(1, 1, (3,), input_size=5, padding=1).operator_arguments()
            ([5, 5, 1, 1, 1], 'zeros', False)
        """
        left = (sides[0] for sides in self.padding)
        numbers = [*self.input_size, *self.output_size, *self.stride, *left, *self.dilation]
        return numbers, self.padding_mode, self.transposed
