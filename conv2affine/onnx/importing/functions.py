"""Writes out the functions of a model. onnx.inliner ignores the defaults of their attributes, among other things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter

from onnx import AttributeProto, FunctionProto, GraphProto, ModelProto, NodeProto, defs, helper

from conv2affine.onnx.model import location

MAX_NODES = 1_000_000  # of a model with its functions written out
STANDARD = ("", "ai.onnx")
Key = tuple[str, str, str]


def inlined(proto: ModelProto) -> ModelProto:
    """The model with its functions written out.

    Raises:
        ValueError: If they call themselves, expand to too many nodes, or have the name of an operator; or if one of
            their operators means something else in the opset of the model.
        NotImplementedError: If they have subgraphs.
    """
    if not proto.functions:
        return proto
    functions = {_key(function): function for function in proto.functions}
    _check_functions(proto, functions)
    nodes = list(_Inliner(proto, functions).nodes())
    del proto.functions[:]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    return proto


@dataclass(frozen=True)
class _Scope:
    """The body of a function that is called, and what its names and attributes stand for."""

    nodes: Iterator[NodeProto]
    names: dict[str, str]
    attributes: Mapping[str, AttributeProto]


class _Inliner:
    def __init__(self, proto: ModelProto, functions: Mapping[Key, FunctionProto]) -> None:
        self.graph = proto.graph
        self.functions = functions
        self.opset = _opset(proto)
        self.taken = taken(proto.graph)
        self.counts: Counter[str] = Counter()

    def nodes(self) -> Iterator[NodeProto]:
        """All nodes, in order, with those of a function in the place of its call."""
        scopes = [_Scope(iter(list(self.graph.node)), {}, {})]
        while scopes:
            node = next(scopes[-1].nodes, None)
            if node is None:
                scopes.pop()
                continue
            if len(scopes) > 1:
                node = self.renamed(node, scopes[-1])
            function = self.functions.get(_key(node))
            if function is None:
                yield node
            else:
                scopes.append(self.scope(function, node))

    def renamed(self, node: NodeProto, scope: _Scope) -> NodeProto:
        """A node of a function, as one of the model."""
        made: NodeProto = NodeProto.FromString(node.SerializeToString())
        for names in (made.input, made.output):
            names[:] = [self.fresh(name, scope) for name in names]
        del made.attribute[:]
        for attribute in node.attribute:
            if not attribute.ref_attr_name:
                made.attribute.append(attribute)
            elif attribute.ref_attr_name in scope.attributes:
                made.attribute.append(scope.attributes[attribute.ref_attr_name])
                made.attribute[-1].name = attribute.name
        return made

    def fresh(self, name: str, scope: _Scope) -> str:
        """What a name of a function is in the model: the first time, a new name."""
        if name and name not in scope.names:
            made = name
            while made in self.taken:
                self.counts[name] += 1
                made = f"{name}__{self.counts[name]}"
            self.taken.add(made)
            scope.names[name] = made
        return scope.names.get(name, "")

    def scope(self, function: FunctionProto, call: NodeProto) -> _Scope:
        """The function, with the arguments of a call."""
        if len(call.input) > len(function.input) or len(call.output) > len(function.output):
            raise ValueError(
                f"{function.name} node {location(call)} must have at most the {len(function.input)} inputs and "
                f"{len(function.output)} outputs of its function, got {len(call.input)} and {len(call.output)}"
            )
        names = dict.fromkeys(function.input, "") | dict(zip(function.input, call.input, strict=False))
        copies = []
        for name, result in zip(function.output, call.output, strict=False):
            if result and name in names:  # an input, or given twice
                copies.append(helper.make_node("Identity", [name], [f"{name}/{result}"]))
                names[f"{name}/{result}"] = result
            elif result:
                names[name] = result
        self.check(function)
        attributes = {attribute.name: attribute for attribute in (*function.attribute_proto, *call.attribute)}
        return _Scope(iter([*function.node, *copies]), names, attributes)

    def check(self, function: FunctionProto) -> None:
        """Raise an error if the body means something else in the model."""
        opset = _opset(function)
        for node in function.node:
            for attribute in node.attribute:
                if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
                    raise NotImplementedError(
                        f"{node.op_type} node {location(node)} of function {function.name}: subgraphs, as in attribute "
                        f"{attribute.name}, are not supported"
                    )
            is_standard = node.domain in STANDARD and _key(node) not in self.functions
            if is_standard and _version(node.op_type, opset) != _version(node.op_type, self.opset):
                raise ValueError(
                    f"{node.op_type} of function {function.name} must mean the same in the opset of the function "
                    f"({opset}) and in that of the model ({self.opset}), and has changed; write both in one opset"
                )


def _key(named: NodeProto | FunctionProto) -> Key:
    name = named.op_type if isinstance(named, NodeProto) else named.name
    return ("" if named.domain in STANDARD else named.domain), name, named.overload


def _opset(holder: ModelProto | FunctionProto) -> int:
    """The opset of its standard operators; 0 if it has none."""
    return next((entry.version for entry in holder.opset_import if entry.domain in STANDARD), 0)


def _version(op_type: str, opset: int) -> int:
    """The opset since when an operator is as it is in `opset`; 0 if it is not there."""
    try:
        return int(defs.get_schema(op_type, opset, "").since_version)
    except defs.SchemaError:
        return 0


def _check_functions(proto: ModelProto, functions: Mapping[Key, FunctionProto]) -> None:
    """Raise an error if functions call themselves, are not unique, or have too many nodes when written out."""
    if len(functions) < len(proto.functions):
        raise ValueError("functions of the model must differ in their domain, name or overload, and some do not")
    for domain, name, _ in functions:
        if not domain and defs.has(name):
            raise ValueError(
                f"function {name} must not have the name of an operator: runtimes differ in which they take"
            )
    called = {key: Counter(map(_key, all_nodes(function.node))) for key, function in functions.items()}
    counts: dict[Key, int] = {}
    try:
        for key in TopologicalSorter(
            {key: [*filter(functions.get, calls)] for key, calls in called.items()}
        ).static_order():
            counts[key] = sum(times * counts.get(callee, 1) for callee, times in called[key].items())
    except CycleError as error:
        names = ", ".join(name for _, name, _ in error.args[1][:3])
        raise ValueError(f"functions of the model must not call themselves, and these do: {names}") from None
    total = sum(counts.get(_key(node), 1) for node in all_nodes(proto.graph.node))
    if total > MAX_NODES:
        raise ValueError(f"the model must have at most {MAX_NODES} nodes, and its functions written out have {total}")


def taken(graph: GraphProto) -> set[str]:
    """All names of tensors in a graph."""
    tensors = (*graph.input, *graph.initializer)
    return {tensor.name for tensor in tensors} | {
        name for node in all_nodes(graph.node) for name in (*node.input, *node.output)
    }


def all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from all_nodes(graph.node)
