"""What rules are written with: the context of an operator, its arguments, constant or not, and steps.

A rule takes a context, the operands of the operator, and all else that it needs by neutral names. An operand that
depends on the network's inputs is a `Value`; any other is an array, a tensor or a number; None if it is left out. It
returns an affine map, or the value of a step that it added to the graph, or a map and a shape for each result. Where it
does not cover the operator with these arguments, it raises `NoRuleError`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import dataclass
from math import isfinite, prod, sqrt
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.network.graph import Graph, Piece, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.rules.formulas import diagonal
from conv2affine.network.rules.moves import follow

Map = AffineMap[Value]
Rule = Callable[..., Any]
# The only infinite parameters of steps that have a meaning: no bound.
UNBOUNDED = {"low": -np.inf, "high": np.inf}
# What a rule may write out: its windows, the numbers of its elements, a matrix along an axis.
MAX_NUMBERS = 2**24
# x - low is off by roundings of low. Up to here that is no more than a few roundings of an x of about 1.
LARGE_BOUND = 8.0


class NoRuleError(Exception):
    """The operator, or the operator with these arguments, has no rule; the message says why."""


def check_numbers(count: int) -> None:
    """Raise NoRuleError, so that the operator is kept, if a rule needs more than `MAX_NUMBERS` numbers at once."""
    if count > MAX_NUMBERS:
        raise NoRuleError(f"its rule would take {count} numbers, more than {MAX_NUMBERS}")


@dataclass(frozen=True, eq=False)
class Context:
    """What a rule may know besides its arguments.

    Args:
        graph: Where steps are added.
        call: The operator, an `AtenCall` or `OnnxCall`.
        inputs: Its inputs, each once.
        shapes: Of its results that are used.
        parameters: Addresses of the numbers of the model.
        origin: Name of the module or node that it came from.
    """

    graph: Graph
    call: Any
    inputs: Sequence[Value]
    shapes: tuple[tuple[int, ...], ...]
    parameters: Set[int]
    origin: str

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the first result; no other is used."""
        if self.call.results not in (None, (0,)):
            raise NoRuleError("more than one result is used")
        return self.shapes[0]


def value(argument: Any) -> Value:
    """An argument that must depend on the inputs."""
    if not isinstance(argument, Value):
        raise NoRuleError
    return argument


def constant(argument: Any) -> Array:
    """An argument that must not depend on the inputs."""
    if isinstance(argument, Value):
        raise NoRuleError
    if isinstance(argument, Tensor):
        if argument.layout is not torch.strided:
            raise NoRuleError(f"one of its constants has the layout {argument.layout}")
        argument = argument.detach().double().cpu().numpy()
    return np.asarray(argument, np.float64)


def weight(context: Context, argument: Any) -> tuple[Tensor, bool]:
    """A floating-point constant as a tensor, and whether it is an unchanged parameter of the model."""
    if isinstance(argument, Tensor) and argument.is_floating_point() and argument.layout is torch.strided:
        return argument.detach().cpu(), argument.untyped_storage().data_ptr() in context.parameters
    if isinstance(argument, np.ndarray) and argument.dtype in (np.float32, np.float64):
        return torch.from_numpy(np.array(argument)), argument.ctypes.data in context.parameters
    raise NoRuleError("the weight must be constant")


def through(argument: Any, matrix: Matrix, bias: Array | None = None) -> Map:
    """The map matrix @ value + bias."""
    source = value(argument)
    if matrix.shape[1] != source.size:
        raise ValueError(f"matrix must have as many columns as the value has elements, got {matrix.shape} and {source}")
    return AffineMap({source: matrix}, np.zeros(matrix.shape[0]) if bias is None else bias)


def broadcast(argument: Any, shape: Sequence[int]) -> Map:
    """The map of a value or a constant that is broadcast to a shape."""
    if not isinstance(argument, Value):
        return AffineMap.constant(np.broadcast_to(constant(argument), shape))
    if argument.shape == tuple(shape):
        return AffineMap.identity(argument, argument.size)
    [(map, _)] = follow(lambda x: np.broadcast_to(x, shape), [argument])
    return map


def scaled(map: Map, scale: Any, shape: Sequence[int]) -> Map:
    """The product of a map with a constant that is broadcast."""
    return map if np.ndim(scale) == 0 and scale == 1 else map.then(diagonal(scale, shape))


def masked(argument: Any, mask: Array, shape: Sequence[int]) -> Map:
    """The map of a value or a constant broadcast to a shape, with 0 wherever the mask is 0, even for infinities."""
    if not isinstance(argument, Value):
        return AffineMap.constant(np.where(mask, constant(argument), np.zeros(shape)))
    read = np.broadcast_to(mask, shape).ravel() != 0
    return broadcast(argument, shape).at(np.where(read, np.arange(read.size), -1))


def elementwise(context: Context, argument: Any) -> Array:
    """A constant for each element of the result; or for all of them."""
    array = constant(argument)
    return array.reshape(()) if array.size == 1 else np.broadcast_to(array, context.shape).ravel()


def as_shape(context: Context, argument: Any) -> Value:
    """A value that is broadcast to the shape of the result."""
    source = value(argument)
    if source.shape == context.shape:
        return source
    return context.graph.add_piece(broadcast(source, context.shape), context.shape, context.origin)


def step(context: Context, kind: str, *inputs: Value, call: Any = None, **parameters: Any) -> Value:
    """Add a step with one result to the graph."""
    for name, array in parameters.items():
        if not (np.isfinite(array) | (array == UNBOUNDED.get(name, 0.0))).all():
            raise NoRuleError("its constants are not finite")
    return context.graph.add_step(kind, inputs, context.shape, parameters, call, context.origin)


def magnitudes(context: Context, argument: Any) -> Value:
    """Add the step that takes absolute values, for an operator whose result has another shape."""
    source = value(argument)
    return context.graph.add_step("abs", [source], source.shape, origin=context.origin)


def values(context: Context, rule: Rule, *arguments: Any) -> list[Value]:
    """The results of an operator by its rule, called with these arguments; if they have no elements, without it."""
    if any(prod(shape) for shape in context.shapes):
        result = rule(context, *arguments)
    else:
        result = [(AffineMap.constant(np.zeros(0)), shape) for shape in context.shapes]
    if isinstance(result, Value):
        return [result]
    maps = [(result, context.shape)] if isinstance(result, AffineMap) else result
    for map, _ in maps:
        check_finite(map)
    return [context.graph.add_piece(map, shape, context.origin) for map, shape in maps]


def check_finite(map: Map) -> None:
    """Refuse infinities, which would turn into NaN in products and differences."""
    numbers = (part for matrix in map.terms.values() for part in matrix.numbers)
    if not all(_is_finite(part) for part in (map.bias, *numbers)):
        raise NoRuleError("its constants are not finite")


def may_overflow(graph: Graph, made: Iterable[Value], largest: float) -> bool:
    """Whether pieces before these values multiply by more than the root of the largest number of a dtype."""
    factors = dict.fromkeys(graph.inputs, 1.0)
    for node in graph.nodes:
        factor = 1.0
        for source in node.inputs:
            matrix = node.map.terms[source] if isinstance(node, Piece) else None
            parts = () if matrix is None else matrix.numbers
            step = max((float(max(-part.min(), part.max())) for part in parts if prod(part.shape)), default=1.0)
            factor = max(factor, factors[source] * max(step, 1.0))
        factors.update(dict.fromkeys(node.outputs, factor))
    return max(factors[value] for value in made) > sqrt(largest)


def _is_finite(numbers: Any) -> bool:
    """Whether all numbers of an array or a tensor are finite, without another array of them."""
    return not prod(numbers.shape) or all(isfinite(end) for end in (numbers.min(), numbers.max()))
