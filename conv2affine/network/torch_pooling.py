"""More rules like those of `torch_rules`: sums, pooling, resizing, and the operators that only move elements."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conv2affine.network import rules
from conv2affine.network.moves import follow
from conv2affine.network.operands import Map, NoRuleError, through, value
from conv2affine.network.torch_rules import RULES, Context, per_axis, rule

__all__ = ["MOVING"]


@rule("mean", "sum")
def mean(context: Context, input: Any, dim: Any = None, keepdim: bool = False) -> Map:
    shape = value(input).shape
    return through(input, rules.reduce(shape, _axes(dim, shape), mean=context.name == "mean"))


@rule("cumsum")
def cumsum(context: Context, input: Any, dim: int) -> Map:
    shape = value(input).shape
    axes = [
        np.tril(np.ones((size, size))) if axis == dim % len(shape) else np.eye(size) for axis, size in enumerate(shape)
    ]
    return through(input, rules.separable(1, axes))


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def avg_pool(
    context: Context,
    input: Any,
    kernel_size: Sequence[int],
    stride: Sequence[int] = (),
    padding: Sequence[int] = (0,),
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Map:
    axes = context.axes
    shape, kernel = value(input).shape, per_axis(kernel_size, axes)
    matrix = rules.average_pool(
        prod(shape[:-axes]),
        shape[-axes:],
        context.shape[-axes:],
        kernel,
        per_axis(stride, axes) if stride else kernel,
        [(side, side) for side in per_axis(padding, axes)],
        (1,) * axes,
        count_include_pad=count_include_pad,
        divisor=divisor_override,
    )
    return through(input, matrix)


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_avg_pool(context: Context, input: Any, output_size: Any) -> Map:
    axes = context.axes
    shape = value(input).shape
    return through(input, rules.adaptive_average_pool(prod(shape[:-axes]), shape[-axes:], context.shape[-axes:]))


@rule("upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d")
def upsample(context: Context, input: Any, **arguments: Any) -> Map:
    axes = context.axes
    shape, outputs = value(input).shape, context.shape[-axes:]
    scales = arguments.pop("scale_factors", None)
    if scales is None:
        names = [name for name in ("scales_d", "scales_h", "scales_w", "scales") if name in arguments]
        scales = [arguments.pop(name) for name in names]
    scales = scales or [None] * axes
    aligned = arguments["align_corners"]
    matrices = []
    for size, output, scale in zip(shape[-axes:], outputs, scales, strict=True):
        unit = torch.eye(size, dtype=torch.float64)[None]
        if context.name == "upsample_bicubic2d":
            line = torch.ops.aten.upsample_bicubic2d(unit[..., None], [output, 1], aligned, scale, None)[..., 0]
        else:
            line = torch.ops.aten.upsample_linear1d(unit, [output], aligned, scale)
        matrices.append(line[0].T.numpy())
    return through(input, rules.separable(prod(shape[:-axes]), matrices))


def moving(context: Context, **arguments: Any) -> Any:
    """Any operator that only moves elements: run on the numbers of the elements."""
    operator = context.operator

    def double(tensor: Tensor) -> Tensor:
        return tensor.detach().double() if tensor.is_floating_point() else tensor

    def run(*arrays: Any) -> Any:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        args, kwargs = pytree.tree_map_only(Tensor, double, operator.filled(tensors))
        result = operator.target(*args, **kwargs)
        return [part.numpy() for part in result] if isinstance(result, tuple | list) else result.numpy()

    try:
        return follow(run, context.inputs)
    except ValueError as error:
        raise NoRuleError from error


MOVING = (
    *("view", "permute", "squeeze", "unsqueeze", "expand", "repeat", "diagonal", "unfold", "flip", "slice", "select"),
    *("split_with_sizes", "cat", "slice_scatter", "index", "index_select", "gather", "pad", "constant_pad_nd"),
    *(f"upsample_nearest{axes}d" for axes in (1, 2, 3)),
)
RULES.update(dict.fromkeys(MOVING, moving))


def _axes(dim: Any, shape: Sequence[int]) -> Sequence[int]:
    if isinstance(dim, int):
        return [dim]
    return dim or range(len(shape))
