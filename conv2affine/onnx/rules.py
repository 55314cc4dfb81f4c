"""The rules of ONNX operators: one function each, entered under the names of the operators that it is for.

A rule takes a context, the operator's inputs in their order, and its attributes by name, with their defaults. An input
that depends on the network's inputs comes as a `Value`, any other as an array, and None where it is left out. An
attribute that a rule does not take is not a mistake of the file: the operator has no rule then, nor does it where the
rule raises `NoRuleError`. A rule returns an affine map, or several of them with their shapes, or a value of a step
that it added to the graph.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from conv2affine.network.graph import Graph, Value
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import NoRuleError, constant, value
from conv2affine.onnx.operators import Operator

__all__ = ["Context", "pool_windows", "reduced_axes", "tensor", "window", "window_padding"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a rule may know besides inputs and attributes.

    Args:
        graph: Where steps are added.
        operator: The operator.
        inputs: Its inputs.
        shapes: Of its results.
        weights: Identities of the arrays that are numbers of the file as they are.
        origin: Name of the node.
    """

    graph: Graph
    operator: Operator
    inputs: Sequence[Value]
    shapes: tuple[tuple[int, ...], ...]
    weights: set[int]
    origin: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result; no other is used."""
        if self.operator.results != (0,):
            raise NoRuleError("more than one result is used")
        return self.shapes[0]

    def is_copied(self, array: Any) -> bool:
        """Whether the numbers of an array are those of the file as they are."""
        return id(array) in self.weights


# Along an axis; all windows together have to fit into memory.
MAX_KERNEL = 2**12


def tensor(array: Any) -> torch.Tensor:
    """A constant as a tensor of its own memory."""
    if isinstance(array, Value) or array is None or array.dtype.kind != "f":
        raise NoRuleError("the weight must be constant")
    return torch.from_numpy(np.array(array, np.float64 if array.dtype == np.float64 else np.float32))


def reduced_axes(x: Any, axes: Any, noop_with_empty_axes: int) -> list[int]:
    """The axes of a reduction."""
    count = len(value(x).shape)
    axes = [int(axis) % count for axis in ([] if axes is None else constant(axes).ravel())]
    return axes or ([] if noop_with_empty_axes else list(range(count)))


def window(
    kernel: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel size, stride and dilation, one number for each axis, at least 1."""
    ones = (1,) * len(kernel)
    sizes = tuple(kernel), tuple(strides or ones), tuple(dilations or ones)
    for name, numbers in zip(("kernel_shape", "strides", "dilations"), sizes, strict=True):
        if len(numbers) != len(kernel) or min(numbers) < 1:
            raise NoRuleError(f"{name} = {list(numbers)}")
    if max(kernel) > MAX_KERNEL:
        raise NoRuleError(f"kernel_shape = {list(kernel)}")
    return sizes


def window_padding(
    auto_pad: str,
    pads: Sequence[int] | None,
    input_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> list[tuple[int, int]]:
    """Padding on both sides of each axis."""
    axes = len(kernel)
    if auto_pad == "VALID":
        return [(0, 0)] * axes
    if auto_pad == "NOTSET":
        pads = list(pads or [0] * 2 * axes)
        if len(pads) != 2 * axes or min(pads) < 0:
            raise NoRuleError(f"pads = {pads}")
        return list(zip(pads[:axes], pads[axes:], strict=True))
    if auto_pad not in ("SAME_UPPER", "SAME_LOWER"):
        raise NoRuleError(f"auto_pad = {auto_pad}")
    padding = []
    for i, k, s, d in zip(input_size, kernel, stride, dilation, strict=True):
        total = max(0, (-(-i // s) - 1) * s + (k - 1) * d + 1 - i)
        sides = (total // 2, total - total // 2)
        padding.append(sides if auto_pad == "SAME_UPPER" else sides[::-1])
    return padding


def pool_windows(
    shape: Sequence[int],
    output_size: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
) -> Any:
    """The windows of a pooling, none of which is empty."""
    windows = rules.pool_windows(shape, output_size, kernel, stride, [left for left, _ in padding], dilation)
    if (windows < 0).all(axis=1).any():
        raise NoRuleError("a window lies in the padding")
    return windows
