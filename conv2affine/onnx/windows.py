"""Rules of the affine operators that go over positions: convolution, pooling, resizing."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from conv2affine.network.graph import Value
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import Map, NoRuleError, constant, through, value
from conv2affine.network.rules.table import Table
from conv2affine.onnx.rules import Context, pool_windows, tensor, window, window_padding

__all__ = ["RULES"]

RULES = Table()
rule = RULES.rule


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
    axes = (input_size, stride, kernel, dilation, extra)
    full = [(i - 1) * s + (k - 1) * d + 1 + e for i, s, k, d, e in zip(*axes, strict=True)]
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
    pool_windows((1, *shape[2:]), context.shape[2:], kernel, stride, padding, dilation)  # an empty one has no mean
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


@rule("Resize", "Upsample")
def resize(context: Context, x: Any, *other: Any, **attributes: Any) -> Map:
    """One axis at a time, each from its unit vectors."""
    if (mode := attributes.get("coordinate_transformation_mode")) in ("tf_crop_and_resize", "tf_half_pixel_for_nn"):
        raise NoRuleError(f"coordinate_transformation_mode = {mode}")
    if attributes.pop("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRuleError("keep_aspect_ratio_policy")
    shape = value(x).shape
    axes = list(attributes.pop("axes", range(len(shape))))
    if len(other) < 2:  # Upsample, and Resize before opset 11, which had neither a choice nor the sizes
        attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    scales = attributes.pop("scales", other[min(len(other), 2) - 1] if other else None)
    by_scale = scales is not None and np.size(scales) > 0
    numbers = np.array(context.shape, np.float64)
    if by_scale:
        numbers = np.ones(len(shape))
        numbers[axes] = constant(scales)
    if attributes.get("coordinate_transformation_mode") == "align_corners" and (numbers % 1).any():
        raise NoRuleError(
            "coordinate_transformation_mode = align_corners, which readers do not agree on for such scales"
        )
    lines = []
    for size, number in zip(shape, numbers, strict=True):
        given = np.array([number], np.float32 if by_scale else np.int64)
        inputs = ["x", "", "given"] if by_scale else ["x", "", "", "given"]
        node = onnx.helper.make_node("Resize", inputs, ["y"], **attributes)
        run: Any = ReferenceEvaluator(node).run
        lines.append(np.stack([run(None, {"x": unit, "given": given})[0] for unit in np.eye(size)], axis=1))
    return through(x, rules.separable(1, lines))
