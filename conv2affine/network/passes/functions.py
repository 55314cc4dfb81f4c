"""Rules of operators that are not piecewise linear: what they are in terms of elementary functions.

softmax(x) = e / sum(e),  e = exp(x - max(x))        norm(x) = d / sqrt(mean(d d) + eps),  d = x - mean(x)
gelu(x) = x (1 + erf(x / sqrt(2))) / 2               elu(x) = relu(x) + alpha (exp(-relu(-x)) - 1)
a / b = a (1 / b),  x**2 = x x                       hardswish(x) = x clip(x / 6 + 1 / 2, 0, 1)

A rule takes a `Writer`, the arguments of the operator in order, and its options by name, as PyTorch or ONNX have them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import pi, prod, sqrt
from typing import Any

import numpy as np
import torch

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.rules import formulas
from conv2affine.network.rules.moves import follow
from conv2affine.network.rules.operands import Map, NoRuleError, broadcast, constant, scaled, through, value
from conv2affine.network.rules.windows import reduce_windows

SELU = 1.6732632423543772, 1.0507009873554805


def _function(name: str) -> Callable[..., Value]:
    def rule(writer: Any, x: Any) -> Any:
        return writer.call(name, value(x))

    return rule


def _number(x: Any) -> float:
    array = constant(x)
    if array.size != 1:
        raise NoRuleError
    return float(array.item())


def _minus(first: Value, second: Value) -> Map:
    """The difference, broadcast to the shape of the first."""
    return broadcast(first, first.shape) + scaled(broadcast(second, first.shape), -1, first.shape)


def _total(writer: Any, x: Value, axes: Sequence[int], *, mean: bool = False) -> Any:
    return writer.piece(through(x, formulas.reduce(x.shape, axes, mean=mean)), _reduced(x, axes))


def _reduced(x: Value, axes: Sequence[int]) -> tuple[int, ...]:
    return tuple(1 if axis in axes else size for axis, size in enumerate(x.shape))


def multiply(writer: Any, x: Any, other: Any) -> Any:
    return writer.times(value(x), value(other))


def divide(writer: Any, x: Any, other: Any) -> Any:
    inverse = writer.call("reciprocal", value(other))
    if isinstance(x, Value):
        return writer.times(x, inverse)
    return scaled(broadcast(inverse, writer.shape), constant(x), writer.shape)


def power(writer: Any, x: Any, exponent: Any) -> Any:
    x, number = value(x), _number(exponent)
    if number in (2, 3):
        square = writer.call("mul", x, x)
        return square if number == 2 else writer.call("mul", square, x)
    if number == -1:
        return writer.call("reciprocal", x)
    if abs(number) != 0.5:
        raise NoRuleError
    root = writer.call("sqrt", x)
    return root if number > 0 else writer.call("reciprocal", root)


def matmul(writer: Any, x: Any, other: Any, shape: Any = None) -> Any:
    x, other = value(x), value(other)
    if min(len(x.shape), len(other.shape)) < 2 or x.shape[:-2] != other.shape[:-2]:
        raise NoRuleError
    shapes = tuple((prod(each.shape[:-2]), *each.shape[-2:]) for each in (x, other))
    return writer.call("matmul", x, other, shapes=shapes, shape=shape or writer.shape)


def attention(writer: Any, q: Any, k: Any, v: Any, mask: Any = None, dropout: float = 0.0, causal: bool = False,
    *, scale: Any = None, enable_gqa: bool = False) -> Any:  # fmt: skip
    """The product softmax(scale q k.T + mask) v."""
    if dropout or causal or enable_gqa or (isinstance(mask, torch.Tensor) and not mask.is_floating_point()):
        raise NoRuleError
    [(map, shape)] = follow(lambda x: np.swapaxes(x, -1, -2), [value(k)])
    scores = matmul(writer, q, writer.piece(map, shape), (*q.shape[:-1], shape[-1]))
    scores = writer.line(
        scores, 1 / sqrt(q.shape[-1]) if scale is None else scale, 0.0 if mask is None else constant(mask)
    )
    return matmul(writer, _softmax(writer, scores, [len(scores.shape) - 1]), v)


def softmax(writer: Any, x: Any, axis: int | None = None, half_to_float: bool = False) -> Any:
    return _softmax(writer, value(x), _axes(writer, x, axis))


def log_softmax(writer: Any, x: Any, axis: int | None = None, half_to_float: bool = False) -> Map:
    axes = _axes(writer, x, axis)
    difference = _shifted(writer, value(x), axes)
    return _minus(difference, writer.call("log", _total(writer, writer.call("exp", difference), axes)))


def _axes(writer: Any, x: Value, axis: int | None) -> Sequence[int]:
    """The axes of a softmax: of ONNX before opset 13 all from one on, else one."""
    axes = len(x.shape)
    if getattr(writer.node.call, "opset", 13) < 13:
        return range((1 if axis is None else axis) % axes, axes)
    return [(-1 if axis is None else axis) % axes]


def _softmax(writer: Any, x: Value, axes: Sequence[int]) -> Any:
    e = writer.call("exp", _shifted(writer, x, axes))
    return writer.times(e, writer.call("reciprocal", _total(writer, e, axes)), x.shape)


def _shifted(writer: Any, x: Value, axes: Sequence[int]) -> Any:
    """The difference x - max(x)."""
    top = writer.step("window_max", x, _reduced(x, axes), windows=reduce_windows(x.shape, axes))
    return writer.piece(_minus(x, top), x.shape)


def layer_norm(writer: Any, x: Any, shape: Sequence[int], weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enable: bool = True) -> Map:  # fmt: skip
    return _norm(writer, value(x), x.size // prod(shape), weight, bias, eps)


def onnx_layer_norm(writer: Any, x: Any, weight: Any, bias: Any = None, *, axis: int = -1, epsilon: float = 1e-5,
    stash_type: int = 1) -> Map:  # fmt: skip
    return _norm(writer, value(x), prod(x.shape[:axis]), weight, bias, epsilon)


def group_norm(writer: Any, x: Any, groups: int, weight: Any = None, bias: Any = None, eps: float = 1e-5,
    cudnn_enabled: bool = True) -> Map:  # fmt: skip
    weight, bias = (
        None if part is None else constant(part).reshape(1, -1, *(1 for _ in value(x).shape[2:]))
        for part in (weight, bias)
    )
    return _norm(writer, x, x.shape[0] * groups, weight, bias, eps)


def instance_norm(writer: Any, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, use_input_stats: bool,
    momentum: float, eps: float, cudnn_enabled: bool = True) -> Map:  # fmt: skip
    if not use_input_stats:
        raise NoRuleError
    return group_norm(writer, x, value(x).shape[1], weight, bias, eps)


def onnx_instance_norm(writer: Any, x: Any, weight: Any, bias: Any, *, epsilon: float = 1e-5) -> Map:
    return group_norm(writer, x, value(x).shape[1], weight, bias, epsilon)


def _norm(writer: Any, x: Value, rows: int, weight: Any, bias: Any, eps: float) -> Map:
    """Rows, one after the other, each with mean 0 and variance 1; then each element times a weight, and a bias."""
    x = writer.piece(AffineMap.identity(x, x.size), (rows, x.size // rows))
    d = writer.piece(_minus(x, _total(writer, x, [1], mean=True)), x.shape)
    variance = _total(writer, writer.call("mul", d, d), [1], mean=True)
    root = writer.call("sqrt", writer.line(variance, 1, eps))
    y = writer.times(d, writer.call("reciprocal", root), d.shape)
    scale, offset = (
        np.broadcast_to(number if part is None else constant(part), writer.shape).ravel()
        for part, number in ((weight, 1.0), (bias, 0.0))
    )
    return through(y, formulas.diagonal(scale, (y.size,)), offset)


def gelu(writer: Any, x: Any, *, approximate: Any = "none") -> Any:
    x = value(x)
    if approximate in ("none", b"none"):
        gate = writer.call("erf", writer.line(x, 1 / sqrt(2)))
    else:
        cube = power(writer, x, 3)
        inner = scaled(through(x, formulas.diagonal(1, x.shape)), sqrt(2 / pi), x.shape)
        gate = writer.call(
            "tanh", writer.piece(inner + scaled(broadcast(cube, x.shape), 0.044715 * sqrt(2 / pi), x.shape), x.shape)
        )
    return writer.times(x, writer.line(gate, 0.5, 0.5))


def silu(writer: Any, x: Any, *, alpha: float = 1.0) -> Any:
    return writer.times(value(x), writer.call("sigmoid", writer.line(x, alpha)))


def hardswish(writer: Any, x: Any) -> Any:
    inner = writer.line(value(x), 1 / 6, 0.5)
    return writer.times(x, writer.step("clip", inner, low=np.float64(0), high=np.float64(1)))


def softplus(writer: Any, x: Any, beta: float = 1, threshold: float = 20) -> Any:
    """PyTorch leaves out what rounds away in float32 beyond a threshold of 20."""
    if threshold < 20 or (writer.dtype is torch.float64 and writer.node.kind == "softplus"):
        raise NoRuleError
    return writer.line(writer.call("softplus", writer.line(value(x), beta)), 1 / beta)


def mish(writer: Any, x: Any) -> Any:
    return writer.times(value(x), writer.call("tanh", softplus(writer, x)))


def elu(writer: Any, x: Any, alpha: float = 1.0, scale: float = 1.0, slope: float = 1.0) -> Map:
    """The map scale * (relu(x) + alpha * (exp(-relu(-slope * x)) - 1))."""
    if slope <= 0:  # celu with alpha < 0
        raise NoRuleError
    positive, negative = writer.step("relu", value(x)), writer.step("relu", writer.line(x, -slope))
    exponential = writer.call("exp", writer.line(negative, -1))
    curved = scaled(broadcast(exponential, x.shape), alpha * scale, x.shape)
    straight = scaled(broadcast(positive, x.shape), scale, x.shape)
    return straight + curved + AffineMap.constant(np.full(x.size, -alpha * scale))


def selu(writer: Any, x: Any, *, alpha: float = SELU[0], gamma: float = SELU[1]) -> Map:
    return elu(writer, x, alpha, gamma)


def celu(writer: Any, x: Any, alpha: float = 1.0) -> Map:
    return elu(writer, x, alpha, 1.0, 1 / alpha)


UNARY = (
    *("ceil", "cos", "cosh", "exp", "floor", "log", "reciprocal", "sign", "sin", "sinh", "sqrt", "tan", "tanh"),
    *("acos", "asin", "atan", "erf", "sigmoid"),
)
SAME: dict[str, Callable[..., Any]] = {"mul": multiply, "div": divide, "pow": power}
SAME |= {rule.__name__: rule for rule in (gelu, softplus, mish, elu, selu, celu, softmax)}
# By the names of ATen and ONNX operators.
RULES: dict[str, Callable[..., Any]] = {
    **{name: _function(name) for name in UNARY},
    **{name.capitalize(): _function(name) for name in UNARY},
    **SAME,
    **{name.capitalize(): rule for name, rule in SAME.items()},
    "_softmax": softmax,
    **dict.fromkeys(("log_softmax", "_log_softmax", "LogSoftmax"), log_softmax),
    **dict.fromkeys(("matmul", "bmm", "MatMul"), matmul),
    **dict.fromkeys(("hardswish", "HardSwish"), hardswish),
    **dict.fromkeys(("silu", "Swish"), silu),
    "rsqrt": lambda writer, x: power(writer, x, -0.5),
    "scaled_dot_product_attention": attention,
    **dict.fromkeys(("layer_norm", "native_layer_norm"), layer_norm),
    "LayerNormalization": onnx_layer_norm,
    "group_norm": group_norm,
    "instance_norm": instance_norm,
    "InstanceNormalization": onnx_instance_norm,
}
