"""From a PyTorch module to a graph, one operator at a time."""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind
from torch.fx.node import map_arg
from torch.utils import _pytree as pytree

from conv2affine.network.comparison import check_repeats, tolerance_of
from conv2affine.network.graph import Graph, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.passes.simplify import remove_unused
from conv2affine.network.rules.operands import Context, NoRuleError, may_overflow, values
from conv2affine.network.torch.importing.arguments import FOR_NUMBERS, NEVER_TRUE, dtypes_of, find_rule
from conv2affine.network.torch.importing.call import AtenCall, operator_name, origin
from conv2affine.network.torch.importing.casts import begin_at_casts
from conv2affine.network.torch.importing.constants import SHAPE_ONLY, memory
from conv2affine.network.torch.importing.refusals import check_chance, check_result, check_state, check_tensor
from conv2affine.network.torch.models.advice import check_runs
from conv2affine.network.torch.models.held import Held, make_traceable
from conv2affine.network.torch.models.program import export, floating_dtypes
from conv2affine.network.torch.models.unchanged import unchanged, warm_up
from conv2affine.network.torch.noise import wider

aten = torch.ops.aten


@dataclasses.dataclass(frozen=True)
class TorchNetwork:
    """An imported module.

    Args:
        graph: Its values are those of a batch of one sample.
        leaves: Outputs of the module: values; tensors that do not depend on inputs; or other objects.
        structure: How the outputs are nested.
        dtypes: Floating dtypes of what depends on the inputs, the most frequent first.
        input_dtypes: Of the inputs, as the graph takes them.
        device: Of the module; of its inputs, if it holds no tensor.
    """

    graph: Graph
    leaves: list[Any]
    structure: pytree.TreeSpec
    dtypes: tuple[torch.dtype, ...]
    input_dtypes: tuple[torch.dtype, ...]
    device: torch.device

    @property
    def constants(self) -> list[Tensor]:
        """Outputs that do not depend on inputs, of other dtypes than the one in which the module computes most."""
        return [leaf for leaf in self.leaves if isinstance(leaf, Tensor)]

    @property
    def dtype(self) -> torch.dtype:
        """The dtype in which the module computes most."""
        return self.dtypes[0]


@np.errstate(all="ignore")  # constants may hold anything; what matters is checked
def import_torch(model: nn.Module, inputs: Sequence[Tensor], *, floats: bool = False) -> TorchNetwork:
    """The graph of a module for the first sample of its inputs, not simplified: one piece or step for each operator.

    With `floats`, it takes integer inputs, such as images, as floating point, if the module casts them.

    Raises:
        ValueError: If the result depends on chance or on the other samples of the batch, as in training mode; or on
            what the module keeps from one call to the next.
        NotImplementedError: If `torch.export` fails, or the exported graph has nodes that are not operators.
    """
    sample = tuple(x[:1].clone() for x in inputs)  # in memory of its own
    with unchanged(model) as before:
        replaced, outputs = warm_up(model, sample, before)
        check_runs(model, inputs, outputs[0])
        make_traceable(model)
        names = model.names if isinstance(model, Held) else []
        program = export(model, sample, replaced)
        if floats:
            begin_at_casts(program, floating_dtypes(program)[0])
        network = _Importer(program, sample, replaced, names).run()
        eps = max(torch.finfo(dtype).eps for dtype in network.dtypes)
        # A model that keeps a number, which the trace takes for a constant, does not.
        check_repeats(outputs[0], outputs[1], tolerance_of(eps))
        return network


class _Importer:
    def __init__(
        self, program: ExportedProgram, inputs: tuple[Tensor, ...], replaced: frozenset[str], names: Sequence[str]
    ) -> None:
        self.program = program
        self.names = dict(zip(program.graph_signature.user_inputs, names, strict=False))
        self.replaced = replaced  # buffers that each run replaces
        self.graph = Graph()
        self.results: dict[fx.Node, Any] = {}
        self.unsure: set[Value] = set()  # what may be infinite or no number for finite inputs
        self.parameters = frozenset(memory(program.state_dict))
        self.device = next(tensor.device for tensor in (*program.state_dict.values(), *inputs))
        self.nodes = {node.name: node for node in program.graph.nodes}
        self.inputs = {spec.arg.name: spec for spec in program.graph_signature.input_specs}
        self.dtypes = floating_dtypes(program)
        self.largest = min(torch.finfo(dtype).max for dtype in self.dtypes)

    def run(self) -> TorchNetwork:
        """Import all nodes."""
        for node in self.program.graph.nodes:
            if node.op == "placeholder":
                self.results[node] = self.placeholder(node)
            elif node.op == "call_function" and not isinstance(node.target, torch._ops.HigherOrderOperator):
                self.results[node] = self.call(node)
            elif node.op != "output":
                raise NotImplementedError(f"node {node.name} ({node.target}) of the exported graph must be an operator")
        check_state(self.program, self.replaced)
        specs = self.program.graph_signature.output_specs
        leaves = [self.output(spec.arg) for spec in specs if spec.kind == OutputKind.USER_OUTPUT]
        for leaf in leaves:
            if isinstance(leaf, Value):
                self.graph.add_output(leaf)
        graph = remove_unused(self.graph)
        for node in graph.nodes:
            if not all(value.shape for value in node.outputs):
                raise ValueError(
                    f"{', '.join(node.origin)} must not make one number of a whole batch; reduce each sample by "
                    "itself, over all axes but the first, as in x.flatten(1).sum(1)"
                )
        taken = tuple(self.nodes[name].meta["val"].dtype for name in self.program.graph_signature.user_inputs)
        return TorchNetwork(graph, leaves, self.program.call_spec.out_spec, self.dtypes, taken, self.device)

    def placeholder(self, node: fx.Node) -> Any:
        spec = self.inputs[node.name]
        if spec.kind is InputKind.USER_INPUT:
            return self.graph.add_input(node.meta["val"].shape, self.names.get(node.name) or node.name)
        check_tensor(spec)
        tensor = self.program.state_dict.get(spec.target)
        return (self.program.constants[spec.target] if tensor is None else tensor).detach()

    def output(self, argument: Any) -> Any:
        """A value, or an output that is not a tensor."""
        node = self.nodes.get(getattr(argument, "name", ""))
        if node is None:
            return getattr(argument, "value", None)
        result = self.own(node)
        if not isinstance(result, Tensor):
            return result
        if not result.dim():
            raise ValueError(
                f"output {node.name} must have one row per sample, and is one number; expand it to the batch"
            )
        if result.dtype is not self.dtypes[0]:
            return result
        return self.graph.add_piece(AffineMap.constant(result.double().cpu().numpy()), result.shape, node.name)

    def call(self, node: fx.Node) -> Any:
        """The value of a node: a tensor if it does not depend on inputs, else a value, or values by their number."""
        target: Any = node.target
        given: Any = (node.args, node.kwargs)
        args, kwargs = map_arg(given, self.results.__getitem__)
        if target is operator.getitem:
            return args[0][args[1]]
        if target is aten.sym_size.int:
            return args[0].shape[args[1]]
        if not isinstance(target, torch._ops.OpOverload):  # arithmetic of sizes
            return target(*args, **kwargs)
        name = operator_name(target)
        check_chance(node, args, kwargs)
        shape_only = name in SHAPE_ONLY
        call, inputs = AtenCall.of(target, *map_arg(given, self.blank if shape_only else self.own))
        if not inputs:
            return _constant(target, *((call.args, call.kwargs) if shape_only else (args, kwargs)))
        if node.meta.get("val") is None:  # it is an assertion
            return None
        is_unsure = not self.unsure.isdisjoint(inputs)
        is_unsure |= name in FOR_NUMBERS and may_overflow(self.graph, inputs, self.largest)
        if name in NEVER_TRUE and not is_unsure:
            return torch.zeros(inputs[0].shape, dtype=torch.bool)
        reached = [arg for arg in node.all_input_nodes if isinstance(self.results[arg], Value)]
        check_result(node, reached)
        several, fakes = isinstance(node.meta["val"], tuple | list), self.fakes(node)
        used: Any = tuple(sorted({user.args[1] for user in node.users if user.users})) if several else (0,)
        if not used:
            return ()
        if several:
            call = dataclasses.replace(call, results=used)
        shapes = tuple(tuple(fakes[number].shape) for number in used)
        context = Context(self.graph, call, inputs, shapes, self.parameters, origin(node))
        # What is computed in another dtype is rounded there, or is not a number.
        dtypes = dtypes_of(node, reached).union(fakes[number].dtype for number in used)
        others = sorted(map(str, dtypes - {self.dtypes[0]}))
        rule = None if is_unsure and name in FOR_NUMBERS else find_rule(target)
        reason = f"it is computed in {', '.join(others)}, and most in {self.dtypes[0]}" if rule else ""
        results: Any = None
        if rule and not others:
            try:
                results = values(context, rule, args, kwargs)
            except NoRuleError as error:
                reason = str(error)
        if results is None:
            exact, _ = AtenCall.of(target, *map_arg(given, self.results.__getitem__))
            call = dataclasses.replace(call, reason=reason, exact=exact)
            results = self.graph.add_kept(name, inputs, shapes, call, origin(node))
            is_unsure = True
        made = zip(results, used, strict=True)
        self.unsure.update(x for x, number in made if is_unsure and fakes[number].dtype is not torch.bool)
        return dict(zip(used, results, strict=True)) if several else results[0]

    def fakes(self, node: fx.Node) -> Sequence[Any]:
        """Tensors of the shapes and dtypes of a node's results; a size that is symbolic is found by running it."""
        result: Any = node.meta["val"]
        leaves = [leaf for leaf in pytree.tree_leaves(result) if leaf is not None]
        if any(isinstance(size, torch.SymInt) for leaf in leaves for size in leaf.shape):
            args, kwargs = map_arg((node.args, node.kwargs), self.blank)
            result = node.target(*args, **kwargs)  # type: ignore[operator]
        return result if isinstance(result, tuple | list) else [result]

    def blank(self, node: fx.Node) -> Any:
        """The result of a node; zeros of its shape and dtype if it depends on inputs."""
        result = self.results[node]
        if not isinstance(result, Value):
            return result
        fake = node.meta["val"]
        return torch.zeros(result.shape, dtype=fake.dtype, device=fake.device)

    def own(self, node: fx.Node) -> Any:
        """The result of a node, in its dtype in the module."""
        result = self.results[node]
        return result.to(node.meta["val"].dtype) if isinstance(result, Tensor) else result


def _constant(target: Any, args: Any, kwargs: Any) -> Any:
    """The result of an operator that does not depend on inputs.

    What decompositions compute from weights is part of the layers: in float64, except for views and casts.
    """
    name = operator_name(target)
    if name != "_to_copy" and not any(result.alias_info for result in target._schema.returns):
        args, kwargs = pytree.tree_map(wider, (args, kwargs))
    with torch.no_grad():
        result = target(*args, **kwargs)
    # Uninitialised elements are never read, but must not turn into NaN.
    return torch.zeros_like(result) if name == "empty" else result
