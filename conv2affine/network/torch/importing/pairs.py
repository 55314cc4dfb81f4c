"""A program whose complex tensors become pairs of real ones: what writes it."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.fx.node import map_aggregate, map_arg
from torch.utils import _pytree as pytree

aten = torch.ops.aten


class Pair(NamedTuple):
    """The real and the imaginary part, each a node or a number; None for zeros."""

    real: Any
    imag: Any


class Writer:
    """Writes nodes before the one that it is at, which come from the same module.

    A rule takes the writer and the arguments of an operator, nodes and numbers; it gives a pair, or another node.
    """

    def __init__(self, program: ExportedProgram, rules: Mapping[str, Callable[..., Any]]) -> None:
        self.rules = rules
        self.graph, self.signature = program.graph, program.graph_signature
        self.pairs: dict[fx.Node, Pair] = {}
        self.whole: dict[fx.Node, fx.Node] = {}  # the complex tensor of a pair, where an operator takes that
        self.node: Any = None

    def run(self) -> None:
        """Go through the nodes that inputs reach."""
        reached = {node for node in self.graph.nodes if node.name in self.signature.user_inputs}
        mode = next(iter(reached)).meta["val"].fake_mode
        replaced = []
        for node in list(self.graph.nodes):
            if not reached.intersection(node.all_input_nodes):
                continue
            reached.add(node)
            if not (self.pairs.keys() & node.all_input_nodes or is_complex(node)):
                continue
            self.node = node
            with self.graph.inserting_before(node), mode:
                result = self.result()
            if result is not None:
                replaced.append(node)
            elif is_complex(node):
                with self.graph.inserting_before(node.next), mode:
                    result, self.whole[node] = self.parts(node), node
            if isinstance(result, Pair):
                self.pairs[node] = result
            elif result is not None:
                reached.add(result)
        for node in reversed(replaced):
            self.graph.erase_node(node)
        self.graph.eliminate_dead_code()

    def result(self) -> Any:
        """What takes the place of the node: a pair; or another node, which does so now; None if it stays."""
        target = self.node.target
        is_tensor = pytree.tree_any(lambda x: isinstance(x, Tensor), self.node.meta.get("val"))
        if self.node.op == "call_function" and not is_tensor:  # a size, or an assertion
            self.node.args = map_arg(self.node.args, lambda x: self.filled(self.pair(x).real, x))
            return None
        rule = self.rules.get("getitem" if target is operator.getitem else _name(target))
        if rule is None or self.stays():
            self.node.args, self.node.kwargs = map_arg((self.node.args, self.node.kwargs), self.joined)
            return None
        result = rule(self, *self.node.args, **self.node.kwargs)
        if isinstance(result, Pair):
            return Pair(*map(self.expanded, result)) if isinstance(self.node.meta["val"], Tensor) else result
        result = self.expanded(result)
        self.node.replace_all_uses_with(result)
        self.signature.replace_all_uses(self.node.name, result.name)
        return result

    def stays(self) -> bool:
        """Whether the node takes no pair; or mixes the samples of a batch, which is refused by its name."""
        if self.node.target is operator.getitem:
            return self.node.args[0] not in self.pairs
        axes = self.node.args[1] if _name(self.node.target).startswith("_fft_") else ()
        return any(axis % self.node.meta["val"].dim() == 0 for axis in axes)

    def emit(self, target: Any, *args: Any, **kwargs: Any) -> fx.Node:
        """A new node."""
        node: fx.Node = self.graph.create_node("call_function", target, args, kwargs, self.node.name)
        args, kwargs = map_arg((args, kwargs), lambda used: used.meta["val"])
        node.meta = {**self.node.meta, "val": target(*args, **kwargs)}
        return node

    def emit_part(self, args: Any, kwargs: Any) -> fx.Node:
        """The node itself of parts; its shape is known, and may be one of a mask."""
        args, kwargs = map_aggregate(
            (args, kwargs), lambda x: x.to_real() if isinstance(x, torch.dtype) and x.is_complex else x
        )
        node: fx.Node = self.graph.create_node("call_function", self.node.target, args, kwargs, self.node.name)
        val = pytree.tree_map(lambda x: torch.empty_like(x, dtype=x.dtype.to_real()), self.node.meta["val"])
        node.meta = {**self.node.meta, "val": val}
        return node

    def pair(self, x: Any) -> Pair:
        """The parts of a node or of a number."""
        if isinstance(x, Pair):
            return x
        if isinstance(x, complex):
            return Pair(x.real or None, x.imag or None)
        if x not in self.pairs:
            return self.parts(x) if isinstance(x, fx.Node) and is_complex(x) else Pair(x, None)
        return self.pairs[x]

    def parts(self, x: fx.Node) -> Pair:
        """The parts of a complex tensor."""
        x = self.emit(aten.clone.default, x) if x.meta["val"].is_conj() else x
        both = self.emit(aten.view_as_real.default, x)
        return Pair(*(self.emit(aten.select.int, both, -1, number) for number in range(2)))

    def joined(self, x: fx.Node) -> fx.Node:
        """The complex tensor of a pair; any other node as it is."""
        if x not in self.pairs:
            return x
        if x not in self.whole:
            self.whole[x] = self.emit(aten.complex.default, *(self.filled(part, x) for part in self.pairs[x]))
            self.signature.replace_all_uses(x.name, self.whole[x].name)
        return self.whole[x]

    def filled(self, part: Any, like: fx.Node) -> Any:
        """A part of a node, with zeros where it is None."""
        if part is not None:
            return part
        real, imag = self.pair(like)
        return self.emit(aten.zeros_like.default, imag if real is None else real)

    def expanded(self, part: Any) -> Any:
        """A part as a tensor of the shape of the node; None as it is."""
        fake = self.node.meta["val"]
        shape = fake.shape
        if isinstance(part, int | float):
            return self.emit(aten.full.default, list(shape), part, dtype=fake.dtype.to_real(), device=fake.device)
        if part is None or part.meta["val"].shape == shape:
            return part
        return self.emit(aten.expand.default, part, list(shape))

    def plus(self, x: Any, other: Any, scale: Any = 1) -> Any:
        """The part x + scale * other."""
        if other is not None and scale != 1:
            other = self.times(other, scale)
        if x is None or other is None:
            return other if x is None else x
        if not isinstance(x, fx.Node):
            x, other = other, x
        return self.emit(aten.add.Tensor, x, other)

    def times(self, x: Any, other: Any) -> Any:
        """The part x * other."""
        if x is None or other is None:
            return None
        if not isinstance(x, fx.Node):
            x, other = other, x
        return self.emit(aten.mul.Tensor, x, other) if isinstance(x, fx.Node) else x * other

    def product(self, times: Callable[[Any, Any], Any], x: Any, other: Any) -> Pair:
        """The product of two pairs, of which `times` multiplies parts."""
        (a, b), (c, d) = x, other

        def of(first: Any, second: Any) -> Any:
            return None if first is None or second is None else times(first, second)

        return Pair(self.plus(of(a, c), of(b, d), -1), self.plus(of(a, d), of(b, c)))

    def line(self, x: Any, matrix: fx.Node, axis: int) -> Any:
        """The product of a part with a matrix along an axis."""
        if x is None:
            return None
        order = list(range(x.meta["val"].dim()))
        order[axis], order[-1] = order[-1], order[axis]
        moved = self.emit(aten.permute.default, x, order)
        return self.emit(aten.permute.default, self.emit(aten.matmul.default, moved, matrix), order)

    def units(self, x: Any, axis: int, dtype: torch.dtype) -> fx.Node:
        """The unit vectors of an axis."""
        fake = next(part for part in self.pair(x) if part is not None).meta["val"]
        return self.emit(aten.eye.default, fake.shape[axis], dtype=dtype, device=fake.device)


def _name(target: Any) -> str:
    return getattr(getattr(target, "overloadpacket", None), "__name__", "")


def is_complex(node: fx.Node) -> bool:
    """Whether a node is a complex tensor."""
    value = node.meta.get("val")
    return isinstance(value, Tensor) and value.is_complex()
