"""From a graph to a `torch.fx.GraphModule` of linear layers and the nonlinear steps as they were."""

from __future__ import annotations

import operator
import re
from collections import Counter
from collections.abc import Callable
from itertools import count
from keyword import iskeyword
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, fx, nn
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Kept, Piece, Step, Value, unused
from conv2affine.network.matrices.matrix import Array, Matrix
from conv2affine.network.torch.importing.call import AtenCall
from conv2affine.network.torch.importing.importer import TorchNetwork
from conv2affine.network.torch.models.held import is_taken
from conv2affine.network.torch.modules import Container, PerSample
from conv2affine.network.torch.noise import wider

Make = Callable[[str, Matrix, Array | None], nn.Module]
Cast = Callable[[torch.dtype], torch.dtype]
Node = Any  # of a graph, or its value


def export_torch(network: TorchNetwork, cast: Cast, make: Make) -> fx.GraphModule:
    """The module of a network, with its graph after all passes: it takes and returns what the imported one does.

    `cast` maps a dtype of the imported module to that of the result; `make` takes a name, a matrix and a bias, and
    gives a layer.
    """
    root, graph = nn.Module(), fx.Graph()
    Exporter(network, cast, make, root, graph).run()
    # Here, so that code is generated once. No call has a side effect.
    graph.eliminate_dead_code(lambda node: node.op in ("placeholder", "output"))
    return fx.GraphModule(root.to(network.device), graph, "LinearNetwork").eval()


class Exporter:
    """Writes the calls of a network into an `fx.Graph`, or what has its methods; layers and constants into `root`."""

    def __init__(self, network: TorchNetwork, cast: Cast, make: Make, root: nn.Module, graph: Any) -> None:
        self.network, self.cast, self.make, self.root, self.graph = network, cast, make, root, graph
        self.nodes: dict[Value, Any] = {}
        self.first: Any = None

    def run(self) -> None:
        """Emit the inputs, the nodes and the outputs."""
        graph = self.network.graph
        for value in graph.inputs:
            node = self.graph.placeholder(value.name)
            self.first = node if self.first is None else self.first
            self.nodes[value] = self.flat(node, value.shape)
        users = Counter(value for node in graph.nodes for value in node.inputs) + Counter(graph.outputs)
        for item in graph.nodes:
            if isinstance(item, Piece):
                self.nodes[item.output] = self.piece(item)
            else:
                self.step(item)
            for value in item.inputs:
                users[value] -= 1
                if not users[value]:
                    del self.nodes[value]
        results = iter([self.shaped(self.nodes[v], s) for v, s in zip(graph.outputs, graph.output_shapes, strict=True)])
        self.output([next(results) if isinstance(leaf, Value) else self.leaf(leaf) for leaf in self.network.leaves])

    def leaf(self, leaf: Any) -> Any:
        """An output that does not depend on inputs."""
        return self.constant(leaf) if isinstance(leaf, Tensor) else leaf

    def output(self, leaves: list[Any]) -> None:
        """The outputs, nested as those of the model."""
        structure = self.network.structure
        if _is_plain(structure):
            self.graph.output(pytree.tree_unflatten(leaves, structure))
            return
        name = self.unused("container")  # fx would write the container's name into the code, or make a dict of it
        self.root.add_module(name, Container(structure))
        self.graph.output(self.graph.call_module(name, tuple(leaves)))

    def piece(self, piece: Piece) -> Node:
        """The sum of a layer for each source; a source that is only added needs none."""
        if not piece.map.terms:
            return self.constant(torch.from_numpy(piece.map.bias[None]).to(self.cast(self.network.dtype)))
        bias = piece.map.bias if piece.map.bias.any() else None
        added, operands = piece.without_layer(), []
        for source, matrix in piece.map.terms.items():
            node = self.nodes[source]
            if source not in added:
                node = self.layer(piece.origins.get(source) or piece.origin, node, matrix, bias)
                bias = None
            operands.append(node)
        total = operands[0]
        for operand in operands[1:]:
            total = self.graph.call_function(torch.add, (total, operand))
        return total

    def layer(self, origin: tuple[str, ...], node: Node, matrix: Matrix, bias: Any) -> Node:
        """A linear layer, named after the first module whose work it does."""
        name = self.unused(origin[0])
        self.root.add_module(name, self.make(name, matrix, bias))
        return self.graph.call_module(name, (node,))

    def step(self, step: Step | Kept) -> None:
        """A nonlinear step on flat vectors, or on tensors of its own shape."""
        inputs = [self.nodes[value] for value in step.inputs]
        if isinstance(step, Step) and step.call is None:
            self.nodes[step.outputs[0]] = self.kind(step, inputs)
            return
        op: AtenCall = step.call
        if op.reads_memory:
            inputs = [self.graph.call_method("contiguous", (node,)) for node in inputs]
        shapes = [*step.shapes, *(value.shape for value in step.outputs)]
        if op.runs_on_vectors(shapes):
            result: Any = self.call(self.graph, self.root, op, inputs)
            shapes = [(1, value.size) for value in step.outputs]
        elif op.runs_on_batches(step.shapes, [value.shape for value in step.outputs]):
            shaped = [self.shaped(node, shape) for node, shape in zip(inputs, step.shapes, strict=True)]
            result = self.call(self.graph, self.root, op, shaped)
            shapes = [value.shape for value in step.outputs]
        else:
            whole = [self.graph.call_method("unflatten", (n, 1, s)) for n, s in zip(inputs, step.shapes, strict=True)]
            name = self.unused(step.name)
            origin = f"{', '.join(step.origin)} ({step.kind})"
            self.root.add_module(name, PerSample(self.inner(op, len(inputs)), origin))
            result = self.graph.call_module(name, tuple(whole))
            shapes = [(1, *value.shape) for value in step.outputs]
        results = [result]
        if op.results is not None:
            results = [self.graph.call_function(operator.getitem, (result, number)) for number in op.results]
        for value, node, shape in zip(step.outputs, results, shapes, strict=True):
            self.nodes[value] = self.flat(node, shape)

    def kind(self, step: Step, inputs: list[Node]) -> Node:
        """A step that its kind defines."""
        if step.kind in SIMPLE:
            return self.graph.call_function(SIMPLE[step.kind], tuple(inputs))
        if "windows" in step.parameters:
            return self.window(step, inputs[0])
        if step.kind == "leaky_relu":
            slope = np.asarray(step.parameters["slope"])
            if slope.ndim:
                return self.graph.call_function(F.prelu, (inputs[0], self.parameter(slope)))
            return self.graph.call_function(F.leaky_relu, (inputs[0], slope.item()))
        if step.kind == "clip":
            ends = [np.asarray(step.parameters[name]) for name in ("low", "high")]
            if any(end.ndim for end in ends):  # torch.clamp takes two numbers, or two tensors
                low, high = map(self.parameter, ends)
            else:
                low, high = (None if np.isinf(end) else end.item() for end in ends)
            return inputs[0] if low is high is None else self.graph.call_function(torch.clamp, (inputs[0], low, high))
        raise NotImplementedError(f"a step of kind {step.kind} from {step.origin} has no operator to run it")

    def window(self, step: Step, node: Node) -> Node:
        """The largest or the smallest element of each window."""
        reduce, nothing = (torch.amax, -np.inf) if step.kind == "window_max" else (torch.amin, np.inf)
        windows = np.asarray(step.parameters["windows"])
        some = windows.max(1, keepdims=True)
        windows = np.where(windows < 0, some, windows)  # an element twice for -1, which is none
        if (some < 0).any():  # an element at the end that is neither
            node = self.graph.call_function(F.pad, (node, (0, 1), "constant", nothing))
        index = self.buffer(self.root, self.graph, torch.from_numpy(windows))
        elements = self.graph.call_function(operator.getitem, (node, (slice(None), index)))
        return self.graph.call_function(reduce, (elements, 2))

    def parameter(self, array: Any) -> Node:
        """A parameter of a step, as a tensor."""
        tensor = torch.from_numpy(np.array(array)).to(self.cast(self.network.dtype))
        return self.buffer(self.root, self.graph, tensor)

    def constant(self, tensor: Tensor) -> Node:
        """A constant of one sample, repeated for each sample."""
        samples = self.graph.call_method("size", (self.first, 0))
        one = self.buffer(self.root, self.graph, tensor)
        return self.graph.call_method("repeat", (one, samples, *[1] * (tensor.dim() - 1)))

    def buffer(self, root: nn.Module, graph: fx.Graph, tensor: Tensor) -> Node:
        """A constant tensor."""
        name = next(name for number in count() if not hasattr(root, name := f"constant_{number}"))
        root.register_buffer(name, tensor.to(self.network.device, self.cast(tensor.dtype), copy=True))
        return graph.get_attr(name)

    def call(self, graph: fx.Graph, root: nn.Module, op: AtenCall, inputs: list[Node]) -> Node:
        """A call of an operator, with its constant tensors as buffers."""

        def constant(argument: Any) -> Any:
            if isinstance(argument, Tensor):
                return self.buffer(root, graph, argument.detach())
            return self.cast(argument) if isinstance(argument, torch.dtype) else argument

        # In float64, no constant is rounded to a narrower dtype.
        own = op.exact if self.cast is wider and op.exact else op
        args, kwargs = map_aggregate(own.filled(inputs), constant)
        return graph.call_function(op.target, args, kwargs)

    def inner(self, op: AtenCall, inputs: int) -> fx.GraphModule:
        """A module of one operator."""
        root, graph = nn.Module(), fx.Graph()
        graph.output(self.call(graph, root, op, [graph.placeholder(f"x{number}") for number in range(inputs)]))
        return fx.GraphModule(root, graph)

    def flat(self, node: Node, shape: tuple[int, ...]) -> Node:
        """A batch of tensors of this shape, with their first axes joined, as one vector per sample."""
        if shape[0] != 1:
            node, shape = self.graph.call_method("unflatten", (node, 0, (-1, shape[0]))), (1, *shape)
        if len(shape) == 2:
            return node
        return self.graph.call_method("unsqueeze" if len(shape) == 1 else "flatten", (node, 1))

    def shaped(self, node: Node, shape: tuple[int, ...]) -> Node:
        """One vector per sample as a batch of tensors of shape (1, ...)."""
        if len(shape) == 1:
            return self.graph.call_method("flatten", (node,))
        if shape[0] != 1:  # a reshape to (-1, ...) would not do where there are no elements
            return self.graph.call_method("flatten", (self.graph.call_method("unflatten", (node, 1, shape)), 0, 1))
        return node if len(shape) == 2 else self.graph.call_method("unflatten", (node, 1, shape[1:]))

    def unused(self, origin: str) -> str:
        """A name for a module that is not taken yet."""
        name = re.sub(r"\W+", "_", origin).strip("_") or "layer"
        name = f"_{name}" if name[0].isdigit() or iskeyword(name) or name in ("self", "plan") else name
        return unused(name, lambda taken: hasattr(self.root, taken) or is_taken(taken))


SIMPLE: dict[str, Callable[..., Any]] = {
    "relu": torch.relu,
    "abs": torch.abs,
    "maximum": torch.maximum,
    "minimum": torch.minimum,
}


def _is_plain(structure: pytree.TreeSpec) -> bool:
    """Whether outputs are nested in tuples, lists and dicts only, which fx writes into the code."""
    nested = structure.type in (tuple, list, dict)
    return structure.is_leaf() or (nested and all(map(_is_plain, structure.children())))
