"""More rules like those of `torch_rules`: sums, pooling, resizing, and the operators that only move elements."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.fx.node import map_aggregate

from conv2affine.network.matrices.layers import Separable
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.moves import concatenate, follow
from conv2affine.network.rules.operands import Map, NoRuleError, broadcast, through, value
from conv2affine.network.rules.table import Table
from conv2affine.network.torch.rules import Context, per_axis, weight_of

__all__ = ["RULES"]

RULES = Table()
rule = RULES.rule


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
@rule("_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa")
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
        if context.name == "upsample_bicubic2d" or context.name.endswith("_aa"):
            resize = getattr(torch.ops.aten, context.name)
            line = resize(unit[:, :, None], [1, output], aligned, None, scale)[:, :, 0]
        else:
            line = torch.ops.aten.upsample_linear1d(unit, [output], aligned, scale)
        matrices.append(line[0].T.numpy())
    return through(input, rules.separable(prod(shape[:-axes]), matrices))


@rule("grid_sampler_2d", "grid_sampler_3d")
def grid_sample(context: Context, input: Any, grid: Any, **options: Any) -> Map:
    samples, channels, *sizes = value(input).shape
    grid = weight_of(grid).double()
    if samples != 1:
        raise NoRuleError  # each has a grid of its own

    def sample(batch: Tensor) -> Tensor:
        result: Tensor = context.operator.target(batch[None], grid, **options)
        return result[0]

    return through(input, Separable(channels, (rules.windowed(sample, sizes),)))


@rule("index_put")
def index_put(context: Context, input: Any, indices: Any, values: Any, accumulate: bool = False) -> Any:
    if not accumulate:
        return moving(context)
    return _added(context, input, values, lambda numbers: torch.ops.aten.index(numbers, indices))


@rule("scatter_add")
def scatter_add(context: Context, input: Any, dim: int, index: Any, src: Any) -> Map:
    if index.shape != src.shape:
        raise NoRuleError  # only a part of it is added
    return _added(context, input, src, lambda numbers: torch.gather(numbers, dim, index))


def _added(context: Context, input: Any, other: Any, read: Callable[[Tensor], Tensor]) -> Map:
    """The sum of one tensor and of what of another is added where `read` would read."""
    places = read(torch.arange(prod(context.shape)).view(context.shape)).numpy()
    return broadcast(input, context.shape) + broadcast(other, places.shape).then(
        rules.gather_sums(places.ravel(), prod(context.shape))
    )


def moving(context: Context, **arguments: Any) -> Any:
    """Any operator that only moves elements: run on the numbers of the elements."""
    operator = context.operator

    def double(argument: Any) -> Any:
        is_floating = isinstance(argument, Tensor) and argument.is_floating_point()
        return argument.detach().double() if is_floating else argument

    def run(*arrays: Any) -> Any:
        tensors = [torch.from_numpy(np.ascontiguousarray(array)) for array in arrays]
        args, kwargs = map_aggregate(operator.filled(tensors), double)
        result = operator.target(*args, **kwargs)
        return [part.numpy() for part in result] if isinstance(result, tuple | list) else result.numpy()

    try:
        return follow(run, context.inputs)
    except ValueError as error:
        raise NoRuleError from error


@rule("cat")
def cat(context: Context, tensors: Sequence[Any], dim: int = 0) -> Any:
    return concatenate(tensors, context.shape, dim) or moving(context)


MOVING = (
    *("view", "permute", "squeeze", "unsqueeze", "expand", "repeat", "diagonal", "unfold", "flip", "slice", "select"),
    *("split_with_sizes", "slice_scatter", "index", "index_select", "gather", "pad", "constant_pad_nd"),
    *("copy", "scatter"),
    *(f"upsample_nearest{axes}d" for axes in (1, 2, 3)),
)
RULES.update(dict.fromkeys(MOVING, moving))


def _axes(dim: Any, shape: Sequence[int]) -> Sequence[int]:
    if isinstance(dim, int):
        return [dim]
    return dim or range(len(shape))
