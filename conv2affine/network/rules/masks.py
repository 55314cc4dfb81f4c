"""Rules of products with masks that depend on the inputs, and of choices by them: ReLUs written by hand.

All of it is found as one form: for each element, y = rest + f(c), where `rest` and the base c are affine maps, and f is
linear between knots. The base is what some comparison on the way to y compares with 0.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import scipy.sparse

from conv2affine.network.graph import Kept, Piece, Slot, Step, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Selection
from conv2affine.network.rules.bends import COMPARISONS, FUNCTIONS, MASKS, write
from conv2affine.network.rules.formulas import diagonal
from conv2affine.network.rules.moves import read_broadcast, read_through
from conv2affine.network.rules.operands import Context, Map, NoRuleError, constant
from conv2affine.network.rules.piecewise import EPS, Piecewise

PRODUCTS, CHOICES = ("mul", "Mul"), ("where", "Where")
# Of masks that were cast to whole numbers: the sign of the second operand.
SUMS = {"add": 1, "Add": 1, "sub": -1, "Sub": -1}
# How many values are looked at, and how many bases are tried, for one operator.
MAX_VALUES, MAX_BASES = 256, 8


def multiply(context: Context, x: Any, other: Any) -> Map:
    """The product of two values, one of which is constant where the other is not 0."""
    return _rule(context, "mul", x, other)


def where(context: Context, condition: Any, x: Any, other: Any) -> Map:
    """Elements of x where the condition, a value, holds; else those of the other."""
    return _rule(context, "where", condition, x, other)


def join_jumps(context: Context, map: Map) -> Map:
    """A sum; with ReLUs for masks and products with them that jump alone and not together, as in x + 1 - (x < 0)."""
    if not any(_jumps(node) for node in context.graph.nodes):
        return map
    index = np.arange(map.size)
    jumping = _jumping(context, _Reader(context, None).total(map, index).rest)
    bases = _Reader(context, None).bases_of(lambda reader: reader.walk_map(map, index)) if jumping else []
    for base in bases[:MAX_BASES]:
        with suppress(NoRuleError):
            reader = _Reader(context, base)
            result = reader.written(reader.total(map, index))
            if len(_jumping(context, result)) < len(jumping):
                return result
    return map


def _jumping(context: Context, map: Map) -> list[Value]:
    """The sources of a map that jump."""
    producer = context.graph.producer
    return [source for source in map.terms if _jumps(producer.get(source))]


def _jumps(node: Any) -> bool:
    """Whether a node is a mask, or a product or a choice that jumps."""
    return isinstance(node, Kept) and (node.kind in MASKS or "jumps" in node.call.reason)


def _rule(context: Context, name: str, *arguments: Any) -> Map:
    """The result of an operator, by the first base of which it is a function that does not jump."""
    index = np.arange(prod(context.shape))
    bases = _Reader(context, None).bases_of(lambda reader: reader.walk(name, arguments, context.shape, index))
    problem = NoRuleError("it multiplies values" if name == "mul" else "it chooses by values")
    for base in bases[:MAX_BASES]:
        try:
            reader = _Reader(context, base)
            return reader.written(reader.apply(name, arguments, context.shape, index))
        except NoRuleError as error:
            problem = error if "jumps" in str(error) else problem
    raise problem


@dataclass(frozen=True)
class Bent:
    """For each element, rest + function(base)."""

    rest: Map
    function: Piecewise

    def __add__(self, other: Bent) -> Bent:
        return Bent(self.rest + other.rest, self.function + other.function)

    def scaled(self, scale: Any) -> Bent:
        """The product with a constant for each element."""
        if np.all(np.equal(scale, 1)):
            return self
        return Bent(self.rest.then(diagonal(scale, (self.rest.size,))), self.function * scale)


class _Reader:
    """Reads values as what they are of a base; or without one, as affine maps of what no piece moves or scales."""

    def __init__(self, context: Context, base: Map | None) -> None:
        self.context, self.producer = context, context.graph.producer
        self.base, self.left = base, MAX_VALUES

    def read(self, argument: Any, index: Any) -> Bent:
        """Elements of a value or of a constant; 0 where the index is -1."""
        zeros = np.zeros(len(index))
        if not isinstance(argument, Value):
            numbers = np.where(index < 0, 0, constant(argument).ravel()[index])
            return Bent(AffineMap.constant(zeros), Piecewise.line(0, numbers))
        node: Any = self.producer.get(argument)
        self.left -= 1
        if isinstance(node, Piece) and self.left > 0 and _is_elementwise(node.map):
            return self.total(node.map, index)
        if self.base is not None and self.left > 0 and _is_known(node):
            try:
                return self.apply(node.kind, _arguments(node), argument.shape, index, _parameters(node, index))
            except NoRuleError:  # it is a number like any other
                pass
        map = AffineMap.identity(argument, argument.size).at(index)
        return Bent(map, Piecewise.line(0, zeros))

    def total(self, map: Map, index: Any) -> Bent:
        """Elements of a map that moves, scales and adds those of values; 0 where the index is -1."""
        bias = np.where(index < 0, 0, map.bias[index])
        total = Bent(self.zeros(index), Piecewise.line(0, bias))
        for source, matrix in map.terms.items():
            inner, scale = read_through(matrix, index)
            total += self.read(source, inner).scaled(scale)
        return total

    def apply(self, name: str, arguments: Sequence[Any], shape: Any, index: Any, parameters: Any = None) -> Bent:
        """The result of an operator."""
        parts = [self.read(argument, read_broadcast(argument, shape, index)) for argument in arguments]
        if name in CHOICES:
            mask, x, other = parts
            return other + Bent(self.zeros(index), self.function(x + other.scaled(-1)) * self.function(mask))
        if name in COMPARISONS:
            parts = [parts[0] + parts[1].scaled(-1)]
        if name in SUMS:
            return parts[0] + parts[1].scaled(SUMS[name])
        functions = [self.function(part) for part in parts]
        if name in PRODUCTS:
            return Bent(self.zeros(index), functions[0] * functions[1])
        return Bent(self.zeros(index), FUNCTIONS[name](*functions, **(parameters or {})))

    def written(self, result: Bent) -> Map:
        """The map of a result, with ReLUs added to the graph."""
        assert self.base is not None
        with suppress(NoRuleError):  # what is not a function of the base stays beside it
            result = Bent(AffineMap.constant(np.zeros(result.rest.size)), self.function(result))
        return result.rest + write(self.context, self.base, result.function)

    def zeros(self, index: Any) -> Map:
        return AffineMap.constant(np.zeros(len(index)))

    def function(self, part: Bent) -> Piecewise:
        """All of it as a function of the base, if it is one."""
        rest = part.rest
        if not rest.terms:
            return part.function + Piecewise.line(0, rest.bias)
        slope = None if self.base is None else _ratio(rest, self.base)
        if slope is None:
            raise NoRuleError
        return part.function + Piecewise.line(slope, rest.bias)

    def bases_of(self, walk: Callable[[_Reader], Iterator[tuple[str, Map]]]) -> list[Map]:
        """Of what comparisons and steps on a walk are functions; none if it needs no mask."""
        found = list(walk(self))
        return [base for _, base in found if base.terms] if any(kind in MASKS for kind, _ in found) else []

    def walk(self, name: str, arguments: Sequence[Any], shape: Any, index: Any) -> Iterator[tuple[str, Map]]:
        """The operators before one, and what each is a function of: its argument, or the difference of two."""
        given = [(argument, read_broadcast(argument, shape, index)) for argument in arguments]
        for argument, inner in given:
            yield from self.walk_to(argument, inner)
        if name in FUNCTIONS:
            first, *others = [self.read(*pair) for pair in given]
            for other in others:
                first += other.scaled(-1)
            yield name, AffineMap(first.rest.terms, np.zeros(len(index)))

    def walk_to(self, argument: Any, index: Any) -> Iterator[tuple[str, Map]]:
        """The operators up to a value."""
        node = self.producer.get(argument) if isinstance(argument, Value) else None
        self.left -= 1
        if node is None or self.left < 0:
            return
        if isinstance(node, Piece):
            yield from self.walk_map(node.map, index)
        elif _is_known(node):
            yield from self.walk(node.kind, _arguments(node), argument.shape, index)

    def walk_map(self, map: Map, index: Any) -> Iterator[tuple[str, Map]]:
        """The operators up to a map."""
        for source, matrix in map.terms.items() if _is_elementwise(map) else ():
            yield from self.walk_to(source, read_through(matrix, index)[0])


def _is_elementwise(map: Map) -> bool:
    """Whether a map only moves, scales and adds elements."""
    return all(isinstance(matrix, Selection) for matrix in map.terms.values())


def _is_known(node: Any) -> bool:
    """Whether a node is an operator that makes piecewise-linear functions of such."""
    if isinstance(node, Kept) and node.kind in SUMS:
        return not getattr(node.call, "kwargs", {})  # alpha
    return isinstance(node, Step | Kept) and node.kind in (*FUNCTIONS, *PRODUCTS, *CHOICES)


def _arguments(node: Any) -> list[Any]:
    """Values and constants that a step takes."""
    if isinstance(node, Step):
        return list(node.inputs)
    return [node.inputs[arg.number] if isinstance(arg, Slot) else arg for arg in node.call.args]


def _parameters(node: Any, index: Any) -> dict[str, Any]:
    """Those of a step, for these of its elements."""
    if isinstance(node, Kept):
        return {}
    return {name: array[index] if np.ndim(array) else array for name, array in node.parameters.items()}


def _ratio(map: Map, base: Map) -> Any:
    """The factor of each element of a map in that of another, biases left out; None if it has none."""
    if not map.terms.keys() <= base.terms.keys():
        return None
    ours, theirs = [], []
    for source, matrix in base.terms.items():
        theirs.append(matrix.csr())
        ours.append(map.terms[source].csr() if source in map.terms else 0 * theirs[-1])
    a, b = (scipy.sparse.hstack(parts, format="csr") for parts in (ours, theirs))
    squares = b.multiply(b).sum(1)
    ratio = np.divide(a.multiply(b).sum(1), squares, out=np.zeros(len(squares)), where=squares > 0)
    off = a - b.multiply(ratio[:, None]).tocsr()
    largest, rest = (abs(part).max(axis=1).toarray().ravel() for part in (a, off))
    return ratio if (rest <= EPS * largest).all() else None
