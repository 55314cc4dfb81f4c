"""The constants of a module: what does not depend on its inputs is computed once, as the module computes it."""

from __future__ import annotations

import operator
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, TensorArgument
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from conv2affine.network.torch.importing.call import operator_name, written_arguments

# Operators that read no element of their first argument.
SHAPE_ONLY = frozenset(
    (
        *("empty_like", "full_like", "ones_like", "rand_like", "randint_like", "randn_like", "zeros_like"),
        *("new_empty", "new_empty_strided", "new_full", "new_ones", "new_zeros"),
    )
)


def fold_constants(program: ExportedProgram, state: frozenset[str]) -> None:
    """Replace operators that do not depend on inputs by constants, such as the weights of normalised convolutions.

    They run as the module runs them: not decomposed, in its dtypes, and in training mode where it says so. The state is
    that of buffers which each run of the module replaces, so that they are not constant.
    """
    found = _Constants(program, state.union(program.graph_signature.buffers_to_mutate.values()))
    values, graph, signature = found.values, program.graph, program.graph_signature
    first = next(node for node in graph.nodes if node.name in signature.user_inputs)
    place = [spec.arg.name for spec in signature.input_specs].index(first.name)
    needed = {node for node in graph.nodes if node not in values}
    made: dict[Any, fx.Node] = {}
    for node in reversed(graph.nodes):
        for used in node.all_input_nodes if node in needed else ():
            key = (node, used) if (node, used) in found.before else used
            value = found.before.get((node, used), values.get(used))
            if used in needed or (used.op == "placeholder" and key is used and used not in found.copies):
                continue
            if not isinstance(value, Tensor):
                needed.add(used)
                continue
            if key not in made:
                with graph.inserting_before(first):
                    made[key] = graph.placeholder(f"c{len(made)}_{used.name}")
                made[key].meta["val"] = used.meta["val"]
                argument = TensorArgument(made[key].name)
                spec = InputSpec(InputKind.CONSTANT_TENSOR, argument, made[key].name)
                signature.input_specs.insert(place, spec)
                program.constants[made[key].name] = value
                place += 1
            node.replace_input_with(used, made[key])
            if node.op == "output":
                signature.replace_all_uses(used.name, made[key].name)
    for node in reversed(graph.nodes):  # writes too, which do not count as dead code
        if node in values and node.op == "call_function" and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    program.graph_module.recompile()


class _Constants:
    """The results of all operators that depend on no input and no state, or only on the shape of one.

    What only they write to is constant too. Parameters that are written to, `copied`, are copied first.
    """

    def __init__(self, program: ExportedProgram, state: frozenset[str], copied: frozenset[str] = frozenset()) -> None:
        signature = self.signature = program.graph_signature
        self.targets = {spec.arg.name: spec.target for spec in signature.input_specs}
        held = {**program.constants, **program.state_dict}
        self.values: dict[fx.Node, Any] = {}
        self.copies: set[fx.Node] = set()
        self.kept: set[int] = set()  # memory of the module
        self.written: list[frozenset[str]] = []  # names of what shares this memory, for each write
        self.reads: list[tuple[fx.Node, fx.Node]] = []  # what is left, and a constant that it takes
        self.before: dict[tuple[fx.Node, fx.Node], Tensor] = {}  # these constants, if they are written to afterwards
        for node in program.graph.nodes:
            target: Any = self.targets.get(node.name)
            if node.op == "call_function":
                self.run(node)
            elif isinstance(held.get(target), Tensor) and target not in state:
                self.values[node] = held[target].detach()
                if target in copied:
                    self.values[node] = self.values[node].clone()
                    self.copies.add(node)
                self.kept |= memory(held[target])
        for names in self.written:
            if len(names) == 1 and names <= set(signature.inputs_to_parameters.values()) - copied:
                copied |= names
            else:  # what was computed from it before is not constant either
                state |= names
        if self.written:
            self.__init__(program, state, copied)  # type: ignore[misc]

    def run(self, node: fx.Node) -> None:
        """Record the result of an operator if it is constant; drop what is written to if it is not."""
        given = [used for used in node.all_input_nodes if used in self.values]
        written: set[int] = set().union(*(memory(self.values[used]) for used in _written(node) if used in given))
        if self.is_constant(node) and not written & self.kept:
            args, kwargs = map_arg((node.args, node.kwargs), self.value)
            if not is_random(node.target, args, kwargs):
                self.save(written)
                with torch.no_grad():
                    self.values[node] = node.target(*args, **kwargs)  # type: ignore[operator]
        if node not in self.values and written:
            self.release(node, written)
        if not memory(self.values.get(node)):
            self.reads += [(node, used) for used in node.all_input_nodes if used in self.values]

    def is_constant(self, node: fx.Node) -> bool:
        """Whether a node is an operator, and what it reads of its arguments is constant."""
        if not isinstance(node.target, torch._ops.OpOverload):
            return node.target is operator.getitem and node.args[0] in self.values
        shape_only = operator_name(node.target) in SHAPE_ONLY and _has_shape(node.args[0])
        return all(used in self.values or (shape_only and used is node.args[0]) for used in node.all_input_nodes)

    def value(self, node: fx.Node) -> Any:
        """A constant; for a tensor of which only the shape is read, zeros that lie in memory as it does."""
        if node in self.values:
            return self.values[node]
        fake = node.meta["val"]
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype, device=fake.device).zero_()

    def save(self, written: set[int]) -> None:
        """Copy what was read of memory that is written to next."""
        for read in self.reads if written else ():
            value = self.values.get(read[1])
            if read not in self.before and written & memory(value):
                self.before[read] = value.clone()  # type: ignore[union-attr]

    def release(self, node: fx.Node, written: set[int]) -> None:
        """Drop what an operator that is not constant writes to, or let it write to copies of that."""
        dropped = [old for old, value in self.values.items() if written & memory(value)]
        names = frozenset(self.targets[old.name] for old in dropped if old.op == "placeholder")
        if not names:
            self.copy(node, dropped)
            return
        self.written.append(names)
        for old in dropped:
            del self.values[old]

    def copy(self, node: fx.Node, constants: Sequence[fx.Node]) -> None:
        """From this node on, read copies of constants: of a tensor, and of all its views."""
        graph, copies = node.graph, dict[fx.Node, fx.Node]()
        for old in constants:
            with graph.inserting_before(node):
                if copies.keys().isdisjoint(old.all_input_nodes):
                    copies[old] = graph.call_function(torch.ops.aten.clone.default, (old,))
                    copies[old].meta = dict(old.meta)
                elif _written(old):  # its result is what it writes to
                    copies[old] = copies[_written(old)[0]]
                else:
                    copies[old] = graph.node_copy(old, lambda used: copies.get(used, used))
            old.replace_all_uses_with(copies[old], lambda user: not user < node)
            self.signature.replace_all_uses(old.name, copies[old].name)


def _has_shape(argument: Any) -> bool:
    """Whether an argument is a tensor of known sizes."""
    fake = argument.meta.get("val") if isinstance(argument, fx.Node) else None
    return isinstance(fake, Tensor) and not any(isinstance(size, torch.SymInt) for size in fake.shape)


def _written(node: fx.Node) -> list[fx.Node]:
    """The arguments that an operator writes to."""
    nodes: list[fx.Node] = []
    if isinstance(node.target, torch._ops.OpOverload):
        map_arg(written_arguments(node.target, node.args, node.kwargs), nodes.append)
    return nodes


def memory(value: Any) -> set[int]:
    """Where the elements of tensors are, of one or of several."""
    tensors = [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
    parts = [part for tensor in tensors for part in _parts(tensor)]
    return {part.untyped_storage().data_ptr() for part in parts}


def _parts(tensor: Tensor) -> tuple[Tensor, ...]:
    """The tensors in which the elements of one lie."""
    if tensor.layout is torch.strided:
        return (tensor,)
    return (tensor._values(),) if tensor.layout is torch.sparse_coo else (tensor.values(),)


def is_random(target: Any, args: Any, kwargs: Any) -> bool:
    """Whether an operator draws random numbers: PyTorch tags it so, and no argument turns it off."""
    if torch.Tag.nondeterministic_seeded not in getattr(target, "tags", ()):
        return False
    given = dict(zip([argument.name for argument in target._schema.arguments], args, strict=False)) | kwargs
    off = {"scaled_dot_product_attention": "dropout_p", "rrelu_with_noise_functional": "training"}
    name = off.get(target.overloadpacket.__name__)
    return name is None or bool(given.get(name, False))
