"""Reads the attributes of the ONNX operators that go over positions into the neutral arguments of `network.rules`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from onnx.reference import ReferenceEvaluator

from conv2affine.network.rules import positions
from conv2affine.network.rules.operands import Context, NoRuleError, constant, value

__all__ = ["average_pool", "conv", "conv_transpose", "max_pool", "resize"]

Ints = Sequence[int] | None
# Along an axis; all windows together have to fit into memory.
MAX_KERNEL = 2**12


def conv(
    context: Context,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Any:
    kernel, stride, dilation = _window(_kernel(w, kernel_shape), strides, dilations)
    padding = _padding(auto_pad, pads, value(x).shape[2:], kernel, stride, dilation)
    return positions.convolution(context, x, w, b, stride=stride, padding=padding, dilation=dilation, groups=group)


def conv_transpose(
    context: Context,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    group: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Any:
    input_size = value(x).shape[2:]
    kernel, stride, dilation = _window(_kernel(w, kernel_shape), strides, dilations)
    extra = list(output_padding or [0] * len(kernel))
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # What is more than the output is cut off; the odd one at the end for SAME_UPPER, else at the start.
        axes = zip(input_size, stride, kernel, dilation, extra, context.shape[2:], strict=True)
        cut = [(i - 1) * s + (k - 1) * d + 1 + e - o for i, s, k, d, e, o in axes]
        if min(cut) < 0:
            raise NoRuleError(f"output_shape = {list(context.shape[2:])} is more than the weights reach")
        padding = _sides(cut, auto_pad == "SAME_UPPER")
    else:
        padding = _padding(auto_pad, pads, input_size, kernel, stride, dilation)
    return positions.convolution(
        context,
        x,
        w,
        b,
        stride=stride,
        padding=padding,
        dilation=dilation,
        groups=group,
        transposed=True,
        output_padding=extra,
    )


def average_pool(
    context: Context,
    x: Any,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,  # shows in the shape of the result
    count_include_pad: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Any:
    kernel, stride, dilation = _window(kernel_shape, strides, dilations)
    padding = _padding(auto_pad, pads, value(x).shape[2:], kernel, stride, dilation)
    counted = bool(count_include_pad)
    return positions.average_pool(context, x, kernel, stride, padding, dilation, count_include_pad=counted)


def max_pool(
    context: Context,
    x: Any,
    *,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: Ints = None,
    pads: Ints = None,
    storage_order: int = 0,
    strides: Ints = None,
) -> Any:
    kernel, stride, dilation = _window(kernel_shape, strides, dilations)
    padding = _padding(auto_pad, pads, value(x).shape[2:], kernel, stride, dilation)
    return positions.max_pool(context, x, kernel, stride, padding, dilation)


def resize(context: Context, x: Any, *other: Any, **attributes: Any) -> Any:
    """One axis at a time, each from its unit vectors."""
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoRuleError("coordinate_transformation_mode = tf_crop_and_resize")
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
    return positions.resize(context, x, lines)


def _kernel(w: Any, kernel_shape: Ints) -> list[int]:
    """The kernel size of a weight, which the attribute may repeat."""
    kernel = list(w.shape[2:])
    if kernel_shape is not None and list(kernel_shape) != kernel:
        raise NoRuleError(f"kernel_shape = {list(kernel_shape)}, and the weight has {kernel}")
    return kernel


def _window(kernel: Sequence[int], strides: Ints, dilations: Ints) -> tuple[list[int], list[int], list[int]]:
    """Kernel size, stride and dilation, one number for each axis, at least 1."""
    ones = [1] * len(kernel)
    kernel, stride, dilation = list(kernel), list(strides or ones), list(dilations or ones)
    for name, numbers in (("kernel_shape", kernel), ("strides", stride), ("dilations", dilation)):
        if len(numbers) != len(kernel) or min(numbers) < 1:
            raise NoRuleError(f"{name} = {numbers}")
    if max(kernel) > MAX_KERNEL:
        raise NoRuleError(f"kernel_shape = {kernel}")
    return kernel, stride, dilation


def _padding(
    auto_pad: str,
    pads: Ints,
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
    lines = zip(input_size, kernel, stride, dilation, strict=True)
    return _sides(
        [max(0, (-(-i // s) - 1) * s + (k - 1) * d + 1 - i) for i, k, s, d in lines], auto_pad == "SAME_UPPER"
    )


def _sides(totals: Sequence[int], larger_last: bool) -> list[tuple[int, int]]:
    """Halves of numbers, for both sides of each axis."""
    halves = [(total // 2, total - total // 2) for total in totals]
    return halves if larger_last else [half[::-1] for half in halves]
