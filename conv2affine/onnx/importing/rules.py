"""The rules of ONNX operators: their inputs and attributes, read into the neutral arguments of `network.rules`.

A rule takes a context, the operator's inputs in their order, and its attributes by name as keywords. An attribute or an
input that a rule does not take is not an error: the operator has no rule then.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from conv2affine.network.rules import activations, arithmetic, shapes
from conv2affine.network.rules.operands import Context, NoRuleError, Rule, constant, value
from conv2affine.onnx.importing import windows
from conv2affine.onnx.importing.units import OTHERS, by_units


def concat(context: Context, *parts: Any, axis: int) -> Any:
    return shapes.concat(context, parts, axis)


def copy(context: Context, x: Any, *other: Any) -> Any:
    """The first input, whatever the others are."""
    return shapes.copy(context, x)


def subtract(context: Context, x: Any, other: Any) -> Any:
    return arithmetic.add(context, x, other, scales=(1, -1))


def clip(context: Context, x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """The bounds are attributes before opset 11."""
    return activations.clip(context, x, min if low is None else low, max if high is None else high)


def top_k(
    context: Context, x: Any, count: Any = None, *, k: int = 1, axis: int = -1, largest: int = 1, sorted: int = 1
) -> Any:
    """The number is an attribute before opset 10."""
    number = k if count is None else int(constant(count).item())
    if number > 1 and not sorted:
        raise NoRuleError("sorted = 0 leaves the order open")
    ranks = range(value(x).shape[axis])
    return activations.order(context, x, axis, (ranks[::-1] if largest else ranks)[:number])


def scatter_elements(context: Context, x: Any, at: Any, updates: Any, *, axis: int = 0, reduction: str = "none") -> Any:
    index = constant(at).astype(int)
    grids = list(np.ogrid[tuple(map(slice, index.shape))])
    grids[axis] = index
    return _put(context, x, updates, tuple(grids), reduction)


def scatter_nd(context: Context, x: Any, at: Any, updates: Any, *, reduction: str = "none") -> Any:
    return _put(context, x, updates, tuple(np.moveaxis(constant(at).astype(int), -1, 0)), reduction)


def _put(context: Context, x: Any, updates: Any, index: Any, how: str) -> Any:
    if how == "none":
        return shapes.move(context)
    places = np.arange(prod(context.shape)).reshape(context.shape)[index]
    return shapes.put_at(context, x, updates, places, "sum" if how == "add" else how)


def thresholded_relu(context: Context, x: Any, *, alpha: float = 1.0) -> Any:
    return activations.threshold(context, x, alpha, 0.0)


def pad(
    context: Context,
    x: Any,
    pads_input: Any = None,
    value_input: Any = None,
    axes: Any = None,
    *,
    pads: Any = None,
    value: float = 0.0,
    mode: str = "constant",
) -> Any:
    numbers = constant(pads if pads_input is None else pads_input).astype(int)
    if mode != "constant" or (numbers >= 0).all():
        return shapes.move(context)
    sides = np.zeros((len(context.shape), 2), int)  # onnx.reference does not cut for negative numbers
    sides[slice(None) if axes is None else constant(axes).astype(int)] = numbers.reshape(2, -1).T
    return shapes.pad(context, sides, value if value_input is None else value_input)


def reduction(rule: Rule, **options: Any) -> Rule:
    def reduce(
        context: Context,
        x: Any,
        axes_input: Any = None,
        *,
        axes: Any = None,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Any:
        given = axes if axes_input is None else axes_input
        over = [] if given is None else constant(given).ravel().astype(int).tolist()
        every = [] if noop_with_empty_axes else range(len(value(x).shape))
        return rule(context, x, over or every, **options)

    return reduce


def global_pool(how: str) -> Rule:
    def pool(context: Context, x: Any) -> Any:
        return arithmetic.reduce(context, x, range(2, len(value(x).shape)), how)

    return pool


def global_lp_pool(context: Context, x: Any, *, p: float = 2) -> Any:
    return arithmetic.norm(context, x, range(2, len(value(x).shape)), p)


MOVING = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "Slice"),
    *("Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu"),
    *("Scatter", "CenterCropPad", "Compress", "MaxUnpool"),
)
NEVER_TRUE = ("IsNaN", "IsInf")  # of values that are surely finite
FOR_NUMBERS = (*NEVER_TRUE, "TopK")  # its comparators would spread infinities
WINDOW = {name: name for name in ("auto_pad", "dilations", "kernel_shape", "pads", "strides")}
# The rule of each operator; with the names of the attributes where the rule has others, None for those whose value does
# not matter.
RULES: dict[str, Rule | tuple[Rule, dict[str, str | None]]] = {
    **dict.fromkeys(MOVING, shapes.move),
    "Identity": shapes.copy,
    "Dropout": (copy, {"ratio": None, "seed": None}),
    "Cast": (shapes.copy, {"to": None, "saturate": None, "round_mode": None}),  # from float to float: others are kept
    "CastLike": (copy, {"saturate": None, "round_mode": None}),
    "Concat": concat,
    "ScatterElements": scatter_elements,
    "ScatterND": scatter_nd,
    "Pad": pad,
    # Arithmetic
    **dict.fromkeys(("Add", "Sum"), (arithmetic.add, {})),
    "Mean": arithmetic.average,
    "Sub": subtract,
    "Neg": arithmetic.negate,
    "Mul": arithmetic.multiply,
    "Div": arithmetic.divide,
    "Pow": (arithmetic.power, {}),
    "Where": arithmetic.where,
    "BatchNormalization": (arithmetic.batch_norm, {"epsilon": "eps", "momentum": None, "training_mode": None}),
    "MatMul": (arithmetic.matmul, {}),
    "Gemm": (
        arithmetic.gemm,
        {"alpha": "alpha", "beta": "beta", "transA": "transpose_x", "transB": "transpose_other"},
    ),
    "Einsum": arithmetic.einsum,
    **{f"Reduce{how.capitalize()}": reduction(arithmetic.reduce, how=how) for how in ("sum", "mean", "max", "min")},
    "ReduceL1": reduction(arithmetic.norm, order=1),
    "GlobalAveragePool": global_pool("mean"),
    "GlobalMaxPool": global_pool("max"),
    "GlobalLpPool": global_lp_pool,
    "CumSum": arithmetic.cumulate,
    "DFT": windows.dft,
    "STFT": windows.stft,
    # Over positions
    "Conv": (windows.conv, {**WINDOW, "group": "groups"}),
    "ConvTranspose": (
        windows.conv_transpose,
        {**WINDOW, "group": "groups", "output_padding": "output_padding", "output_shape": "output_shape"},
    ),
    "AveragePool": (
        windows.average_pool,
        {**WINDOW, "ceil_mode": None, "count_include_pad": "count_include_pad"},
    ),
    "LpPool": (windows.lp_pool, {**WINDOW, "ceil_mode": None, "p": "p"}),
    "MaxPool": (windows.max_pool, {**WINDOW, "ceil_mode": None, "storage_order": None}),
    **dict.fromkeys(("Resize", "Upsample"), windows.resize),
    "Col2Im": (windows.col2im, {name: name for name in ("dilations", "pads", "strides")}),
    "GridSample": windows.grid_sample,
    **dict.fromkeys(OTHERS, by_units),
    # Steps
    **{kind.capitalize(): activations.plain(kind) for kind in ("relu", "abs")},
    **{kind[:3].capitalize(): activations.extremum(kind) for kind in ("maximum", "minimum")},
    "LeakyRelu": (activations.leaky_relu, {"alpha": "slope"}),
    "PRelu": activations.leaky_relu,
    "Clip": clip,
    "Shrink": activations.shrink,
    "ThresholdedRelu": thresholded_relu,
    "TopK": top_k,
    "HardSigmoid": (activations.hard_sigmoid, {"alpha": "slope", "beta": "offset"}),
}


def find_rule(op_type: str) -> Rule | None:
    """The rule of an operator; None if there is none."""
    entry = RULES.get(op_type)
    if entry is None:
        return None
    rule, names = entry if isinstance(entry, tuple) else (entry, None)
    return functools.partial(_apply, rule, names)


def _apply(
    rule: Rule,
    names: Mapping[str, str | None] | None,
    context: Context,
    args: Sequence[Any],
    attributes: Mapping[str, Any],
) -> Any:
    """The result of a rule, if it takes all attributes and inputs."""
    parameters = inspect.signature(rule).parameters.values()
    if names is None and any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        names = {name: name for name in attributes}
    elif names is None:
        names = {parameter.name: parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    for name, attribute in attributes.items():
        if name not in names:
            raise NoRuleError(f"{name} = {attribute}")
    positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters) - 1
    if len(args) > positional and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        raise NoRuleError(f"it has {len(args)} inputs")
    taken = {name: attributes[given] for given, name in names.items() if name and given in attributes}
    return rule(context, *args, **taken)
