"""What the rules of every importer are written with: arguments that are constant or depend on the inputs, and steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from conv2affine.network.graph import Graph, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.rules import formulas as rules
from conv2affine.network.rules.moves import follow, selection

__all__ = [
    "Map",
    "NoRuleError",
    "as_shape",
    "broadcast",
    "constant",
    "elementwise",
    "finite",
    "masked",
    "scaled",
    "step",
    "through",
    "value",
]

Map = AffineMap[Value]
# The one number that is not finite and still has a meaning as a parameter of a step: no bound.
UNBOUNDED = {"low": -np.inf, "high": np.inf}


class NoRuleError(Exception):
    """The operator, or the operator with these arguments, has no rule; with a message, why."""


class Context(Protocol):
    """What these functions need of an importer's context."""

    @property
    def graph(self) -> Graph:
        """Where steps are added."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the operator's result."""

    @property
    def origin(self) -> str:
        """Name of the module or node that the operator came from."""


def value(argument: Any) -> Value:
    """An argument that has to depend on the inputs."""
    if not isinstance(argument, Value):
        raise NoRuleError
    return argument


def constant(argument: Any) -> Array:
    """An argument that must not depend on the inputs."""
    if isinstance(argument, Value):
        raise NoRuleError
    if isinstance(argument, Tensor):
        argument = argument.detach().double().cpu().numpy()
    return np.asarray(argument, np.float64)


def through(argument: Any, matrix: Matrix, bias: Array | None = None) -> Map:
    """The map matrix @ value + bias."""
    source = value(argument)
    return AffineMap.identity(source, source.size).then(matrix, bias)


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
    return map if np.ndim(scale) == 0 and scale == 1 else map.then(rules.diagonal(scale, shape))


def masked(argument: Any, mask: Array, shape: Sequence[int]) -> Map:
    """The map of a value or a constant that is broadcast to a shape, and 0 where the mask is, whatever it is there."""
    if not isinstance(argument, Value):
        return AffineMap.constant(np.where(mask, constant(argument), np.zeros(shape)))
    read = np.broadcast_to(mask, shape).ravel() != 0
    return broadcast(argument, shape).then(selection(np.where(read, np.arange(read.size), -1), read.size))


def finite(map: Map) -> Map:
    """A map of finite numbers: infinities would turn into NaN in products and differences."""
    numbers = (part for matrix in map.terms.values() for part in matrix.numbers)
    if not np.isfinite(map.bias).all() or not all((abs(part) < np.inf).all() for part in numbers):
        raise NoRuleError("its constants are not finite")
    return map


def step(context: Context, kind: str, *inputs: Value, operator: Any = None, **parameters: Any) -> Value:
    """Add a step with one result to the graph."""
    for name, array in parameters.items():
        if not (np.isfinite(array) | (array == UNBOUNDED.get(name))).all():
            raise NoRuleError("its constants are not finite")
    [output] = context.graph.add_step(kind, inputs, [context.shape], parameters, operator, context.origin)
    return output


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
