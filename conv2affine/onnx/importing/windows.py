"""Reads the attributes of ONNX operators over positions into the neutral arguments of `network.rules`."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import scipy.sparse
import torch
import torch.nn.functional as F
from onnx.reference import ReferenceEvaluator

from conv2affine.network.rules import positions, shapes
from conv2affine.network.rules.operands import Context, NoRuleError, check_numbers, constant, value
from conv2affine.network.rules.windows import Axis, Window

Ints = Sequence[int] | None
# Along an axis; all windows together have to fit into memory.
MAX_KERNEL = 2**12
MAX_AXES = 3  # of a convolution
LOOP = 64  # onnx.reference takes as long for one element of a Resize as other rules for this many
ROUND: Mapping[str, Callable[[Any], Any]] = {
    "floor": np.floor,
    "ceil": np.ceil,
    "round_prefer_floor": lambda places: np.ceil(places - 0.5),
    "round_prefer_ceil": lambda places: np.floor(places + 0.5),
}


def conv(context: Context, x: Any, w: Any, b: Any = None, *, groups: int = 1, **attributes: Any) -> Any:
    window = _window(x, _kernel(w, attributes.pop("kernel_shape", None)), **attributes)
    return positions.convolution(context, x, w, b, window, groups=groups)


def conv_transpose(
    context: Context,
    x: Any,
    w: Any,
    b: Any = None,
    *,
    groups: int = 1,
    kernel_shape: Ints = None,
    output_padding: Ints = None,
    output_shape: Ints = None,
    **attributes: Any,
) -> Any:
    window = _window(x, _kernel(w, kernel_shape), **attributes)
    extra = list(output_padding or [0] * len(window))
    auto_pad = attributes.get("auto_pad")
    if output_shape is not None or auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        # What exceeds the output is cut off; an odd element at the end for SAME_UPPER, else at the start.
        sizes = zip(window, value(x).shape[2:], extra, context.shape[2:], strict=True)
        cut = [(i - 1) * a.stride + (a.kernel - 1) * a.dilation + 1 + e - o for a, i, e, o in sizes]
        if min(cut) < 0:
            raise NoRuleError(f"output_shape = {list(context.shape[2:])} is more than the weights reach")
        window = [axis._replace(padding=_halves(total, auto_pad)) for axis, total in zip(window, cut, strict=True)]
    return positions.convolution(context, x, w, b, window, groups=groups, transposed=True, output_padding=extra)


def average_pool(
    context: Context, x: Any, *, kernel_shape: Sequence[int], count_include_pad: int = 0, **attributes: Any
) -> Any:
    window = _convolution_window(x, kernel_shape, **attributes)
    return positions.average_pool(context, x, window, count_include_pad=bool(count_include_pad))


def lp_pool(context: Context, x: Any, *, kernel_shape: Sequence[int], p: float = 2, **attributes: Any) -> Any:
    return positions.lp_pool(context, x, _convolution_window(x, kernel_shape, **attributes), p)


def max_pool(context: Context, x: Any, *, kernel_shape: Sequence[int], **attributes: Any) -> Any:
    return positions.max_pool(context, x, _window(x, kernel_shape, **attributes))


def col2im(context: Context, x: Any, image_shape: Any, block_shape: Any, **attributes: Any) -> Any:
    return shapes.fold(context, x, _window(x, constant(block_shape).astype(int).tolist(), **attributes))


def grid_sample(
    context: Context, x: Any, grid: Any, *, mode: str = "linear", padding_mode: str = "zeros", align_corners: int = 0
) -> Any:
    """As PyTorch samples; a runtime that differs is found by running the node."""
    coordinates = torch.from_numpy(constant(grid))
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)

    def sample(batch: torch.Tensor) -> torch.Tensor:
        try:
            return F.grid_sample(batch[None], coordinates, name, padding_mode, bool(align_corners))[0]
        except (RuntimeError, ValueError) as error:
            raise NoRuleError(f"mode = {mode}, padding_mode = {padding_mode}: {error}") from error

    return positions.sample(context, x, sample)


def dft(
    context: Context,
    x: Any,
    length: Any = None,
    axis_input: Any = None,
    *,
    axis: int | None = None,
    inverse: int = 0,
    onesided: int = 0,
) -> Any:
    """The axis is an attribute before opset 20, and another if it is left out."""
    if axis_input is not None:
        axis = int(constant(axis_input).item())
    elif axis is None:
        axis = 1 if context.call.opset < 20 else -2
    size = None if length is None else int(constant(length).item())
    return positions.fourier(context, x, axis, size, inverse=bool(inverse), onesided=bool(onesided))


def stft(
    context: Context, x: Any, frame_step: Any, window: Any = None, frame_length: Any = None, *, onesided: int = 1
) -> Any:
    sizes = [int(constant(size).item()) for size in (frame_step, frame_length) if size is not None]
    if window is None:
        window = np.ones(sizes[1])
    if len(sizes) > 1 and sizes[1] != len(constant(window)):
        raise NoRuleError(f"frame_length = {sizes[1]}, and the window has {len(constant(window))} elements")
    return positions.short_time_fourier(context, x, sizes[0], window, onesided=bool(onesided))


def resize(context: Context, x: Any, *other: Any, **attributes: Any) -> Any:
    """One axis at a time, each from its unit vectors."""
    if attributes.get("coordinate_transformation_mode") == "tf_crop_and_resize":
        raise NoRuleError("coordinate_transformation_mode = tf_crop_and_resize")
    if attributes.pop("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise NoRuleError("keep_aspect_ratio_policy")
    shape = value(x).shape
    axes = list(attributes.pop("axes", range(len(shape))))
    if len(other) < 2:  # Upsample, and Resize before opset 11, which had no modes and no sizes
        attributes.update(coordinate_transformation_mode="asymmetric", nearest_mode="floor")
    scales = attributes.pop("scales", other[min(len(other), 2) - 1] if other else None)
    by_scale = scales is not None and np.size(scales) > 0
    numbers = np.array(context.shape, np.float64)
    if by_scale:
        numbers = np.ones(len(shape))
        numbers[axes] = constant(scales)
    if attributes.get("coordinate_transformation_mode") == "align_corners" and (numbers % 1).any():
        raise NoRuleError("coordinate_transformation_mode = align_corners, on which readers disagree for such scales")
    sizes = zip(shape, context.shape, numbers, strict=True)
    lines = [_line(size, outputs, number, by_scale, attributes) for size, outputs, number in sizes]
    return positions.resize(context, x, lines)


def _line(size: int, outputs: int, number: float, by_scale: bool, attributes: Mapping[str, Any]) -> Any:
    """The matrix (outputs, size) of a Resize along one axis, of a scale or of a size."""
    if size == outputs == (size * number if by_scale else number):
        return scipy.sparse.eye_array(size)
    if attributes.get("coordinate_transformation_mode") == "tf_half_pixel_for_nn":  # which onnx.reference does not have
        if attributes.get("mode", "nearest") != "nearest":
            raise NoRuleError("coordinate_transformation_mode = tf_half_pixel_for_nn")
        scale = np.float32(number if by_scale else outputs / size)
        places = (np.arange(outputs, dtype=np.float32) + np.float32(0.5)) / scale
        nearest = ROUND[attributes.get("nearest_mode", "round_prefer_floor")](places).clip(0, size - 1).astype(int)
        return scipy.sparse.eye_array(size, format="csr")[nearest]
    check_numbers(LOOP * size * outputs)
    given = np.array([number], np.float32 if by_scale else np.int64)
    inputs = ["x", "", "given"] if by_scale else ["x", "", "", "given"]
    run: Any = ReferenceEvaluator(onnx.helper.make_node("Resize", inputs, ["y"], **attributes)).run
    return np.stack([run(None, {"x": unit, "given": given})[0] for unit in np.eye(size)], axis=1)


def _kernel(w: Any, kernel_shape: Ints) -> list[int]:
    """The kernel size of a weight, which the attribute may repeat."""
    kernel = list(w.shape[2:])
    if kernel_shape is not None and list(kernel_shape) != kernel:
        raise NoRuleError(f"kernel_shape = {list(kernel_shape)}, and the weight has {kernel}")
    return kernel


def _convolution_window(x: Any, kernel_shape: Sequence[int], **attributes: Any) -> Window:
    """The window of a sum or a mean, which is a convolution and has its limits."""
    if len(kernel_shape) > MAX_AXES:
        raise NoRuleError(f"kernel_shape = {list(kernel_shape)}")
    return _window(x, kernel_shape, **attributes)


def _window(
    x: Any,
    kernel_shape: Sequence[int],
    auto_pad: str = "NOTSET",
    dilations: Ints = None,
    pads: Ints = None,
    strides: Ints = None,
) -> Window:
    """The window of these attributes, its numbers checked."""
    axes = len(kernel_shape)
    kernel, stride, dilation = list(kernel_shape), list(strides or [1] * axes), list(dilations or [1] * axes)
    for name, numbers in (("kernel_shape", kernel), ("strides", stride), ("dilations", dilation)):
        if len(numbers) != axes or min(numbers) < 1:
            raise NoRuleError(f"{name} = {numbers}")
    if max(kernel) > MAX_KERNEL:
        raise NoRuleError(f"kernel_shape = {kernel}")
    sides = list(pads or [0] * 2 * axes)
    if len(sides) != 2 * axes or min(sides) < 0:
        raise NoRuleError(f"pads = {sides}")
    padding = list(zip(sides[:axes], sides[axes:], strict=True))
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        lines = zip(value(x).shape[2:], kernel, stride, dilation, strict=True)
        totals = [max(0, (-(-i // s) - 1) * s + (k - 1) * d + 1 - i) for i, k, s, d in lines]
        padding = [_halves(total, auto_pad) for total in totals]
    elif auto_pad == "VALID":
        padding = [(0, 0)] * axes
    elif auto_pad != "NOTSET":
        raise NoRuleError(f"auto_pad = {auto_pad}")
    return [Axis(*numbers) for numbers in zip(kernel, stride, padding, dilation, strict=True)]


def _halves(total: int, auto_pad: str | None) -> tuple[int, int]:
    sides = total // 2, total - total // 2
    return sides if auto_pad == "SAME_UPPER" else sides[::-1]
