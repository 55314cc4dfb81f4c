"""One rule per ONNX operator that is affine in what is not constant; whoever adds one adds one function here.

A rule takes a context, the operator's inputs in their order, and its attributes by name, with their defaults. An input
that depends on the network's inputs comes as a `Value`, any other as an array, and None where it is left out. An
attribute that a rule does not take is no mistake of the file: the operator has no rule then, and nor has it where the
rule raises `NoRuleError`. A rule returns an affine map, or several of them with their shapes, or a value of a step
that it added to the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, TypeVar

import numpy as np
import onnx
import torch
from onnx.reference import ReferenceEvaluator

from conv2affine.network import rules
from conv2affine.network.affine import AffineMap
from conv2affine.network.graph import Graph, Value
from conv2affine.network.moves import follow
from conv2affine.network.torch_rules import NoRuleError, broadcast, constant, scaled, through, value
from conv2affine.onnx.operators import Operator

__all__ = ["RULES", "Context", "Map", "reduced_axes", "rule", "window", "window_padding"]

Map = AffineMap[Value]


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


RULES: dict[str, Callable[..., Any]] = {}
Rule = TypeVar("Rule", bound=Callable[..., Any])


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Enter a rule for operators by name."""

    def enter(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enter


def tensor(array: Any) -> torch.Tensor:
    """A constant as a tensor of its own memory."""
    if isinstance(array, Value) or array is None or array.dtype.kind != "f":
        raise NoRuleError("the weight must be constant")
    return torch.from_numpy(np.array(array, np.float64 if array.dtype == np.float64 else np.float32))


@rule("Add", "Sum")
def add(context: Context, *terms: Any) -> Map:
    total = broadcast(terms[0], context.shape)
    for term in terms[1:]:
        total += broadcast(term, context.shape)
    return total


@rule("Mean")
def mean(context: Context, *terms: Any) -> Map:
    return scaled(add(context, *terms), 1 / len(terms), context.shape)


@rule("Sub")
def sub(context: Context, a: Any, b: Any) -> Map:
    return broadcast(a, context.shape) + scaled(broadcast(b, context.shape), -1, context.shape)


@rule("Neg")
def neg(context: Context, x: Any) -> Map:
    return through(x, rules.diagonal(-1, context.shape))


@rule("Mul")
def mul(context: Context, a: Any, b: Any) -> Map:
    if not isinstance(a, Value):
        a, b = b, a
    return scaled(broadcast(value(a), context.shape), constant(b), context.shape)


@rule("Div")
def div(context: Context, a: Any, b: Any) -> Map:
    with np.errstate(all="ignore"):
        scale = 1 / constant(b)
    if not np.isfinite(scale).all():
        raise NoRuleError("the divisor is 0")
    return scaled(broadcast(value(a), context.shape), scale, context.shape)


@rule("Where")
def where(context: Context, condition: Any, a: Any, b: Any) -> Map:
    mask = constant(condition)
    chosen = [scaled(broadcast(x, context.shape), part, context.shape) for x, part in ((a, mask), (b, 1 - mask))]
    return chosen[0] + chosen[1]


@rule("Cast")
def cast(context: Context, x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Map:
    return broadcast(value(x), context.shape)  # from float to float: other casts are kept


@rule("Identity", "Dropout")
def identity(context: Context, x: Any, *other: Any, ratio: float = 0.5, seed: int = 0) -> Map:
    return broadcast(value(x), context.shape)


@rule("Conv")
def conv(
    context: Context,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Map:
    weight, input_size = tensor(w), value(x).shape[2:]
    kernel, stride, dilation = window(weight.shape[2:], strides, dilations)
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise NoRuleError(f"kernel_shape = {list(kernel_shape)}, and the weight has {list(kernel)}")
    padding = window_padding(auto_pad, pads, input_size, kernel, stride, dilation)
    return _convolution(context, x, w, b, stride, padding, dilation, group)


@rule("ConvTranspose")
def conv_transpose(
    context: Context,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Sequence[int] | None = None,
    group: int = 1,
    kernel_shape: Sequence[int] | None = None,
    output_padding: Sequence[int] | None = None,
    output_shape: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Map:
    weight, input_size = tensor(w), value(x).shape[2:]
    kernel, stride, dilation = window(weight.shape[2:], strides, dilations)
    extra = list(output_padding or [0] * len(kernel))
    if kernel_shape is not None and tuple(kernel_shape) != kernel:
        raise NoRuleError(f"kernel_shape = {list(kernel_shape)}, and the weight has {list(kernel)}")
    full = [(i - 1) * s + (k - 1) * d + 1 + e for i, s, k, d, e in zip(input_size, stride, kernel, dilation, extra)]
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # What is more than the output is cut off; the odd one at the end for SAME_UPPER, else at the start.
        cut = [size - out for size, out in zip(full, context.shape[2:], strict=True)]
        if min(cut) < 0:
            raise NoRuleError(f"output_shape = {list(context.shape[2:])} is more than the weights reach")
        smaller, larger = [c // 2 for c in cut], [c - c // 2 for c in cut]
        sides = (smaller, larger) if auto_pad == "SAME_UPPER" else (larger, smaller)
        padding = list(zip(*sides, strict=True))
    else:
        padding = window_padding(auto_pad, pads, input_size, kernel, stride, dilation)
    return _convolution(context, x, w, b, stride, padding, dilation, group, extra)


def _convolution(
    context: Context,
    x: Value,
    w: Any,
    b: Any,
    stride: Sequence[int],
    padding: Sequence[tuple[int, int]],
    dilation: Sequence[int],
    groups: int,
    output_padding: Sequence[int] | None = None,
) -> Map:
    samples, _, *input_size = x.shape
    weight = tensor(w).repeat(samples, *(1 for _ in w.shape[1:]))  # one group of channels for each sample
    try:
        matrix = rules.convolution(
            weight,
            input_size,
            stride,
            padding,
            dilation,
            groups * samples,
            transposed=output_padding is not None,
            output_padding=output_padding or (),
            copied=context.is_copied(w) and samples == 1,
        )
    except (ValueError, OverflowError) as error:
        raise NoRuleError(str(error)) from error
    if matrix.shape[0] != prod(context.shape):
        raise NoRuleError(f"its result has {matrix.shape[0]} elements, and shape {context.shape} was inferred")
    if b is None:
        return through(x, matrix)
    return through(x, matrix, np.tile(np.repeat(constant(b), prod(context.shape[2:])), samples))


def window(
    kernel: Sequence[int], strides: Sequence[int] | None, dilations: Sequence[int] | None
) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Kernel size, stride and dilation, one number for each axis, at least 1."""
    ones = (1,) * len(kernel)
    sizes = tuple(kernel), tuple(strides or ones), tuple(dilations or ones)
    for name, numbers in zip(("kernel_shape", "strides", "dilations"), sizes, strict=True):
        if len(numbers) != len(kernel) or min(numbers) < 1:
            raise NoRuleError(f"{name} = {list(numbers)}")
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


@rule("BatchNormalization")
def batch_norm(
    context: Context,
    x: Any,
    scale: Any,
    b: Any,
    mean: Any,
    var: Any,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> Map:
    parts = (constant(part) for part in (scale, b, mean, var))
    with np.errstate(all="ignore"):
        matrix, bias = rules.batch_norm(context.shape, *parts, epsilon)
    if not np.isfinite(bias).all():
        raise NoRuleError("its variance must be positive")
    return through(x, matrix, bias)


@rule("MatMul")
def matmul(context: Context, a: Any, b: Any) -> Map:
    return _product(context, a, b)


@rule("Gemm")
def gemm(
    context: Context,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Map:
    product = scaled(_product(context, a, b, bool(transA), bool(transB)), alpha, context.shape)
    return product if c is None else product + scaled(broadcast(c, context.shape), beta, context.shape)


def _product(context: Context, a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Map:
    """The product of a value and a constant, or of a constant and a value."""
    from_right = isinstance(a, Value)
    source, other = (value(a), b) if from_right else (value(b), a)
    flip_source, flip_weight = (transpose_a, transpose_b) if from_right else (transpose_b, transpose_a)
    weight, shape, map = tensor(other), source.shape, AffineMap.identity(source, source.size)
    if flip_source:
        [(map, shape)] = follow(np.transpose, [source])
    if weight.dim() == 1:
        weight = weight[:, None] if from_right else weight[None]
    elif flip_weight:
        weight = weight.mT
    if len(shape) == 1:
        shape = (1, *shape) if from_right else (*shape, 1)
    if weight.dim() > len(shape) or np.broadcast_shapes(weight.shape[:-2], shape[:-2]) != tuple(shape[:-2]):
        raise NoRuleError("the value is repeated for each matrix")
    make = rules.matmul_right if from_right else rules.matmul_left
    return map.then(make(weight, shape, copied=context.is_copied(other)))


@rule("AveragePool")
def average_pool(
    context: Context,
    x: Any,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Map:
    shape = value(x).shape
    kernel, stride, dilation = window(kernel_shape, strides, dilations)
    padding = window_padding(auto_pad, pads, shape[2:], kernel, stride, dilation)
    matrix = rules.average_pool(
        prod(shape[:2]),
        shape[2:],
        context.shape[2:],
        kernel,
        stride,
        padding,
        dilation,
        count_include_pad=bool(count_include_pad),
    )
    return through(x, matrix)


@rule("GlobalAveragePool")
def global_average_pool(context: Context, x: Any) -> Map:
    shape = value(x).shape
    return through(x, rules.reduce(shape, range(2, len(shape)), mean=True))


def reduced_axes(x: Any, axes: Any, noop_with_empty_axes: int) -> list[int]:
    """The axes of a reduction."""
    count = len(value(x).shape)
    axes = [int(axis) % count for axis in ([] if axes is None else constant(axes).ravel())]
    return axes or ([] if noop_with_empty_axes else list(range(count)))


@rule("ReduceMean", "ReduceSum")
def reduce(
    context: Context, x: Any, axes_input: Any = None, *, axes: Any = None, keepdims: int = 1, noop_with_empty_axes: int = 0
) -> Map:
    shape = value(x).shape
    over = reduced_axes(x, axes if axes_input is None else axes_input, noop_with_empty_axes)
    return through(x, rules.reduce(shape, over, mean=context.operator.op_type == "ReduceMean"))


@rule("CumSum")
def cumsum(context: Context, x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Map:
    shape = value(x).shape
    [number] = constant(axis).astype(int).ravel() % len(shape)
    line = np.tril(np.ones((shape[number],) * 2), -1 if exclusive else 0)
    axes = [(line.T if reverse else line) if n == number else np.eye(size) for n, size in enumerate(shape)]
    return through(x, rules.separable(1, axes))


@rule("Resize", "Upsample")
def resize(context: Context, x: Any, *other: Any, **attributes: Any) -> Map:
    """One axis at a time, each from its unit vectors."""
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoRuleError("coordinate_transformation_mode = tf_crop_and_resize")
    if attributes.pop("keep_aspect_ratio_policy", "stretch") != "stretch" or "axes" in attributes:
        raise NoRuleError("keep_aspect_ratio_policy and axes")
    shape = value(x).shape
    if len(other) < 2:  # Upsample, and Resize before opset 11, which had neither a choice nor the sizes
        attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    scales = attributes.pop("scales", other[min(len(other), 2) - 1] if other else None)
    by_scale = scales is not None and np.size(scales) > 0
    numbers = constant(scales) if by_scale else np.array(context.shape)
    lines = []
    for size, number in zip(shape, numbers, strict=True):
        given = [np.float32([number]), None] if by_scale else [None, np.array([number], np.int64)]
        names = ["x", "", *("" if array is None else name for name, array in zip(("scales", "sizes"), given))]
        node = onnx.helper.make_node("Resize", names, ["y"], **attributes)
        feeds = {name: array for name, array in zip(names[2:], given, strict=True) if name}
        run = ReferenceEvaluator(node, opsets={"": 13}).run
        lines.append(np.stack([run(None, {"x": unit, **feeds})[0] for unit in np.eye(size)], axis=1))
    return through(x, rules.separable(1, lines))


# Operators that only move elements: run on the numbers of the elements.
MOVING = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Concat", "Split", "Slice"),
    *("Gather", "GatherElements", "GatherND", "Pad", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu"),
    *("Compress", "ScatterElements", "ScatterND", "Scatter", "CenterCropPad"),
)


@rule(*MOVING)
def moving(context: Context, *args: Any, **attributes: Any) -> Any:
    try:
        return follow(lambda *arrays: context.operator.run(arrays, double=True), context.inputs)
    except Exception as error:  # that it does more than to move, or whatever onnx.reference trips over
        raise NoRuleError(str(error)) from error
