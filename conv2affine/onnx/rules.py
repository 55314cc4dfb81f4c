"""The rules of ONNX operators: their inputs and attributes, read into the neutral arguments of `network.rules`.

A rule takes a context, the operator's inputs in their order, and its attributes by name as keywords. An attribute or an
input that a rule does not take is no mistake of the file: the operator has no rule then.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from conv2affine.network.rules import activations, arithmetic, shapes
from conv2affine.network.rules.operands import Context, NoRuleError, Rule, constant, value
from conv2affine.onnx import windows

__all__ = ["RULES", "find_rule"]


def cast(context: Context, x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Any:
    return shapes.copy(context, x)  # from float to float: other casts are kept


def identity(context: Context, x: Any, *other: Any, ratio: float = 0.5, seed: int = 0) -> Any:
    return shapes.copy(context, x)


def concat(context: Context, *parts: Any, axis: int) -> Any:
    return shapes.concat(context, parts, axis)


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
    sides = np.zeros((len(context.shape), 2), int)  # onnx.reference does not know that negative numbers cut
    sides[slice(None) if axes is None else constant(axes).astype(int)] = numbers.reshape(2, -1).T
    return shapes.pad(context, sides, value if value_input is None else value_input)


def subtract(context: Context, x: Any, other: Any) -> Any:
    return arithmetic.add(context, x, other, scales=(1, -1))


def add(context: Context, *terms: Any) -> Any:
    return arithmetic.add(context, *terms)


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
) -> Any:
    return arithmetic.batch_norm(context, x, scale, b, mean, var, eps=epsilon)


def matmul(context: Context, x: Any, other: Any) -> Any:
    return arithmetic.matmul(context, x, other)


def gemm(
    context: Context,
    x: Any,
    other: Any,
    offset: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Any:
    transposed = {"transpose_x": bool(transA), "transpose_other": bool(transB)}
    return arithmetic.gemm(context, x, other, offset, alpha=alpha, beta=beta, **transposed)


def reduction(how: str) -> Rule:
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
        return arithmetic.reduce(context, x, over or every, how)

    return reduce


def global_pool(how: str) -> Rule:
    def pool(context: Context, x: Any) -> Any:
        return arithmetic.reduce(context, x, range(2, len(value(x).shape)), how)

    return pool


def cumulate(context: Context, x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Any:
    [number] = constant(axis).astype(int).ravel().tolist()
    return arithmetic.cumulate(context, x, number, exclusive=bool(exclusive), reverse=bool(reverse))


def leaky_relu(context: Context, x: Any, *, alpha: float = 0.01) -> Any:
    return activations.leaky_relu(context, x, alpha)


def hard_sigmoid(context: Context, x: Any, *, alpha: float = 0.2, beta: float = 0.5) -> Any:
    return activations.hard_sigmoid(context, x, alpha, beta)


def clip(context: Context, x: Any, low: Any = None, high: Any = None, *, min: Any = None, max: Any = None) -> Any:
    """The bounds are attributes before opset 11."""
    return activations.clip(context, x, min if low is None else low, max if high is None else high)


MOVING = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "Slice"),
    *("Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu"),
    *("ScatterElements", "ScatterND", "Scatter", "CenterCropPad"),
)
RULES: dict[str, Rule] = {
    **dict.fromkeys(MOVING, shapes.move),
    **dict.fromkeys(("Identity", "Dropout"), identity),
    "Cast": cast,
    "Concat": concat,
    "Pad": pad,
    # Arithmetic
    **dict.fromkeys(("Add", "Sum"), add),
    "Mean": arithmetic.average,
    "Sub": subtract,
    "Neg": arithmetic.negate,
    "Mul": arithmetic.multiply,
    "Div": arithmetic.divide,
    "Where": arithmetic.where,
    "BatchNormalization": batch_norm,
    "MatMul": matmul,
    "Gemm": gemm,
    "Einsum": arithmetic.einsum,
    **{f"Reduce{how.capitalize()}": reduction(how) for how in ("sum", "mean", "max", "min")},
    "GlobalAveragePool": global_pool("mean"),
    "GlobalMaxPool": global_pool("max"),
    "CumSum": cumulate,
    # Over positions
    "Conv": windows.conv,
    "ConvTranspose": windows.conv_transpose,
    "AveragePool": windows.average_pool,
    "MaxPool": windows.max_pool,
    **dict.fromkeys(("Resize", "Upsample"), windows.resize),
    # Steps
    **{kind.capitalize(): activations.plain(kind) for kind in ("relu", "abs")},
    **{kind[:3].capitalize(): activations.extremum(kind) for kind in ("maximum", "minimum")},
    "LeakyRelu": leaky_relu,
    "PRelu": activations.leaky_relu,
    "Clip": clip,
    "HardSigmoid": hard_sigmoid,
}


def find_rule(op_type: str) -> Rule | None:
    """The rule of an operator; None if there is none."""
    rule = RULES.get(op_type)
    return rule and functools.partial(_apply, rule)


def _apply(rule: Rule, context: Context, args: Sequence[Any], attributes: Mapping[str, Any]) -> Any:
    """The result of a rule, if it takes all attributes and inputs."""
    parameters = inspect.signature(rule).parameters.values()
    named = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    if not any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        for name, attribute in attributes.items():
            if name not in named:
                raise NoRuleError(f"{name} = {attribute}")
    positional = sum(parameter.kind is parameter.POSITIONAL_OR_KEYWORD for parameter in parameters) - 1
    if len(args) > positional and not any(parameter.kind is parameter.VAR_POSITIONAL for parameter in parameters):
        raise NoRuleError(f"it has {len(args)} inputs")
    return rule(context, *args, **attributes)
