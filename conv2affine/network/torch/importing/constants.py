"""The constants of a module: what does not depend on its inputs is computed once, as the module computes it."""

from __future__ import annotations

import operator
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx.node import map_arg

__all__ = ["fold_constants", "is_random"]


def fold_constants(program: ExportedProgram, state: frozenset[str]) -> None:
    """Replace operators that do not depend on inputs by constants, such as the weights of normalised convolutions.

    They run as the module runs them: not decomposed, in its dtypes, and in training mode where it says so.

    Args:
        program: Not decomposed; changed in place.
        state: Names of buffers that each run of the module replaces, so that they are not constant.
    """
    values = _Constants(program, state.union(program.graph_signature.buffers_to_mutate.values())).values
    graph, signature = program.graph, program.graph_signature
    [output] = graph.find_nodes(op="output")
    needed = {node for node in graph.nodes if node not in values}
    folded = []
    for node in reversed(graph.nodes):
        for used in node.all_input_nodes if node in needed else ():
            if used in needed or used in folded or used.op == "placeholder":
                continue
            if isinstance(values[used], Tensor) and output not in used.users:
                folded.append(used)
            else:
                needed.add(used)
    first = next(node for node in graph.nodes if node.name in signature.user_inputs)
    place = [spec.arg.name for spec in signature.input_specs].index(first.name)
    for node in folded:
        with graph.inserting_before(first):
            constant = graph.placeholder(f"c_{node.name}")
        constant.meta["val"] = node.meta["val"]
        node.replace_all_uses_with(constant)
        argument = TensorArgument(constant.name)
        signature.input_specs.insert(place, InputSpec(InputKind.CONSTANT_TENSOR, argument, constant.name))
        program.constants[constant.name] = values[node]
        place += 1
    graph.eliminate_dead_code()
    program.graph_module.recompile()


class _Constants:
    """The results of all operators that depend on no input and no state, except those that are written to."""

    def __init__(self, program: ExportedProgram, state: frozenset[str]) -> None:
        self.targets = {spec.arg.name: spec.target for spec in program.graph_signature.input_specs}
        self.held = {**program.constants, **program.state_dict}
        self.values: dict[fx.Node, Any] = {}
        self.written: set[str] = set()
        for node in program.graph.nodes:
            target = self.targets.get(node.name)
            if node.op == "call_function":
                self.run(node)
            elif isinstance(self.held.get(target), Tensor) and target not in state:
                self.values[node] = self.held[target].detach()
        if self.written - state:  # what was computed from it before is not constant either
            self.__init__(program, state | self.written)  # type: ignore[misc]

    def run(self, node: fx.Node) -> None:
        """Record the result of an operator if it is constant; drop what it writes to."""
        target: Any = node.target
        if target is not operator.getitem:
            if not isinstance(target, torch._ops.OpOverload):
                return
            if target._schema.is_mutable:
                arguments = zip(target._schema.arguments, node.args, strict=False)
                for written in [given for argument, given in arguments if argument.is_write and given in self.values]:
                    self.forget(written)
                return
        if all(used in self.values for used in node.all_input_nodes):
            args, kwargs = map_arg((node.args, node.kwargs), self.values.__getitem__)
            if not is_random(target, args, kwargs):
                with torch.no_grad():
                    self.values[node] = target(*args, **kwargs)

    def forget(self, written: Any) -> None:
        """Drop everything that shares memory with what is written to."""
        memory = _memory(self.values[written])
        for node in [node for node, value in self.values.items() if _memory(value) == memory]:
            del self.values[node]
            if node.op == "placeholder":
                self.written.add(self.targets[node.name])


def _memory(value: Any) -> int | None:
    return value.untyped_storage().data_ptr() if isinstance(value, Tensor) else None


def is_random(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator draws random numbers: PyTorch tags it so, and no argument turns it off."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    given = dict(zip([argument.name for argument in target._schema.arguments], args, strict=False)) | kwargs
    off = {"scaled_dot_product_attention": "dropout_p", "rrelu_with_noise_functional": "training"}
    name = off.get(target.overloadpacket.__name__)
    return name is None or bool(given.get(name, False))
