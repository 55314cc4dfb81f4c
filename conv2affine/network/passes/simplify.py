"""Passes that shrink a graph and change no result: they remove aliases, moves, equal nodes and unused nodes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.graph import Graph, Node, Piece, Step, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Selection

Rewritten = tuple[list[Node], Value] | None


def simplify(graph: Graph) -> Graph:
    """All passes of this module."""
    return remove_unused(_without_equal(_without_moves(_without_aliases(graph))))


def _without_aliases(graph: Graph) -> Graph:
    """Without the pieces whose output is one of their inputs, as after a reshape."""
    return rewrite(graph, lambda node: ([], node.map.alias) if isinstance(node, Piece) and node.map.alias else None)


def _without_moves(graph: Graph) -> Graph:
    """With windows of elements where they come from, in place of windows of what only moves them, each once.

    A file's Gather and ReduceMax becomes the same as the max pooling that it was.
    """
    moves = {node.output: node for node in graph.nodes if isinstance(node, Piece)}
    nodes = [
        _unmoved(node, moves) if isinstance(node, Step) and "windows" in node.parameters else node
        for node in graph.nodes
    ]
    return dataclasses.replace(graph, nodes=nodes)


def _unmoved(step: Step, moves: Mapping[Value, Piece]) -> Step:
    """A step over windows, of elements where they come from."""
    [value], windows, origin = step.inputs, step.parameters["windows"], step.origin
    while value in moves and windows.size <= value.size and len(moves[value].map.terms) == 1:
        map = moves[value].map
        [(source, matrix)] = map.terms.items()
        if not isinstance(matrix, Selection) or matrix.scale is not None or map.bias.any():
            break
        index = matrix.split().index
        places = windows if index is None else np.where(windows < 0, -1, index[windows])
        if (places[windows >= 0] < 0).any():  # zeros
            break
        origin = tuple(dict.fromkeys((*moves[value].origin, *origin)))
        value, windows = source, places
    if value is step.inputs[0]:
        return step
    parameters = {**step.parameters, "windows": windows}
    return dataclasses.replace(
        step, inputs=(value,), shapes=(value.shape,), call=None, origin=origin, parameters=parameters
    )


def _without_equal(graph: Graph) -> Graph:
    """With one node in place of all that compute the same from the same values."""
    seen: dict[Hashable, list[Node]] = {}

    def rule(node: Node) -> Rewritten:
        if len(node.outputs) > 1:
            return None
        same = seen.setdefault((type(node), getattr(node, "kind", ""), node.inputs), [])
        for other in same:
            if is_equal(_content(node), _content(other)):
                return [], other.outputs[0]
        same.append(node)
        return None

    return rewrite(graph, rule)


def remove_unused(graph: Graph) -> Graph:
    """Without the nodes that no output needs."""
    needed = set(graph.outputs)
    nodes: list[Node] = []
    for node in reversed(graph.nodes):
        if needed.intersection(node.outputs):
            needed.update(node.inputs)
            nodes.append(node)
    return dataclasses.replace(graph, nodes=nodes[::-1])


def replace_inputs(node: Node, names: Mapping[Value, Value]) -> Node:
    """The same node with other inputs."""
    if not any(value in names for value in node.inputs):
        return node
    if not isinstance(node, Piece):
        return dataclasses.replace(node, inputs=tuple(names.get(value, value) for value in node.inputs))
    map, origins = AffineMap[Value]({}, node.map.bias), dict[Value, tuple[str, ...]]()
    for source, matrix in node.map.terms.items():
        name = names.get(source, source)
        map = map.plus({name: matrix})
        origins[name] = tuple(dict.fromkeys(origins.get(name, ()) + node.origins[source]))
    return Piece(node.output, map, origins)


def rewrite(graph: Graph, rule: Callable[[Node], Rewritten]) -> Graph:
    """With what a rule gives in place of each node of one output: other nodes, and the value; None keeps the node."""
    names: dict[Value, Value] = {}
    nodes: list[Node] = []
    for old in graph.nodes:
        node = replace_inputs(old, names)
        found = rule(node)
        if found is None:
            nodes.append(node)
        else:
            made, names[node.outputs[0]] = found
            nodes += made
    return dataclasses.replace(graph, nodes=nodes, outputs=[names.get(value, value) for value in graph.outputs])


def _content(node: Node) -> Any:
    """Everything that determines what a node computes from its inputs."""
    if isinstance(node, Piece):
        return node.map.bias, list(node.map.terms.values())
    return node.shapes, node.call, dict(node.parameters) if isinstance(node, Step) else None


def is_equal(first: Any, second: Any) -> bool:
    """Whether two trees of arrays, tensors, dataclasses and plain objects are equal."""
    if first is second:
        return True
    if type(first) is not type(second):
        return False
    if isinstance(first, np.ndarray):
        return np.array_equal(first, second, equal_nan=True)
    if isinstance(first, torch.Tensor):
        if (first.dtype, first.shape) != (second.dtype, second.shape):
            return False
        return bool(((first == second) | (first.isnan() & second.isnan())).all())
    if isinstance(first, csr_array):
        parts = [[matrix.shape, matrix.data, matrix.indices, matrix.indptr] for matrix in (first, second)]
        return is_equal(*parts)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(is_equal(first[key], second[key]) for key in first)
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(is_equal, first, second))
    if dataclasses.is_dataclass(first):
        return all(
            is_equal(getattr(first, field.name), getattr(second, field.name)) for field in dataclasses.fields(first)
        )
    try:
        return bool(first == second)
    except (TypeError, ValueError):
        return False


def rounded(tree: Any, dtype: torch.dtype) -> Any:
    """A tree, as for `is_equal`, with all floating-point arrays and tensors rounded to a dtype."""
    if isinstance(tree, np.ndarray) and tree.dtype.kind == "f":
        return rounded(torch.from_numpy(tree.astype(np.float64)), dtype)
    if isinstance(tree, torch.Tensor):
        return tree.detach().cpu().to(dtype) if tree.is_floating_point() else tree
    if isinstance(tree, dict):
        return {key: rounded(value, dtype) for key, value in tree.items()}
    return type(tree)(rounded(value, dtype) for value in tree) if type(tree) in (list, tuple) else tree
