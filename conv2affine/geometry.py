"""The checked description of one conversion. Every check of a user's arguments is in this file."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter

__all__ = ["Conv", "Geometry", "Sizes"]

Sizes = int | Iterable[int]
Conv = nn.Conv1d | nn.Conv2d | nn.Conv3d | nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d
LAYERS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
# What a subclass must leave alone: with another `forward` a layer is no longer this convolution.
ARITHMETIC = ("forward", "_conv_forward", "_output_padding")
PADDING_MODES = ("zeros", "circular", "reflect", "replicate")
DTYPES = (
    *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64, torch.complex128),
    *(torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64),
)
INT64_MAX = 2**63 - 1


@dataclass(frozen=True, slots=True)
class Geometry:
    """One convolution at one input size: all that decides where in the matrix each weight goes.

    Along each axis, the output size is

        O = (I + left + right - dilation * (K - 1) - 1) // stride + 1                        (convolution)
        O = (I - 1) * stride - left - right + dilation * (K - 1) + output_padding + 1        (transposed)

    The constructor takes what the layer's constructor takes, checks it, and stores it with one
    entry per axis.

    Args:
        in_channels: Input channels, over all groups.
        out_channels: Output channels, over all groups.
        kernel_size: Kernel size K per axis; its length, 1 to 3, is the number of axes.
        input_size: Input size I per axis, as in `x.shape[-D:]`, or one int for all axes.
        stride: Step per axis, or one int. Default: 1.
        padding: Padding on both sides per axis, or one int, or a pair (left, right) per axis, or
            "valid" (none), or "same" (output size = input size; needs stride 1). Stored as pairs.
            Default: 0.
        dilation: Distance between kernel taps per axis, or one int. Default: 1.
        groups: Number of groups. Default: 1.
        padding_mode: "zeros", "circular", "reflect" or "replicate". Default: "zeros".
        output_padding: Size added at the right of a transposed convolution's output. Default: 0.
        transposed: Whether this is a transposed convolution. Default: False.

    Raises:
        ValueError: Where a number is out of its range, numbers do not fit together, or the size of
            the matrix does not fit into 64 bits. The message has the numbers.
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
    stride: tuple[int, ...] = 1  # type: ignore[assignment]  # stored as a tuple, see __post_init__
    padding: tuple[tuple[int, int], ...] = 0  # type: ignore[assignment]
    dilation: tuple[int, ...] = 1  # type: ignore[assignment]
    groups: int = 1
    padding_mode: str = "zeros"
    output_padding: tuple[int, ...] = 0  # type: ignore[assignment]
    transposed: bool = False
    output_size: tuple[int, ...] = field(init=False)

    def __post_init__(self) -> None:
        if not isinstance(self.kernel_size, Iterable):
            raise ValueError(
                f"kernel_size ({self.kernel_size}) must have one entry per axis: "
                f"({self.kernel_size},) for a 1-D convolution"
            )
        dims = len(tuple(self.kernel_size))
        if not 1 <= dims <= 3:
            raise ValueError(f"kernel_size ({self.kernel_size}) must have 1, 2 or 3 axes")

        def store(name: str, value: object) -> None:
            object.__setattr__(self, name, value)

        for name in ("in_channels", "out_channels", "groups"):
            store(name, _integers(name, getattr(self, name), 1, at_least=1)[0])
        for name in ("kernel_size", "input_size", "stride", "dilation"):
            store(name, _integers(name, getattr(self, name), dims, at_least=1))
        store("output_padding", _integers("output_padding", self.output_padding, dims, at_least=0))
        self._check_channels()
        store("padding", self._padding_pairs(dims))
        self._check_padding_mode()
        store("output_size", self._output_size())
        rows, cols = self.shape
        if rows * cols > INT64_MAX:
            raise ValueError(
                f"the matrix would have {rows} x {cols} elements, more than a signed 64-bit integer "
                f"counts (input_size {self.input_size}, output size {self.output_size})"
            )

    @classmethod
    def from_layer(cls, conv: Conv, input_size: int | Iterable[int]) -> Geometry:
        """The geometry of a layer at an input size.

        Args:
            conv: One of PyTorch's six convolution layers.
            input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes.

        Returns:
            The geometry.

        Raises:
            TypeError: If `conv` is no such layer, or is a subclass that computes something else.
            ValueError: If the layer is lazy and has seen no data, or the sizes do not fit.

        Example:
            >>> Geometry.from_layer(nn.Conv1d(1, 2, 3), 5).shape
            (6, 5)
        """
        check_layer(conv)
        transposed = isinstance(conv, LAYERS[3:])
        return cls(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,
            input_size,  # type: ignore[arg-type]  # __post_init__ makes a tuple of it
            conv.stride,
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,
            conv.groups,
            conv.padding_mode,
            conv.output_padding if transposed else 0,  # type: ignore[arg-type]
            transposed,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """(rows, cols) of the matrix: all output elements by all input elements of one sample."""
        return (
            self.out_channels * prod(self.output_size),
            self.in_channels * prod(self.input_size),
        )

    def canonical(self, weight: Tensor) -> Tensor:
        """The weight in the one arrangement that the operators know; a view.

        Args:
            weight: (out, in/groups, *kernel_size), or (in, out/groups, *kernel_size) if transposed.

        Returns:
            A view of shape (groups, out/group, in/group, *kernel_size).

        Raises:
            TypeError: If the weight is no strided tensor of numbers.
            ValueError: If the weight's shape is not the one that this geometry asks for.

        Example:
            >>> conv = nn.Conv1d(4, 6, 3, groups=2)
            >>> Geometry.from_layer(conv, 8).canonical(conv.weight).shape
            torch.Size([2, 3, 2, 3])
        """
        check_weight(weight)
        if weight.shape != self.weight_size:
            raise ValueError(
                f"weight must have shape {self.weight_size} for {self.in_channels} -> {self.out_channels} "
                f"channels in {self.groups} group(s) with kernel_size {self.kernel_size}, got "
                f"{tuple(weight.shape)}"
            )
        view = weight.view(self.groups, -1, *weight.shape[1:])  # the first axis counts over all groups
        return view.transpose(1, 2) if self.transposed else view

    def from_canonical(self, weight: Tensor) -> Tensor:
        """The inverse of `canonical`; a copy for a transposed convolution of several groups, else a view.

        Example:
            >>> geometry = Geometry(4, 6, (3,), 8, groups=2)
            >>> geometry.from_canonical(torch.zeros(geometry.canonical_size)).shape
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
    def canonical_size(self) -> tuple[int, ...]:
        """(groups, out/group, in/group, *kernel_size)."""
        return (
            self.groups,
            self.out_channels // self.groups,
            self.in_channels // self.groups,
            *self.kernel_size,
        )

    def operator_arguments(self) -> tuple[list[int], str]:
        """(geometry, rule) as every operator takes them; see csrc/convolution.h.

        The first is input_size, output_size, stride, left padding and dilation in one list; the right padding shows in
        the output size.

        Example:
            >>> Geometry(1, 1, (3,), 5, padding=1).operator_arguments()
            ([5, 5, 1, 1, 1], 'zeros')
        """
        left = (sides[0] for sides in self.padding)
        numbers = [*self.input_size, *self.output_size, *self.stride, *left, *self.dilation]
        return numbers, "transposed" if self.transposed else self.padding_mode

    def _check_channels(self) -> None:
        for name in ("in_channels", "out_channels"):
            if getattr(self, name) % self.groups:
                raise ValueError(f"{name} ({getattr(self, name)}) must be divisible by groups ({self.groups})")

    def _padding_pairs(self, dims: int) -> tuple[tuple[int, int], ...]:
        padding: object = self.padding
        if padding == "valid":
            padding = 0
        if padding == "same":
            if self.transposed or any(step != 1 for step in self.stride):
                raise ValueError(
                    f"padding='same' needs stride 1 and no transposition, got stride {self.stride}, "
                    f"transposed={self.transposed}; give the padding in numbers"
                )
            totals = [d * (k - 1) for d, k in zip(self.dilation, self.kernel_size, strict=True)]
            # As PyTorch has it: of an odd total, the right side gets one more.
            return tuple((total // 2, total - total // 2) for total in totals)
        if isinstance(padding, str):
            raise ValueError(f"padding ({padding!r}) must be numbers, 'same' or 'valid'")
        if isinstance(padding, Iterable):
            padding = tuple(padding)
            if any(isinstance(side, Iterable) for side in padding):
                pairs = [_integers("padding", side, 2, at_least=0) for side in padding]
                if len(pairs) != dims:
                    raise ValueError(f"padding ({padding}) must have one (left, right) pair per axis, that is {dims}")
                return tuple((left, right) for left, right in pairs)
        return tuple((side, side) for side in _integers("padding", padding, dims, at_least=0))

    def _check_padding_mode(self) -> None:
        mode = self.padding_mode
        if mode not in PADDING_MODES:
            raise ValueError(f"padding_mode ({mode!r}) must be one of {PADDING_MODES}")
        if self.transposed and mode != "zeros":
            raise ValueError(f"padding_mode ({mode!r}) must be 'zeros' in a transposed convolution")
        if not self.transposed and any(self.output_padding):
            raise ValueError(f"output_padding ({self.output_padding}) must be 0 unless the convolution is transposed")
        # F.pad wraps around at most once, and reflects at most once.
        spare = {"circular": 0, "reflect": 1}.get(mode)
        for axis, (size, sides) in enumerate(zip(self.input_size, self.padding, strict=True)):
            if spare is not None and max(sides) > size - spare:
                raise ValueError(
                    f"padding {sides} of axis {axis} must be at most {size - spare} on each side with "
                    f"padding_mode {mode!r} and input size {size}"
                )

    def _output_size(self) -> tuple[int, ...]:
        sizes = []
        for axis, (size, kernel, step, (left, right), dilation, extra) in enumerate(
            zip(
                self.input_size,
                self.kernel_size,
                self.stride,
                self.padding,
                self.dilation,
                self.output_padding,
                strict=True,
            )
        ):
            extent = dilation * (kernel - 1) + 1
            if self.transposed:
                if extra >= max(step, dilation):
                    raise ValueError(
                        f"output_padding ({extra}) of axis {axis} must be smaller than stride ({step}) "
                        f"or dilation ({dilation})"
                    )
                output = (size - 1) * step - left - right + extent + extra
                if output < 1:
                    raise ValueError(
                        f"padding ({left} + {right}) of axis {axis} must leave an output, got size "
                        f"{output} from input size {size}, stride {step}, kernel size {kernel}, "
                        f"dilation {dilation}, output_padding {extra}"
                    )
            else:
                padded = size + left + right
                if extent > padded:
                    raise ValueError(
                        f"the kernel of axis {axis} must not be larger than the padded input: it "
                        f"reaches over {extent} (kernel size {kernel}, dilation {dilation}), the input "
                        f"over {padded} (input size {size}, padding {left} + {right})"
                    )
                output = (padded - extent) // step + 1
            sizes.append(output)
        return tuple(sizes)


def check_layer(conv: object) -> None:
    """Refuse what is not exactly one of PyTorch's six convolutions, with the reason."""
    name = f"{type(conv).__module__}.{type(conv).__qualname__}"
    base = next((layer for layer in LAYERS if isinstance(conv, layer)), None)
    if base is None:
        advice = "convert its layers one by one" if isinstance(conv, nn.Module) else "pass a layer"
        if "quantized" in name:
            advice = "convert the float layer it was made from, or pass its integers to conv_matrix"
        names = ", ".join(layer.__name__ for layer in LAYERS)
        raise TypeError(f"conv must be one of torch.nn's {names}, got {name}; {advice}")
    for method in ARITHMETIC:
        changed = getattr(type(conv), method, None) is not getattr(base, method, None)
        if changed or method in vars(conv):
            raise TypeError(
                f"conv ({name}) overrides {method}, so that its output need not be that of "
                f"{base.__name__}; pass a plain {base.__name__} with the same weights, or call "
                f"conv_matrix or conv_transpose_matrix with the weight that it applies"
            )
    # Not by is_lazy(): that would break the graph of torch.compile.
    if any(isinstance(parameter, UninitializedParameter) for parameter in vars(conv)["_parameters"].values()):
        raise ValueError(f"conv ({name}) is lazy and has no weights yet; run a batch through it first")


def check_groups(groups: object) -> int:
    """Refuse what is no number of groups."""
    return _integers("groups", groups, 1, at_least=1)[0]


def check_weight(weight: object) -> None:
    """Refuse what has no numbers to copy."""
    if not isinstance(weight, Tensor):
        raise TypeError(f"weight must be a tensor, got {type(weight).__name__}")
    if weight.layout is not torch.strided:
        raise TypeError(f"weight must be a strided tensor, got layout {weight.layout}; pass weight.to_dense()")
    if weight.dtype not in DTYPES:
        raise TypeError(
            f"weight must have a dtype of {', '.join(map(str, DTYPES))}, got {weight.dtype}; pass weight.float()"
        )


def _integers(name: str, value: object, dims: int, *, at_least: int) -> tuple[int, ...]:
    """`value` as `dims` integers; a single one stands for all axes."""
    # A layer has tuples: to ask for those first saves a small matrix a tenth of its time.
    is_many = type(value) is tuple or isinstance(value, Iterable)
    try:
        values: tuple[Any, ...] = tuple(value) if is_many else (value,) * dims  # type: ignore[arg-type]
    except TypeError:  # a tensor of no dimensions, which calls itself iterable
        values = (value,) * dims
    if len(values) != dims:
        raise ValueError(f"{name} ({values}) must have one entry per axis, that is {dims}, or be an int")
    try:
        integers = tuple(map(operator.index, values))
    except TypeError:
        raise TypeError(f"{name} ({value!r}) must be integers; pass an int, or one per axis") from None
    if min(integers) < at_least or max(integers) > INT64_MAX:
        raise ValueError(f"{name} ({value}) must be >= {at_least}, and fit into 64 bits")
    return integers
