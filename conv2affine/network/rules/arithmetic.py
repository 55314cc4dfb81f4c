"""Rules of arithmetic: what is affine in the operand that is not constant, products, and reductions."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from math import prod
from string import ascii_letters
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Sparse
from conv2affine.network.rules import formulas, masks, windows
from conv2affine.network.rules.moves import follow
from conv2affine.network.rules.operands import (
    Context,
    Map,
    NoRuleError,
    broadcast,
    check_numbers,
    constant,
    magnitudes,
    masked,
    scaled,
    step,
    through,
    value,
    weight,
)

__all__ = [
    "add",
    "average",
    "batch_norm",
    "cumulate",
    "divide",
    "einsum",
    "gemm",
    "matmul",
    "multiply",
    "negate",
    "norm",
    "power",
    "reduce",
    "solve",
    "sparse_matmul",
    "where",
]

# Elements of all unit vectors, or of the results for them.
MAX_EINSUM = 2**24


def add(context: Context, *terms: Any, scales: Sequence[float] | None = None) -> Map:
    """The sum of all terms, each times its scale."""
    shape = context.shape
    scales = scales or (1,) * len(terms)
    parts = [scaled(broadcast(term, shape), scale, shape) for term, scale in zip(terms, scales, strict=True)]
    return masks.join_jumps(context, functools.reduce(operator.add, parts))


def average(context: Context, *terms: Any) -> Map:
    """The mean of all terms."""
    return scaled(add(context, *terms), 1 / len(terms), context.shape)


def negate(context: Context, x: Any) -> Map:
    """The map -x."""
    return through(x, formulas.diagonal(-1, context.shape))


def multiply(context: Context, x: Any, other: Any) -> Map:
    """The product of a value and a constant, or of a value and a mask."""
    if isinstance(x, Value) and isinstance(other, Value):
        return masks.multiply(context, x, other)
    if not isinstance(x, Value):
        x, other = other, x
    return scaled(broadcast(value(x), context.shape), constant(other), context.shape)


def divide(context: Context, x: Any, other: Any) -> Map:
    """The quotient of a value and a constant."""
    return scaled(broadcast(value(x), context.shape), 1 / constant(other), context.shape)


def power(context: Context, x: Any, exponent: Any) -> Map:
    """The value itself, if the exponent is 1."""
    if (constant(exponent) != 1).any():
        raise NoRuleError
    return broadcast(value(x), context.shape)


def where(context: Context, condition: Any, x: Any, other: Any) -> Map:
    """Elements of x where the condition holds; else those of the other."""
    if isinstance(condition, Value):
        return masks.where(context, condition, x, other)
    mask, shape = constant(condition), context.shape
    return masked(x, mask, shape) + masked(other, 1 - mask, shape)


def batch_norm(context: Context, x: Any, weight: Any, bias: Any, mean: Any, variance: Any, *, eps: float = 1e-5) -> Map:
    """The map (x - mean) / sqrt(variance + eps) * weight + bias for each channel."""
    scale, offset = (None if part is None else constant(part) for part in (weight, bias))
    return through(x, *formulas.batch_norm(context.shape, scale, offset, constant(mean), constant(variance), eps))


def matmul(context: Context, x: Any, other: Any, *, transpose_x: bool = False, transpose_other: bool = False) -> Map:
    """The product of a value and a constant, of a constant and a value, or of two constants."""
    if isinstance(x, Tensor) and x.layout is not torch.strided:
        x = x.detach().cpu().to_sparse_csr()
        return sparse_matmul(context, x.values(), x.crow_indices(), x.col_indices(), other)
    if not isinstance(x, Value) and not isinstance(other, Value):
        first, second = (
            array.T if flip else array
            for array, flip in ((constant(x), transpose_x), (constant(other), transpose_other))
        )
        return AffineMap.constant(first @ second)
    from_right = isinstance(x, Value)
    source, factor = (value(x), other) if from_right else (value(other), x)
    flip_source, flip_factor = (transpose_x, transpose_other) if from_right else (transpose_other, transpose_x)
    (matrix, copied), shape, map = weight(context, factor), source.shape, AffineMap.identity(source, source.size)
    if not matrix.numel():
        return AffineMap.constant(np.zeros(context.shape))
    if flip_source:
        [(map, shape)] = follow(np.transpose, [source])
    if matrix.dim() == 1:
        matrix = matrix[:, None] if from_right else matrix[None]
    elif flip_factor:
        matrix = matrix.mT
    if len(shape) == 1:
        shape = (1, *shape) if from_right else (*shape, 1)
    batch = np.broadcast_shapes(matrix.shape[:-2], shape[:-2])
    if batch != tuple(shape[:-2]):  # the value is repeated for each matrix
        check_numbers(prod(batch) * prod(shape[-2:]))
        numbers = np.broadcast_to(np.arange(prod(shape)).reshape(shape), (*batch, *shape[-2:]))
        map, shape = map.at(numbers.ravel()), numbers.shape
    make = formulas.matmul_right if from_right else formulas.matmul_left
    return map.then(make(matrix, shape, copied=copied))


def sparse_matmul(context: Context, values: Any, starts: Any, columns: Any, other: Any) -> Map:
    """The product of a constant CSR matrix and a value (its columns, samples)."""
    size, samples = value(other).shape
    numbers, copied = weight(context, values)
    parts = tuple(np.asarray(part.cpu()) for part in (numbers.double(), columns, starts))
    matrix = csr_array(parts, shape=(len(parts[2]) - 1, size))
    if samples > 1:
        check_numbers(matrix.nnz * samples)
    return through(other, formulas.sparse_left(matrix, samples, copied=copied))


def solve(context: Context, function: Callable[[Tensor, Tensor], Tensor], matrix: Any, other: Any, left: bool) -> Map:
    """The solution of a linear system of one constant matrix: a product with what the unit vectors become."""
    if not isinstance(matrix, Tensor) or matrix.dim() != 2:
        raise NoRuleError("its matrix is not one constant")
    inverse = function(matrix.detach().double(), torch.eye(len(matrix), dtype=torch.float64, device=matrix.device))
    return matmul(context, inverse, other) if left else matmul(context, other, inverse)


def gemm(
    context: Context,
    x: Any,
    other: Any,
    offset: Any = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transpose_x: bool = False,
    transpose_other: bool = False,
) -> Map:
    """The map alpha * x @ other + beta * offset."""
    product = matmul(context, x, other, transpose_x=transpose_x, transpose_other=transpose_other)
    product = scaled(product, alpha, context.shape)
    return product if offset is None else product + scaled(broadcast(offset, context.shape), beta, context.shape)


def einsum(context: Context, *operands: Any, equation: str) -> Map:
    """The matrix of an equation, from the unit vectors of its one operand that is not constant."""
    moved = [number for number, operand in enumerate(operands) if isinstance(operand, Value)]
    if len(moved) != 1:
        raise NoRuleError("it multiplies values")
    [number] = moved
    shape = operands[number].shape
    size = prod(shape)
    if size * max(size, prod(context.shape)) > MAX_EINSUM:
        raise NoRuleError(f"{prod(context.shape)} results of {size} elements are too many to compute")
    terms, arrow, result = equation.replace(" ", "").partition("->")
    if not arrow:
        once = sorted(letter for letter in set(terms) if letter.isalpha() and terms.count(letter) == 1)
        result = "".join(["..." if "..." in terms else "", *once])
    unit = next(letter for letter in ascii_letters if letter not in equation)
    inputs = terms.split(",")
    inputs[number] = unit + inputs[number]
    units = torch.eye(size, dtype=torch.float64).view(size, *shape)
    arrays = [units if isinstance(operand, Value) else weight(context, operand)[0].double() for operand in operands]
    columns = torch.einsum(f"{','.join(inputs)}->{unit}{result}", *arrays).reshape(size, -1)
    return through(operands[number], Sparse(csr_array(columns.numpy().T)))


def reduce(context: Context, x: Any, axes: Sequence[int], how: str) -> Map | Value:
    """The "sum", "mean", "max" or "min" over axes."""
    shape = value(x).shape
    if how != "sum" and not all(shape[axis] for axis in axes):
        raise NoRuleError(f"it is the {how} of no elements")
    if how in ("sum", "mean"):
        return through(x, formulas.reduce(shape, axes, mean=how == "mean"))
    over = windows.reduce_windows(shape, axes)
    return step(context, f"window_{how}", value(x), call=context.call, windows=over)


def norm(context: Context, x: Any, axes: Sequence[int], order: float) -> Map | Value:
    """The sum, the largest or the smallest of the absolute values over axes, for the order 1, inf or -inf."""
    how = {1: "sum", np.inf: "max", -np.inf: "min"}.get(order)
    if how is None:
        raise NoRuleError(f"its order is {order:g}, and not 1, inf or -inf")
    return reduce(context, magnitudes(context, x), axes, how)


def cumulate(context: Context, x: Any, axis: Any, *, exclusive: bool = False, reverse: bool = False) -> Map:
    """The sums of the elements up to each one along an axis."""
    shape = value(x).shape
    axis = int(constant(axis).item()) % len(shape)
    check_numbers(sum(size**2 for size in shape))
    line = np.tril(np.ones((shape[axis],) * 2), -1 if exclusive else 0)
    axes = [(line.T if reverse else line) if number == axis else np.eye(size) for number, size in enumerate(shape)]
    return through(x, formulas.separable(1, axes))
