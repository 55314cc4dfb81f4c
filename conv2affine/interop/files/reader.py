"""From the description of a network to the network; whatever the file is, it is a network or refused."""

from __future__ import annotations

from collections.abc import Callable
from keyword import iskeyword
from math import prod
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conv2affine.interop.files.description import FLOATS, VERSION
from conv2affine.network.graph import Graph, Piece, Step, Value
from conv2affine.network.kinds import FORMS
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.matrix import Array, Matrix, Selection
from conv2affine.network.report import NetworkPlan, Row
from conv2affine.network.torch.importing.importer import TorchNetwork

DTYPES = {str(dtype).removeprefix("torch."): dtype for dtype in FLOATS}


class Datasets(Protocol):
    """Those of a file."""

    def tensor(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A dataset, which must have this dtype and shape."""

    def matrix(self, name: str, layout: str, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """The weight of a layer."""


class Stored(Matrix):
    """A matrix in a file.

    Args:
        weight: In the memory of the file.
    """

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    @property
    def shape(self) -> tuple[int, int]:
        rows, cols = self.weight.shape
        return rows, cols


def read_network(text: Any, datasets: Datasets) -> TorchNetwork:
    """The network of a description.

    Raises:
        ValueError: If it is not one of `describe_network`; or KeyError, TypeError, IndexError or AttributeError.
    """
    return _Reader(text, datasets).run()


def read_plan(text: Any) -> NetworkPlan:
    """The plan of a description."""
    rows = []
    for name, kind, *numbers, sizes, layout, ranks in text["plan"]:
        height, width, nnz = map(int, numbers)
        by_layout = tuple((str(each), int(size)) for each, size in sizes)
        rows.append(Row(str(name), str(kind), height, width, nnz, by_layout, str(layout), int(ranks)))
    return NetworkPlan(tuple(rows), DTYPES[text["dtype"]])


class _Reader:
    def __init__(self, text: Any, datasets: Datasets) -> None:
        self.text, self.datasets = text, datasets
        self.dtype = DTYPES[text["dtype"]]
        self.graph = Graph()
        self.values: list[Value] = []
        self.layers = 0

    def run(self) -> TorchNetwork:
        """Read the inputs, the nodes and the outputs."""
        text, graph = self.text, self.graph
        _check(text["version"] == VERSION, f"version {text['version']!r} must be {VERSION}")
        for name, shape in text["inputs"]:
            # It becomes an argument's name in the code of the module.
            _check(name.isidentifier() and not iskeyword(name), f"the name of an input, {name!r}, must be one")
            self.values.append(graph.add_input(_sizes(shape), name))
        names = [value.name for value in self.values]
        _check(len(set(names)) == len(names) > 0, f"inputs must have different names, {names}")
        for number, node in enumerate(text["nodes"]):
            make: Callable[..., Piece | Step] = self.piece if "terms" in node else self.step
            [size] = _sizes([node["size"]])
            graph.nodes.append(make(number, node, size, tuple(map(str, node["origin"]))))
            self.values.append(graph.nodes[-1].outputs[0])
        for value, shape in text["outputs"]:
            graph.outputs.append(self.value(value))
            graph.output_shapes.append(_sizes(shape))
            _check(prod(shape) == graph.outputs[-1].size, f"an output of {graph.outputs[-1].size} must fit {shape}")
        leaves, structure = pytree.tree_flatten(_nested(text["structure"]))
        _check(leaves == list(range(len(graph.outputs))), f"outputs must be returned once each, {leaves}")
        dtypes = (self.dtype,) * len(graph.inputs)
        return TorchNetwork(graph, [*graph.outputs], structure, (self.dtype,), dtypes, torch.device("cpu"))

    def value(self, number: int) -> Value:
        """A value of a node before."""
        _check(isinstance(number, int) and 0 <= number < len(self.values), f"value {number!r} must come before")
        return self.values[number]

    def piece(self, number: int, node: Any, size: int, origin: tuple[str, ...]) -> Piece:
        """An affine piece, whose matrices are in the file."""
        terms: dict[Value, Matrix] = {}
        origins = {}
        for term in node["terms"]:
            source = self.value(term["source"])
            _check(source not in terms, f"source {term['source']} of node {number} must be there once")
            if "layout" in term:
                shape = size, source.size
                weight = self.datasets.matrix(f"layers/{self.layers}/", term["layout"], self.dtype, shape)
                terms[source], self.layers = Stored(weight), self.layers + 1
            else:
                _check(source.size == size, f"source {term['source']} of node {number} must have {size} elements")
                terms[source] = Selection(None, size)
            origins[source] = tuple(map(str, term["origin"]))
        _check(bool(terms) or node["bias"] is True, f"node {number} must have a source or a bias")
        bias = self.array(f"biases/{number}", (size,)) if node["bias"] else np.zeros(size)
        return Piece(Value((1, size), *origin), AffineMap(terms, bias), origins)

    def step(self, number: int, node: Any, size: int, origin: tuple[str, ...]) -> Step:
        """A step of one of the kinds."""
        count, names = FORMS[node["kind"]]
        inputs = tuple(self.value(each) for each in node["inputs"])
        _check(len(inputs) == count, f"node {number} must have {count} inputs")
        _check({*names} == {*node["parameters"]}, f"node {number} must have parameters {names}")
        is_window = "windows" in names
        _check(is_window or {value.size for value in inputs} == {size}, f"inputs of node {number} must have its size")
        parameters: dict[str, Any] = {}
        for name, given in node["parameters"].items():
            if is_window:
                rows, width = _sizes(given)
                _check(rows == size and width > 0, f"node {number} must have {size} windows")
                windows = self.datasets.tensor(f"parameters/{number}/{name}", torch.int64, (rows, width)).numpy()
                inside = windows.min() >= -1 and windows.max() < inputs[0].size
                _check(inside, f"windows of node {number} must read its input")
                parameters[name] = windows
            elif isinstance(given, list):
                _check(given == [size], f"{name} of node {number} must have {size} elements")
                parameters[name] = self.array(f"parameters/{number}/{name}", (size,))
            else:
                parameters[name] = np.array(float(given))
        shapes = tuple(value.shape for value in inputs)
        return Step(node["kind"], inputs, shapes, (Value((1, size)),), parameters, None, origin)

    def array(self, name: str, shape: tuple[int, ...]) -> Array:
        """An array of float64 in memory of its own."""
        return self.datasets.tensor(name, torch.float64, shape).numpy().copy()


def _nested(item: Any) -> Any:
    """Outputs in their tuples, lists and dicts."""
    if type(item) is int:
        return item
    [(kind, parts)] = item.items()
    if kind == "dict":
        return {str(key): _nested(part) for key, part in parts.items()}
    make: Callable[..., Any] = {"tuple": tuple, "list": list}[kind]
    return make([_nested(part) for part in parts])


def _sizes(shape: Any) -> tuple[int, ...]:
    """A shape of integers that are not negative."""
    _check(all(type(size) is int and size >= 0 for size in shape), f"{shape} must be sizes")
    return tuple(shape)


def _check(condition: bool, rule: str) -> None:
    if not condition:
        raise ValueError(rule)
