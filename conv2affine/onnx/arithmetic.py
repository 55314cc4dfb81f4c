"""Rules of the operators that are affine in what is not constant, or only move elements."""

from __future__ import annotations

from math import prod
from string import ascii_letters
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Sparse
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.moves import concatenate, follow
from conv2affine.network.rules.operands import Map, NoRuleError, broadcast, constant, masked, scaled, through, value
from conv2affine.network.rules.table import Table
from conv2affine.onnx.rules import Context, reduced_axes, tensor

__all__ = ["RULES"]

RULES = Table()
rule = RULES.rule

# Elements of all unit vectors, or of the results for them.
MAX_EINSUM = 2**24


@rule("Add", "Sum")
def add(context: Context, *terms: Any) -> Map:
    total = broadcast(terms[0], context.shape)
    for term in terms[1:]:
        total += broadcast(term, context.shape)
    return total


@rule("Mean")
def mean(context: Context, *terms: Any) -> Map:
    return scaled(add(context, *terms), 1 / len(terms), context.shape)


@rule("Sub")
def sub(context: Context, a: Any, b: Any) -> Map:
    return broadcast(a, context.shape) + scaled(broadcast(b, context.shape), -1, context.shape)


@rule("Neg")
def neg(context: Context, x: Any) -> Map:
    return through(x, rules.diagonal(-1, context.shape))


@rule("Mul")
def mul(context: Context, a: Any, b: Any) -> Map:
    if not isinstance(a, Value):
        a, b = b, a
    return scaled(broadcast(value(a), context.shape), constant(b), context.shape)


@rule("Div")
def div(context: Context, a: Any, b: Any) -> Map:
    return scaled(broadcast(value(a), context.shape), 1 / constant(b), context.shape)


@rule("Where")
def where(context: Context, condition: Any, a: Any, b: Any) -> Map:
    mask = constant(condition)
    return masked(a, mask, context.shape) + masked(b, 1 - mask, context.shape)


@rule("Cast")
def cast(context: Context, x: Any, *, to: int, saturate: int = 1, round_mode: str = "up") -> Map:
    return broadcast(value(x), context.shape)  # from float to float: other casts are kept


@rule("Identity", "Dropout")
def identity(context: Context, x: Any, *other: Any, ratio: float = 0.5, seed: int = 0) -> Map:
    return broadcast(value(x), context.shape)


@rule("BatchNormalization")
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
) -> Map:
    scale, b, mean, var = (constant(part) for part in (scale, b, mean, var))
    matrix, bias = rules.batch_norm(context.shape, scale, b, mean, var, epsilon)
    if not np.isfinite(bias).all():
        raise NoRuleError("its variance must be positive")
    return through(x, matrix, bias)


@rule("MatMul")
def matmul(context: Context, a: Any, b: Any) -> Map:
    return _product(context, a, b)


@rule("Gemm")
def gemm(
    context: Context,
    a: Any,
    b: Any,
    c: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803
    transB: int = 0,  # noqa: N803
) -> Map:
    product = scaled(_product(context, a, b, bool(transA), bool(transB)), alpha, context.shape)
    return product if c is None else product + scaled(broadcast(c, context.shape), beta, context.shape)


def _product(context: Context, a: Any, b: Any, transpose_a: bool = False, transpose_b: bool = False) -> Map:
    """The product of a value and a constant, of a constant and a value, or of two constants."""
    if not isinstance(a, Value) and not isinstance(b, Value):
        first, second = (
            constant(array).T if flip else constant(array) for array, flip in ((a, transpose_a), (b, transpose_b))
        )
        return AffineMap.constant(first @ second)
    from_right = isinstance(a, Value)
    source, other = (value(a), b) if from_right else (value(b), a)
    flip_source, flip_weight = (transpose_a, transpose_b) if from_right else (transpose_b, transpose_a)
    weight, shape, map = tensor(other), source.shape, AffineMap.identity(source, source.size)
    if flip_source:
        [(map, shape)] = follow(np.transpose, [source])
    if weight.dim() == 1:
        weight = weight[:, None] if from_right else weight[None]
    elif flip_weight:
        weight = weight.mT
    if len(shape) == 1:
        shape = (1, *shape) if from_right else (*shape, 1)
    if weight.dim() > len(shape) or np.broadcast_shapes(weight.shape[:-2], shape[:-2]) != tuple(shape[:-2]):
        raise NoRuleError("the value is repeated for each matrix")
    make = rules.matmul_right if from_right else rules.matmul_left
    return map.then(make(weight, shape, copied=context.is_copied(other)))


@rule("Einsum")
def einsum(context: Context, *operands: Any, equation: str) -> Map:
    """What the equation makes of the unit vectors of its one operand that is not constant."""
    moved = [number for number, operand in enumerate(operands) if isinstance(operand, Value)]
    if len(moved) != 1:
        raise NoRuleError("it multiplies values")
    [number] = moved
    shape = operands[number].shape
    size = prod(shape)
    if size * max(size, prod(context.shape)) > MAX_EINSUM:
        raise NoRuleError(f"{prod(context.shape)} results of {size} elements are too many to try each")
    terms, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(letter for letter in set(terms) if letter.isalpha() and terms.count(letter) == 1)
        result = "".join(["..." if "..." in terms else "", *once])
    unit = next(letter for letter in ascii_letters if letter not in equation)
    inputs = terms.split(",")
    inputs[number] = unit + inputs[number]
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    arrays = [units if isinstance(operand, Value) else tensor(operand).double() for operand in operands]
    columns = torch.einsum(f"{','.join(inputs)}->{unit}{result}", *arrays).reshape(size, -1)
    return through(operands[number], Sparse(csr_array(columns.numpy().T)))


@rule("GlobalAveragePool")
def global_average_pool(context: Context, x: Any) -> Map:
    shape = value(x).shape
    return through(x, rules.reduce(shape, range(2, len(shape)), mean=True))


@rule("ReduceMean", "ReduceSum")
def reduce(
    context: Context,
    x: Any,
    axes_input: Any = None,
    *,
    axes: Any = None,
    keepdims: int = 1,
    noop_with_empty_axes: int = 0,
) -> Map:
    shape = value(x).shape
    over = reduced_axes(x, axes if axes_input is None else axes_input, noop_with_empty_axes)
    return through(x, rules.reduce(shape, over, mean=context.operator.op_type == "ReduceMean"))


@rule("CumSum")
def cumsum(context: Context, x: Any, axis: Any, *, exclusive: int = 0, reverse: int = 0) -> Map:
    shape = value(x).shape
    [number] = constant(axis).astype(int).ravel() % len(shape)
    line = np.tril(np.ones((shape[number],) * 2), -1 if exclusive else 0)
    axes = [(line.T if reverse else line) if n == number else np.eye(size) for n, size in enumerate(shape)]
    return through(x, rules.separable(1, axes))


# Operators that only move elements: run on the numbers of the elements.
MOVING = (
    *("Reshape", "Flatten", "Transpose", "Squeeze", "Unsqueeze", "Expand", "Tile", "Split", "Slice"),
    *("Gather", "GatherElements", "GatherND", "DepthToSpace", "SpaceToDepth", "ReverseSequence", "Trilu"),
    *("ScatterElements", "ScatterND", "Scatter", "CenterCropPad"),
)


@rule(*MOVING)
def moving(context: Context, *args: Any, **attributes: Any) -> Any:
    try:
        return follow(lambda *arrays: context.operator.run(arrays, double=True), context.inputs)
    except Exception as error:  # that it does more than to move, or whatever onnx.reference trips over
        raise NoRuleError(str(error)) from error


@rule("Concat")
def concat(context: Context, *args: Any, axis: int) -> Any:
    return concatenate(args, context.shape, axis) or moving(context)


@rule("Pad")
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
    """As it moves elements; negative numbers cut them off, which onnx.reference does not know."""
    numbers = constant(pads if pads_input is None else pads_input).astype(int)
    if mode != "constant" or (numbers >= 0).all():
        return moving(context)
    fill = value if value_input is None else constant(value_input)
    sides = np.zeros((len(context.shape), 2), int)
    sides[slice(None) if axes is None else constant(axes).astype(int)] = numbers.reshape(2, -1).T

    def run(array: Any) -> Any:
        kept = array[tuple(slice(max(0, -a), n - max(0, -b)) for n, (a, b) in zip(array.shape, sides, strict=True))]
        return np.pad(kept, sides.clip(0), constant_values=fill)

    [(map, shape)] = follow(run, context.inputs)
    if shape != context.shape:
        raise NoRuleError(f"pads = {numbers.tolist()}")
    return map
