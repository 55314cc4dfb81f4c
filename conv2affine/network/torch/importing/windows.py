"""Reads the arguments of ATen's convolutions, pooling and resizing into the neutral ones of `network.rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from conv2affine.network.rules import positions
from conv2affine.network.rules.operands import Context, Rule, value, weight
from conv2affine.network.rules.windows import Axis, Window


def convolution(
    context: Context,
    x: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    output_padding: Sequence[int],
    **options: Any,
) -> Any:
    axes = len(value(x).shape) - 2
    options["output_padding"] = _per_axis(output_padding, axes) if options["transposed"] else ()
    window = _window(weight.shape[2:], stride, padding, dilation, axes)
    return positions.convolution(context, x, weight, bias, window, **options)


def pool(rule: Rule, axes: int) -> Rule:
    def pool(
        context: Context,
        x: Any,
        kernel_size: Any,
        stride: Any = (),
        padding: Any = 0,
        dilation: Any = 1,
        **options: Any,
    ) -> Any:
        return rule(context, x, _window(kernel_size, stride or kernel_size, padding, dilation, axes), **options)

    return pool


def adaptive(rule: Rule, axes: int) -> Rule:
    def pool(context: Context, x: Any, output_size: Any) -> Any:
        return rule(context, x, axes)

    return pool


def upsample(name: str, axes: int) -> Rule:
    """Each axis separately, from its unit vectors; cubic and antialiased resizing have no operator for one axis."""

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


def _window(kernel_size: Any, stride: Any, padding: Any, dilation: Any, axes: int) -> Window:
    lines = zip(*(_per_axis(numbers, axes) for numbers in (kernel_size, stride, padding, dilation)), strict=True)
    return [Axis(kernel, step, (side, side), apart) for kernel, step, side, apart in lines]


def _per_axis(numbers: Any, axes: int) -> list[int]:
    """One number per axis, from as many or from one."""
    per: list[int] = [numbers] if isinstance(numbers, int) else list(numbers)
    return per * axes if len(per) == 1 else per
