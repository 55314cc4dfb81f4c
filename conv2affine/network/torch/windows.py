"""Reads the arguments of the ATen operators that go over positions into the neutral ones of `network.rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conv2affine.network.rules import positions
from conv2affine.network.rules.operands import Context, Rule, value, weight

__all__ = ["adaptive", "average_pool", "convolution", "grid_sample", "max_pool", "upsample"]


def convolution(
    context: Context,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Any:
    axes = len(value(x).shape) - 2
    return positions.convolution(
        context,
        x,
        weight,
        bias,
        stride=per_axis(stride, axes),
        padding=both_sides(padding, axes),
        dilation=per_axis(dilation, axes),
        groups=groups,
        transposed=transposed,
        output_padding=per_axis(output_padding, axes) if transposed else (),
    )


def average_pool(axes: int) -> Rule:
    def average_pool(
        context: Context,
        x: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        ceil_mode: bool = False,  # shows in the shape of the result
        count_include_pad: bool = True,
        divisor_override: int | None = None,
    ) -> Any:
        kernel = per_axis(kernel_size, axes)
        window = (kernel, per_axis(stride, axes) if stride else kernel, both_sides(padding, axes), (1,) * axes)
        return positions.average_pool(
            context, x, *window, count_include_pad=count_include_pad, divisor=divisor_override
        )

    return average_pool


def max_pool(axes: int) -> Rule:
    def max_pool(
        context: Context,
        x: Any,
        kernel_size: Sequence[int],
        stride: Sequence[int] = (),
        padding: Sequence[int] = (0,),
        dilation: Sequence[int] = (1,),
        ceil_mode: bool = False,
    ) -> Any:
        kernel = per_axis(kernel_size, axes)
        window = (kernel, per_axis(stride, axes) if stride else kernel, both_sides(padding, axes))
        return positions.max_pool(context, x, *window, per_axis(dilation, axes))

    return max_pool


def adaptive(rule: Rule, axes: int) -> Rule:
    def pool(context: Context, x: Any, output_size: Any) -> Any:
        return rule(context, x, axes)

    return pool


def upsample(name: str, axes: int) -> Rule:
    """Along each axis by itself, from its unit vectors; cubic and antialiased ones have no operator for one axis."""

    def upsample(context: Context, x: Any, align_corners: bool, **arguments: Any) -> Any:
        scales = arguments.get("scale_factors")
        if "scale_factors" not in arguments:
            scales = [arguments[name] for name in ("scales_d", "scales_h", "scales_w", "scales") if name in arguments]
        lines = []
        sizes = zip(value(x).shape[-axes:], context.shape[-axes:], scales or [None] * axes, strict=True)
        for size, output, scale in sizes:
            unit = torch.eye(size, dtype=torch.float64)[None]
            if "cubic" in name or "_aa" in name:
                resize = getattr(torch.ops.aten, name)
                line = resize(unit[:, :, None], [1, output], align_corners, None, scale)[:, :, 0]
            else:
                line = torch.ops.aten.upsample_linear1d(unit, [output], align_corners, scale)
            lines.append(line[0].T.numpy())
        return positions.resize(context, x, lines)

    return upsample


def grid_sample(context: Context, x: Any, grid: Any, **options: Any) -> Any:
    coordinates = weight(context, grid)[0].double()

    def sample(batch: Tensor) -> Tensor:
        result: Tensor = context.call.target(batch[None], coordinates, **options)
        return result[0]

    return positions.sample(context, x, sample)


def per_axis(numbers: Any, axes: int) -> list[int]:
    """One number per axis, of as many or of one."""
    per: list[int] = [numbers] if isinstance(numbers, int) else list(numbers)
    return per * axes if len(per) == 1 else per


def both_sides(padding: Any, axes: int) -> list[tuple[int, int]]:
    """Padding as much on the right as on the left of each axis."""
    return [(side, side) for side in per_axis(padding, axes)]
