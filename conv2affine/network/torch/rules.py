"""One rule per ATen operator that is affine in what is not constant; whoever adds one adds one function here.

A rule takes a context and the operator's arguments by their names in its schema (`self` is `input`). A tensor that
depends on the network's inputs comes as a `Value`, all others as tensors. A rule may leave out arguments: then it is
used only where these have their defaults. It returns affine maps, or values of steps that it added to the graph; or it
raises `NoRuleError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.network.graph import Graph, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Selection
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.operands import Map, NoRuleError, broadcast, constant, masked, scaled, through, value
from conv2affine.network.rules.table import Table
from conv2affine.network.torch.operator import Operator

__all__ = ["RULES", "Context", "per_axis", "rule", "weight_of"]


@dataclass(frozen=True, eq=False)
class Context:
    """What a rule may know besides the arguments.

    Args:
        graph: Where steps are added.
        operator: The operator, with its arguments.
        inputs: Its inputs.
        shapes: Of its results.
        used: Which of its results are used.
        parameters: Where the numbers of the model's parameters lie.
        origin: Name of the module.
    """

    graph: Graph
    operator: Operator
    inputs: Sequence[Value]
    shapes: tuple[tuple[int, ...], ...]
    used: frozenset[int]
    parameters: frozenset[int]
    origin: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result; no other is used."""
        if self.used - {0}:
            raise NoRuleError
        return self.shapes[0]

    @property
    def name(self) -> str:
        """Of the operator, without its overload."""
        return str(self.operator.target.overloadpacket.__name__)

    @property
    def axes(self) -> int:
        """The number of axes that is in the name of the operator, as in avg_pool2d."""
        return int(self.name.removesuffix("_with_indices").removesuffix("_aa")[-2])

    def is_parameter(self, tensor: Tensor) -> bool:
        """Whether the numbers of a tensor are those of a parameter."""
        return tensor.untyped_storage().data_ptr() in self.parameters


RULES = Table()
rule = RULES.rule


def weight_of(argument: Any) -> Tensor:
    """A weight that must not depend on the inputs."""
    if not isinstance(argument, Tensor) or not argument.is_floating_point():
        raise NoRuleError
    return argument.detach().cpu()


@rule("add", "sub")
def add(context: Context, input: Any, other: Any, alpha: Any = 1) -> Map:
    sign = -1.0 if context.name == "sub" else 1.0
    shape = context.shape
    return broadcast(input, shape) + scaled(broadcast(other, shape), sign * float(alpha), shape)


@rule("neg")
def neg(context: Context, input: Any) -> Map:
    return through(input, rules.diagonal(-1, context.shape))


@rule("mul")
def mul(context: Context, input: Any, other: Any) -> Map:
    if not isinstance(input, Value):
        input, other = other, input
    return scaled(broadcast(value(input), context.shape), constant(other), context.shape)


@rule("div.Tensor")
def div(context: Context, input: Any, other: Any) -> Map:
    return scaled(broadcast(value(input), context.shape), 1 / constant(other), context.shape)


@rule("where")
def where(context: Context, condition: Any, input: Any, other: Any) -> Map:
    mask, shape = constant(condition), context.shape
    return masked(input, mask, shape) + masked(other, 1 - mask, shape)


@rule("clone", "alias", "_to_copy")
def clone(context: Context, input: Any, **options: Any) -> Map:
    return through(input, Selection(None, value(input).size))


@rule("convolution")
def convolution(
    context: Context,
    input: Any,
    weight: Any,
    bias: Any,
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    transposed: bool,
    output_padding: Sequence[int],
    groups: int,
) -> Map:
    samples, _, *input_size = value(input).shape
    weight = weight_of(weight)
    copied = context.is_parameter(weight)
    if samples != 1:  # part of the sample, not of the batch: one group of channels for each
        weight, copied = weight.repeat(samples, *(1 for _ in weight.shape[1:])), False
    axes = len(input_size)
    matrix = rules.convolution(
        weight,
        input_size,
        stride=per_axis(stride, axes),
        padding=[(side, side) for side in per_axis(padding, axes)],
        dilation=per_axis(dilation, axes),
        groups=groups * samples,
        transposed=transposed,
        output_padding=per_axis(output_padding, axes) if transposed else (0,) * axes,
        copied=copied,
    )
    if bias is None:
        return through(input, matrix)
    positions = prod(context.shape[2:])
    return through(input, matrix, np.tile(np.repeat(constant(bias), positions), samples))


@rule("_native_batch_norm_legit_no_training")
def batch_norm(
    context: Context,
    input: Any,
    weight: Any,
    bias: Any,
    running_mean: Any,
    running_var: Any,
    momentum: float,
    eps: float,
) -> Map:
    scale, offset = (None if part is None else constant(part) for part in (weight, bias))
    running = constant(running_mean), constant(running_var)
    return through(input, *rules.batch_norm(context.shape, scale, offset, *running, eps))


@rule("linear")
def linear(context: Context, input: Any, weight: Any, bias: Any = None) -> Map:
    product = matmul(context, input, weight_of(weight).mT)
    return product if bias is None else product + broadcast(bias, context.shape)


@rule("matmul", "mm", "bmm")
def matmul(context: Context, input: Any, other: Any = None, mat2: Any = None) -> Map:
    other = mat2 if other is None else other
    from_right = isinstance(input, Value)
    source, weight = (input, weight_of(other)) if from_right else (value(other), weight_of(input))
    shape = source.shape
    if not weight.numel():
        return AffineMap.constant(np.zeros(context.shape))
    if weight.dim() == 1:
        weight = weight[:, None] if from_right else weight[None]
    if len(shape) == 1:
        shape = (1, *shape) if from_right else (*shape, 1)
    if weight.dim() > len(shape) or np.broadcast_shapes(weight.shape[:-2], shape[:-2]) != shape[:-2]:
        raise NoRuleError  # the value is repeated for each matrix
    make = rules.matmul_right if from_right else rules.matmul_left
    return through(source, make(weight, shape, copied=context.is_parameter(weight)))


@rule("addmm")
def addmm(context: Context, input: Any, mat1: Any, mat2: Any, beta: Any = 1, alpha: Any = 1) -> Map:
    product = scaled(matmul(context, mat1, mat2), float(alpha), context.shape)
    return product + scaled(broadcast(input, context.shape), float(beta), context.shape)


@rule("_trilinear")
def bilinear(
    context: Context,
    i1: Any,
    i2: Any,
    i3: Any,
    expand1: Sequence[int],
    expand2: Sequence[int],
    expand3: Sequence[int],
    sumdim: Sequence[int],
) -> Map:
    if (expand1, expand2, expand3, sumdim) != ([1, 3], [0], [1, 2], [2, 3]):  # those of nn.Bilinear
        raise NoRuleError
    source, other, equation = (i1, i3, "oij,nj->nio") if isinstance(i1, Value) else (i3, i1, "oij,ni->njo")
    weight = torch.einsum(equation, weight_of(i2).double(), weight_of(other).double())
    rows, features = value(source).shape
    return through(source, rules.matmul_right(weight, (rows, 1, features), copied=False))


@rule("pow")
def power(context: Context, input: Any, exponent: Any) -> Map:
    if (constant(exponent) != 1).any():
        raise NoRuleError
    return broadcast(value(input), context.shape)


def per_axis(numbers: Any, axes: int) -> list[int]:
    """One number per axis, of as many or of one."""
    per: list[int] = [numbers] if isinstance(numbers, int) else list(numbers)
    return per * axes if len(per) == 1 else per
