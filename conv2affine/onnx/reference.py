"""onnx.reference, with operators that it lacks, computes for training, or computes one element at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from functools import reduce
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from onnx import ModelProto, NodeProto
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun
from onnx.reference.ops import op_average_pool, op_conv_transpose, op_grid_sample, op_lp_pool, op_max_pool
from onnx.reference.ops.op_scatter_elements import ScatterElements


def evaluator(proto: ModelProto | NodeProto) -> ReferenceEvaluator:
    """Runs a model or a node by `onnx.reference`, as the standard defines it."""
    own = [AveragePool, BatchNormalization, ConvTranspose, GridSample, LpPool, MaxPool, Scatter]
    return ReferenceEvaluator(proto, new_ops=own)


class BatchNormalization(OpRun):
    """The operator in inference: below opset 14, that of onnx.reference mixes the samples of a batch."""

    op_domain = ""

    def _run(self, x: Any, scale: Any, bias: Any, mean: Any, var: Any, epsilon: float, **_: Any) -> tuple[Any]:
        scale, bias, mean, var = (array.reshape(-1, *[1] * (x.ndim - 2)) for array in (scale, bias, mean, var))
        return ((scale * (x - mean) / np.sqrt(var + epsilon) + bias).astype(x.dtype),)


class Scatter(ScatterElements):
    """The name that ScatterElements has before opset 11, and which onnx.reference does not know."""

    op_domain = ""


class MaxPool(OpRun):
    """All windows at once; one by one where readers disagree on the attributes."""

    op_domain = ""

    def _run(self, x: Any, storage_order: int = 0, **window: Any) -> Any:
        taps = _taps(x, -np.inf, -np.inf, **window) if len(self.output) == 1 and x.dtype.kind == "f" else None
        if taps is None:
            slow: Any = op_max_pool.MaxPool(self.onnx_node, self.run_params)
            return slow._run(x, storage_order=storage_order, **window)
        return (reduce(np.maximum, taps),)


class AveragePool(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x: Any, count_include_pad: int = 0, **window: Any) -> Any:
        taps = _taps(x.astype(np.float64), 0.0, 0.0, **window)
        counts = _taps(np.ones((1, 1, *x.shape[2:])), float(count_include_pad), 0.0, **window)
        if taps is None or counts is None or x.dtype.kind != "f":
            slow: Any = op_average_pool.AveragePool_19(self.onnx_node, self.run_params)
            return slow._run(x, count_include_pad=count_include_pad, **window)
        return ((sum(taps) / sum(counts)).astype(x.dtype),)


class LpPool(OpRun):
    """Likewise."""

    op_domain = ""

    def _run(self, x: Any, p: float = 2, **window: Any) -> Any:
        taps = _taps(abs(x.astype(np.float64)) ** p, 0.0, 0.0, **window)
        if taps is None:
            slow: Any = op_lp_pool.LpPool(self.onnx_node, self.run_params)
            return slow._run(x, p=p, **window)
        total: Any = sum(taps)
        return ((total ** (1 / p)).astype(x.dtype),)


class GridSample(OpRun):
    """As PyTorch samples, all positions at once; one by one what it does not have."""

    op_domain = ""

    def _run(self, x: Any, grid: Any, align_corners: int = 0, mode: str = "linear", padding_mode: str = "zeros") -> Any:
        name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
        image, places = (torch.from_numpy(np.ascontiguousarray(each)) for each in (x, grid.astype(x.dtype)))
        try:
            return (F.grid_sample(image, places, name, padding_mode, bool(align_corners)).numpy(),)
        except (NotImplementedError, RuntimeError, ValueError):
            slow: Any = op_grid_sample.GridSample(self.onnx_node, self.run_params)
            return slow._run(x, grid, align_corners=align_corners, mode=mode, padding_mode=padding_mode)


class ConvTranspose(OpRun):
    """All positions at once, a weight at a time; one by one where the output's shape is given."""

    op_domain = ""

    def _run(
        self,
        x: Any,
        w: Any,
        b: Any = None,
        group: int = 1,
        pads: Sequence[int] | None = None,
        auto_pad: str = "NOTSET",
        output_shape: Sequence[int] | None = None,
        **options: Any,
    ) -> Any:
        if output_shape or auto_pad not in ("", "NOTSET", "VALID"):
            slow: Any = op_conv_transpose.ConvTranspose(self.onnx_node, self.run_params)
            return slow._run(x, w, b, group=group, pads=pads, auto_pad=auto_pad, output_shape=output_shape, **options)
        kernel, sizes = w.shape[2:], x.shape[2:]
        zeros, ones = [0] * len(kernel), [1] * len(kernel)
        strides, dilations, more = (
            options.get(name) or default
            for name, default in (("strides", ones), ("dilations", ones), ("output_padding", zeros))
        )
        steps = list(zip(sizes, strides, dilations, kernel, more, strict=True))
        whole = [(i - 1) * s + (k - 1) * d + 1 + e for i, s, d, k, e in steps]  # before it is cut
        y: Any = np.zeros((len(x), w.shape[1] * group, *whole), x.dtype)
        columns = x.reshape(len(x), group, len(w) // group, -1)
        for place in itertools.product(*map(range, kernel)):
            weight = w[(..., *place)].reshape(group, len(w) // group, -1).transpose(0, 2, 1)
            ends = [(k * d, k * d + (i - 1) * s + 1, s) for k, (i, s, d, _, _) in zip(place, steps, strict=True)]
            y[(..., *(slice(*each) for each in ends))] += (weight @ columns).reshape(*y.shape[:2], *sizes)
        sides = [*zeros, *zeros] if auto_pad == "VALID" else pads or [*zeros, *zeros]
        cut = zip(sides, sides[len(kernel) :], whole, strict=False)
        y = y[(..., *(slice(first, size - last) for first, last, size in cut))]
        return (y if b is None else y + b.reshape(-1, *ones),)


def _taps(
    x: Any,
    fill: float,
    nothing: float,
    kernel_shape: Sequence[int],
    auto_pad: str | None = None,
    ceil_mode: int | None = None,
    dilations: Sequence[int] | None = None,
    pads: Sequence[int] | None = None,
    strides: Sequence[int] | None = None,
) -> Iterator[Any] | None:
    """For each place of a window what all windows read there; None for attributes on which readers disagree.

    They read `fill` in the padding, and `nothing` after it, which they reach in ceil_mode.
    """
    axes, sizes = len(kernel_shape), x.shape[2:]
    strides, dilations, pads = strides or [1] * axes, dilations or [1] * axes, pads or [0] * 2 * axes
    spans = [(k - 1) * d + 1 for k, d in zip(kernel_shape, dilations, strict=True)]
    if auto_pad == "VALID":
        pads = [0] * 2 * axes
    elif auto_pad == "SAME_UPPER":
        totals = [max(0, (-(-i // s) - 1) * s + k - i) for i, s, k in zip(sizes, strides, spans, strict=True)]
        pads = [*(total // 2 for total in totals), *(total - total // 2 for total in totals)]
    elif auto_pad not in (None, "", "NOTSET"):
        return None
    sides = list(zip(pads[:axes], pads[axes:], strict=True))
    lines = list(zip(sizes, sides, spans, strides, strict=True))
    counts = [(i + sum(p) - k) // s + 1 for i, p, k, s in lines]
    if ceil_mode:  # another window for what is left, unless it starts in the padding at the end
        counts = [
            n + ((i + sum(p) - k) % s > 0 and n * s < i + p[0]) for n, (i, p, k, s) in zip(counts, lines, strict=True)
        ]
    is_dilated_at_a_border = max(dilations) > 1 and any(pads)  # where a window may read nothing
    if len(sizes) != axes or min(counts) < 1 or min(pads) < 0 or is_dilated_at_a_border:
        return None
    if any(max(p) >= k for p, k in zip(sides, spans, strict=True)) or (
        ceil_mode and auto_pad not in (None, "", "NOTSET")
    ):
        return None
    after = [max(0, (n - 1) * s + k - i - sum(p)) for n, (i, p, k, s) in zip(counts, lines, strict=True)]
    padded: Any = np.pad(x, ((0, 0), (0, 0), *sides), constant_values=fill)
    padded = np.pad(padded, ((0, 0), (0, 0), *((0, more) for more in after)), constant_values=nothing)

    def read(place: tuple[int, ...]) -> Any:
        starts = [k * d for k, d in zip(place, dilations, strict=True)]
        ends = zip(starts, counts, strides, strict=True)
        return padded[(..., *(slice(start, start + (n - 1) * s + 1, s) for start, n, s in ends))]

    return map(read, itertools.product(*map(range, kernel_shape)))
