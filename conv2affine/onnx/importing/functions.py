"""Writes out the functions of a model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from graphlib import CycleError, TopologicalSorter

from onnx import FunctionProto, GraphProto, ModelProto, NodeProto, defs
from onnx.checker import check_function

from conv2affine.onnx.model import one_line

MAX_NODES = 1_000_000  # of a model with its functions written out
Key = tuple[str, str, str]


def inlined(proto: ModelProto) -> ModelProto:
    """The model with its functions written out.

    Raises:
        ValueError: If they call themselves, have the name of an operator, or expand to too many nodes; or if they are
            of another opset than the model, or are called with too many arguments.
        onnx.checker.ValidationError: If one breaks the rules of ONNX.
    """
    if not proto.functions:
        return proto
    from onnx_ir import from_proto, to_proto  # takes a fifth of a second, and few models have functions
    from onnx_ir.passes.common import InlinePass

    _check_functions(proto)
    try:
        model = from_proto(proto)
        InlinePass()(model)  # onnx.inliner ignores the defaults of attributes
        made: ModelProto = to_proto(model)
    except Exception as error:  # of any kind, and only the first in the chain says what is wrong
        cause: BaseException = error
        while cause.__cause__ is not None:
            cause = cause.__cause__
        raise ValueError(f"functions of the model must be ones that onnx_ir writes out: {one_line(cause)}") from error
    return made


def _key(named: NodeProto | FunctionProto) -> Key:
    name = named.op_type if isinstance(named, NodeProto) else named.name
    return ("" if named.domain == "ai.onnx" else named.domain), name, named.overload


def _check_functions(proto: ModelProto) -> None:
    """Raise an error if functions are broken, call themselves, are not unique, or have too many nodes written out."""
    functions = {_key(function): function for function in proto.functions}
    if len(functions) < len(proto.functions):
        raise ValueError("functions of the model must differ in their domain, name or overload, and some do not")
    for (domain, name, _), function in functions.items():
        if not domain and defs.has(name):
            raise ValueError(
                f"function {name} must not have the name of an operator: runtimes differ in which they take"
            )
        check_function(function)
        made = {*function.input, *(output for node in function.node for output in node.output)}
        for output in {*function.output} - made:
            raise ValueError(f"function {name} must make all its outputs, and does not make {output}")
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
