"""The graph of a network as JSON, for a file: data only, of which nothing is executed.

Values have numbers: first the inputs, then what each node computes. What is large is in datasets of the file:

    layers/N             the matrix of layer N
    biases/N             the bias of node N, float64; it has none where all of it is zero
    parameters/N/NAME    a parameter of node N that is not a single number
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Piece, Step, Value
from conv2affine.network.matrices.matrix import Matrix, Selection
from conv2affine.network.report import NetworkPlan
from conv2affine.network.torch.importing.importer import TorchNetwork
from conv2affine.network.torch.layers import NetworkLayout, choose_layout

VERSION = 1
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16)


class Layer(NamedTuple):
    """A matrix for a file, in this layout."""

    name: str
    matrix: Matrix
    layout: str


class Description(NamedTuple):
    """A network for a file.

    Args:
        text: What becomes JSON.
        layers: The matrices, in the order of their numbers.
        arrays: The datasets of biases and parameters, by name.
    """

    text: dict[str, Any]
    layers: list[Layer]
    arrays: dict[str, Any]


def describe_network(network: TorchNetwork, plan: NetworkPlan, layout: NetworkLayout) -> Description:
    """The description of a network of pieces and steps.

    Args:
        network: Its graph has no `Kept` nodes.
        plan: That of the network.
        layout: As `to_linear_network` takes it.

    Raises:
        NotImplementedError: If the outputs are nested in anything but tuples, lists and dicts.
    """
    graph = network.graph
    values = [*graph.inputs, *(node.outputs[0] for node in graph.nodes)]
    numbers = {value: number for number, value in enumerate(values)}
    nodes: list[dict[str, Any]] = []
    layers: list[Layer] = []
    arrays: dict[str, Any] = {}
    for n, node in enumerate(graph.nodes):
        if isinstance(node, Piece):
            terms = []
            for source, matrix in node.map.terms.items():
                term: dict[str, Any] = {"source": numbers[source], "origin": node.origins[source]}
                if not (isinstance(matrix, Selection) and matrix.is_identity):
                    term["layout"] = choose_layout(matrix, plan.dtype, layout)
                    layers.append(Layer((node.origins[source] or node.origin)[0], matrix, term["layout"]))
                terms.append(term)
            has_bias = bool(node.map.bias.any()) or not terms
            if has_bias:
                arrays[f"biases/{n}"] = node.map.bias
            nodes.append({"terms": terms, "bias": has_bias, "origin": [node.output.name]})
        elif isinstance(node, Step):
            parameters: dict[str, Any] = {}
            for name, parameter in node.parameters.items():
                array = np.asarray(parameter, np.int64 if name == "windows" else np.float64)
                parameters[name] = array.shape or array.item()
                if array.shape:
                    arrays[f"parameters/{n}/{name}"] = array
            inputs = [numbers[value] for value in node.inputs]
            nodes.append({"kind": node.kind, "inputs": inputs, "parameters": parameters, "origin": node.origin})
        nodes[n]["size"] = node.outputs[0].size
    text = {
        "version": VERSION,
        "dtype": str(plan.dtype).removeprefix("torch."),
        "inputs": [(value.name, value.shape) for value in graph.inputs],
        "nodes": nodes,
        "outputs": [(numbers[v], shape) for v, shape in zip(graph.outputs, graph.output_shapes, strict=True)],
        "structure": _structure(network),
        "plan": [dataclasses.astuple(row)[:-1] for row in plan.rows],  # without the reasons of kept steps: it has none
    }
    return Description(text, layers, arrays)


def _structure(network: TorchNetwork) -> Any:
    """How the outputs are nested, with their numbers as leaves."""
    for leaf in network.leaves:
        if not isinstance(leaf, Value):
            raise NotImplementedError(
                f"outputs must depend on the inputs to be saved in a file, and one is {leaf!r}; let the model leave "
                "it out"
            )

    def nested(item: Any) -> Any:
        if type(item) is int:
            return item
        if type(item) in (tuple, list):
            return {type(item).__name__: [nested(part) for part in item]}
        if type(item) is dict and all(type(key) is str for key in item):
            return {"dict": {key: nested(part) for key, part in item.items()}}
        raise NotImplementedError(
            "outputs must be in tuples, lists and dicts with strings as keys to be saved in a file, and are in a "
            f"{type(item).__name__}; let the model return a tuple"
        )

    return nested(pytree.tree_unflatten(list(range(len(network.leaves))), network.structure))
