"""The pass that rewrites kept operators as a few functions, which are the same however a network names them.

What is affine or piecewise linear in them becomes that; the results are equal up to a few roundings.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
import scipy.special
import torch

from conv2affine.network.graph import Graph, Kept, Node, Slot, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.passes.functions import RULES
from conv2affine.network.passes.simplify import Rewritten, rewrite
from conv2affine.network.rules import formulas, shapes
from conv2affine.network.rules.operands import Context, Map, NoRuleError, broadcast, check_finite, through

FUNCTIONS: dict[str, Callable[..., Any]] = {
    **{name: getattr(np, name) for name in ("ceil", "cos", "cosh", "exp", "floor", "log", "reciprocal", "sign", "sin")},
    **{name: getattr(np, name) for name in ("sinh", "sqrt", "tan", "tanh")},
    **{name: getattr(np, f"arc{name[1:]}") for name in ("acos", "asin", "atan")},
    "erf": scipy.special.erf,
    "sigmoid": scipy.special.expit,
    "softplus": lambda x: np.logaddexp(x, 0),
    "mul": np.multiply,
    "matmul": np.matmul,
}


# Operators of ATen and ONNX that move elements: numbers, whole numbers or masks.
MOVES = (
    *("alias", "clone", "expand", "flip", "permute", "repeat", "select", "slice", "squeeze", "unsqueeze", "view"),
    *("Expand", "Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
)


@dataclass(frozen=True)
class Function:
    """A function of flat vectors.

    Args:
        name: One of `FUNCTIONS`.
        places: For each argument, the number of the input.
        shapes: Of the arguments, if they matter.
    """

    name: str
    places: tuple[int, ...]
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What determines its result."""
        return self.name, tuple(map(Slot, self.places)), self.shapes

    def run(self, inputs: Sequence[Any]) -> list[Any]:
        """Its result, for arrays."""
        arguments = [inputs[place] for place in self.places]
        if self.shapes:
            arguments = [array.reshape(shape) for array, shape in zip(arguments, self.shapes, strict=True)]
        return [FUNCTIONS[self.name](*arguments)]


class Writer:
    """Writes one operator.

    Args:
        node: The operator.
        dtype: In which the network computes.
    """

    def __init__(self, node: Kept, dtype: torch.dtype) -> None:
        self.node, self.dtype, self.graph, self.origin = node, dtype, Graph(), node.name
        self.shape = node.outputs[0].shape

    def write(self) -> tuple[list[Node], Value]:
        """The nodes, and their result.

        Raises:
            NoRuleError: If there is no rule for the operator with these arguments.
        """
        if self.node.call.results not in (None, (0,)):  # such as only the mean of a layer norm
            raise NoRuleError
        inputs = [
            self.piece(AffineMap.identity(value, value.size), shape)
            for value, shape in zip(self.node.inputs, self.node.shapes, strict=True)
        ]
        result = self.moved(inputs) if self.node.kind in MOVES else self.applied(inputs)
        value = self.piece(result, self.shape) if isinstance(result, AffineMap) else result
        return self.graph.nodes, value

    def moved(self, inputs: Sequence[Value]) -> Map:
        """The result of an operator that moves elements."""
        context = Context(self.graph, self.node.call, inputs, (self.shape,), frozenset(), self.origin)
        [(map, _)] = shapes.move(context)
        return map  # type: ignore[no-any-return]

    def applied(self, inputs: Sequence[Value]) -> Any:
        """The result of any other operator, by its rule."""
        rule = RULES.get(self.node.kind)
        if rule is None:
            raise NoRuleError
        args, options = self.node.call.filled(inputs)
        try:
            return rule(self, *args, **options)
        except TypeError as error:  # other arguments
            raise NoRuleError from error

    def piece(self, map: Map, shape: Sequence[int]) -> Value:
        """The value of an affine map.

        Raises:
            NoRuleError: If it has infinities, such as those of a mask.
        """
        check_finite(map)
        return self.graph.add_piece(map, shape, self.origin)

    def call(self, name: str, *values: Value, shapes: Any = (), shape: Any = None) -> Value:
        """A function of values."""
        inputs = list(dict.fromkeys(values))
        function = Function(name, tuple(map(inputs.index, values)), shapes)
        [result] = self.graph.add_kept(name, inputs, [shape or values[0].shape], function, self.origin)
        return result

    def line(self, x: Value, scale: Any, offset: Any = 0.0) -> Value:
        """The value scale * x + offset."""
        offset = np.broadcast_to(np.asarray(offset, np.float64), x.shape).ravel()
        return self.piece(through(x, formulas.diagonal(scale, x.shape), offset), x.shape)

    def step(self, kind: str, x: Value, shape: Any = None, **parameters: Any) -> Value:
        """A step of one value."""
        return self.graph.add_step(kind, [x], shape or x.shape, parameters, origin=self.origin)

    def times(self, x: Value, y: Value, shape: Any = None) -> Value:
        """The product x * y, broadcast to the shape of the result."""
        shape = shape or self.shape
        x, y = (each if each.shape == shape else self.piece(broadcast(each, shape), shape) for each in (x, y))
        return self.call("mul", x, y)


def elementary(graph: Graph, dtype: torch.dtype) -> Graph:
    """A graph with functions in place of the operators that are kept and have a rule here.

    What depends on an operator without one stays as it is, but for moves: it may be of whole numbers, which overflow.

    Args:
        graph: Any graph.
        dtype: In which it computes.
    """
    unknown: set[Value] = set()

    def rule(node: Node) -> Rewritten:
        is_known = unknown.isdisjoint(node.inputs)
        written = None
        if isinstance(node, Kept) and (is_known or node.kind in MOVES):
            with suppress(NoRuleError):
                written = Writer(node, dtype).write()
        if not is_known or (isinstance(node, Kept) and not written):
            unknown.update([written[1]] if written else node.outputs)
        return written

    return rewrite(graph, rule)
