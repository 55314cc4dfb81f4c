"""The intermediate form of a network: affine pieces and nonlinear steps, in the order of computation.

A value is one tensor per sample; pieces see it as a flat vector, steps as a tensor of its shape. Importers append
nodes, passes turn a graph into a new one, exporters write it out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import chain, count
from math import prod
from typing import Any

from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Selection


@dataclass(frozen=True, eq=False)
class Value:
    """One tensor of the network, for a single sample.

    Args:
        shape: For a batch of one sample, so it includes the batch axis, wherever that is.
        name: Of the module or node that it comes from.
    """

    shape: tuple[int, ...]
    name: str = ""

    @property
    def size(self) -> int:
        """Elements per sample."""
        return prod(self.shape)


@dataclass(frozen=True, eq=False)
class Piece:
    """An affine piece: output = map of other values.

    Args:
        output: What it computes.
        map: Its sources are values that come before it.
        origins: For each source, the modules, or nodes of a file, whose work its matrix does.
    """

    output: Value
    map: AffineMap[Value]
    origins: Mapping[Value, tuple[str, ...]]

    @property
    def inputs(self) -> tuple[Value, ...]:
        return tuple(self.map.terms)

    @property
    def outputs(self) -> tuple[Value, ...]:
        return (self.output,)

    @property
    def origin(self) -> tuple[str, ...]:
        """All modules whose work it does; the name of its output if there are none."""
        names = tuple(dict.fromkeys(name for names in self.origins.values() for name in names))
        return names or (self.output.name,)

    def without_layer(self, *, gathers: bool = False) -> dict[Value, Selection]:
        """The sources that need no layer: those that are only added, unless the bias needs one.

        With `gathers`, selections are written without a matrix, and the bias is added.
        """
        found = {source: m for source, m in self.map.terms.items() if isinstance(m, Selection)}
        if gathers:
            return found
        added = {source: m for source, m in found.items() if m.is_identity}
        if added and len(added) == len(self.map.terms) and self.map.bias.any():
            del added[next(iter(added))]
        return added


class _Named:
    kind: str
    origin: tuple[str, ...]

    @property
    def name(self) -> str:
        """Of the module, or node of a file, that it comes from; else that of its kind."""
        return (*self.origin, self.kind)[0]


@dataclass(frozen=True, eq=False)
class Step(_Named):
    """A piecewise-linear step with a meaning of its own: output = kind(inputs).

    Args:
        kind: One of `kinds.KINDS`.
        inputs: Values that come before it.
        shapes: Of the inputs, as `call` takes them.
        outputs: What it computes, one value.
        parameters: Of the kind, by name.
        call: The original operator, an `AtenCall` or `OnnxCall`, if the step runs as that. Default: it runs as its kind
            defines.
        origin: Name of the module, or node of a file, that it comes from.
    """

    kind: str
    inputs: tuple[Value, ...]
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[Value]
    parameters: Mapping[str, Any] = field(default_factory=dict)
    call: Any = None
    origin: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Kept(_Named):
    """An operator that runs as it is: outputs = call(inputs).

    Args:
        kind: Name of the operator.
        inputs: Values that come before it, each once.
        shapes: Of the inputs, as `call` takes them.
        outputs: What it computes.
        call: The operator with its constant arguments, an `AtenCall` or `OnnxCall`; or a `passes.elementary.Function`.
        origin: Name of the module, or node of a file, that it comes from.
    """

    kind: str
    inputs: tuple[Value, ...]
    shapes: tuple[tuple[int, ...], ...]
    outputs: tuple[Value, ...]
    call: Any
    origin: tuple[str, ...] = ()


@dataclass(frozen=True)
class Slot:
    """The place of an input among the constant arguments of a call."""

    number: int


Node = Piece | Step | Kept


def unused(name: str, is_taken: Callable[[str], object]) -> str:
    """A name that is not taken: this one, or this one with a number."""
    return next(each for each in chain([name], (f"{name}_{number}" for number in count(1))) if not is_taken(each))


def runs_on_vectors(step: Step | Kept) -> bool:
    """Whether the operator of a step computes the same on flat vectors."""
    return bool(step.call.runs_on_vectors([*step.shapes, *(value.shape for value in step.outputs)]))


@dataclass(eq=False)
class Graph:
    """A network.

    Args:
        inputs: The network's inputs.
        nodes: Pieces and steps; each uses values of nodes before it.
        outputs: The network's outputs.
        output_shapes: Their shapes, which passes do not change.
    """

    inputs: list[Value] = field(default_factory=list)
    nodes: list[Node] = field(default_factory=list)
    outputs: list[Value] = field(default_factory=list)
    output_shapes: list[tuple[int, ...]] = field(default_factory=list)

    def add_output(self, value: Value) -> None:
        """A new output."""
        self.outputs.append(value)
        self.output_shapes.append(value.shape)

    def add_input(self, shape: Iterable[int], name: str = "") -> Value:
        """A new input."""
        self.inputs.append(Value(tuple(shape), name))
        return self.inputs[-1]

    def add_piece(self, map: AffineMap[Value], shape: Iterable[int], origin: str = "") -> Value:
        """The value of an affine map, as a tensor of this shape."""
        value = Value(tuple(shape), origin)
        if map.size != value.size:
            raise ValueError(f"map ({map.size} elements) must have as many elements as shape {value.shape}")
        self.nodes.append(Piece(value, map, {source: (origin,) if origin else () for source in map.terms}))
        return value

    def add_step(
        self,
        kind: str,
        inputs: Iterable[Value],
        shape: Iterable[int],
        parameters: Mapping[str, Any] | None = None,
        call: Any = None,
        origin: str = "",
    ) -> Value:
        """The value of a step with a meaning of its own, as a tensor of this shape."""
        inputs, output = tuple(inputs), Value(tuple(shape), origin)
        taken = tuple(value.shape for value in inputs)
        self.nodes.append(Step(kind, inputs, taken, (output,), parameters or {}, call, (origin,) if origin else ()))
        return output

    def add_kept(
        self, kind: str, inputs: Iterable[Value], shapes: Iterable[Iterable[int]], call: Any, origin: str = ""
    ) -> tuple[Value, ...]:
        """The values of an operator that runs as it is, as tensors of these shapes."""
        inputs, outputs = tuple(inputs), tuple(Value(tuple(shape), origin) for shape in shapes)
        taken = tuple(value.shape for value in inputs)
        self.nodes.append(Kept(kind, inputs, taken, outputs, call, (origin,) if origin else ()))
        return outputs

    @property
    def producer(self) -> dict[Value, Node]:
        """The node of each value that is not an input."""
        return {value: node for node in self.nodes for value in node.outputs}

    @property
    def users(self) -> dict[Value, list[Node]]:
        """The nodes that use each value, once each."""
        users: dict[Value, list[Node]] = {value: [] for value in self.inputs}
        for node in self.nodes:
            users.update({value: [] for value in node.outputs})
            for value in dict.fromkeys(node.inputs):
                users[value].append(node)
        return users
