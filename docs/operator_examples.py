"""The test cases of single operators as examples, and what the rules make of them."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import re
import sys
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from types import ModuleType
from typing import Any
from unittest.mock import patch

import torch
from torch import nn

from conv2affine.network.graph import Graph, Node, Step
from conv2affine.network.matrices.matrix import Selection
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.passes.to_relu import to_relu
from conv2affine.network.rules import activations, arithmetic, positions, shapes
from conv2affine.network.torch.importing import importer as torch_importer
from conv2affine.network.torch.importing.rules import RULES as ATEN
from conv2affine.onnx.importing import importer as onnx_importer
from conv2affine.onnx.importing.reader import read
from tests.network.models import Function
from tests.network.rules.operands import constant
from tests.onnx import models as onnx_models

__all__ = ["Example", "Imported", "Use", "import_onnx_examples", "import_torch_examples", "relus", "torch_examples"]

MODULES = {module.__name__: module for module in (activations, arithmetic, positions, shapes)}


@dataclass(frozen=True)
class Example:
    """A test case of PyTorch.

    Args:
        name: Of the case.
        code: What the page shows.
        function: A module, or a function of a batch.
        shape: Of a sample.
    """

    name: str
    code: str
    function: Any
    shape: tuple[int, ...]


@dataclass(frozen=True)
class Use:
    """A rule at work on an example.

    Args:
        operator: As the table of rules names it.
        rule: The neutral rule, (module, function).
        nodes: What the rule made.
        example: Name of the test case.
        code: Of the example.
        operators: How many the example has.
    """

    operator: str
    rule: tuple[str, str]
    nodes: Sequence[Node]
    example: str = ""
    code: str = ""
    operators: int = 1

    @property
    def becomes(self) -> str:
        """In a network: the step, or what kind of matrix the layer has."""
        steps = [f"`{node.kind}`" for node in self.nodes if isinstance(node, Step)]
        return ", ".join(dict.fromkeys(steps)) or _kind_of_layer(self.nodes[-1])

    @property
    def relus(self) -> float:
        """In a chain: ReLUs for each element of the result."""
        graph = Graph([value for node in self.nodes for value in node.inputs], list(self.nodes))
        return relus(to_relu(graph, torch.float64).nodes) / self.nodes[-1].outputs[0].size

    @property
    def rank(self) -> tuple[bool, int]:
        """Lowest for the example that shows the operator best: that of its name, or with few others."""
        return re.sub(r"\W|_", "", self.operator.lower()) != self.example.replace("-", ""), self.operators


def relus(nodes: Sequence[Node]) -> int:
    """The number of ReLUs among the steps."""
    return sum(node.outputs[0].size for node in nodes if isinstance(node, Step) and node.kind == "relu")


def _kind_of_layer(piece: Any) -> str:
    matrices = piece.map.terms.values()
    is_copied = all(matrix.copied for matrix in matrices)
    if not all(isinstance(matrix, Selection) for matrix in matrices):
        return "copied" if is_copied else "computed"
    if not is_copied:
        return "scaled"
    return "added" if len(matrices) > 1 or piece.map.bias.any() else "moved"


@contextmanager
def watched(importer: ModuleType, name_of: Callable[[Any], str]) -> Iterator[list[tuple[str, Use]]]:
    """What the rules make while an importer runs: (origin, use)."""
    uses: list[tuple[str, Use]] = []
    original = importer.values

    def values(context: Any, rule: Any, *arguments: Any) -> Any:
        called: list[tuple[str, str]] = []

        def watch(frame: Any, event: str, _: Any) -> None:
            module, name = frame.f_globals.get("__name__"), frame.f_code.co_qualname.partition(".")[0]
            if event == "call" and module in MODULES and name in MODULES[module].__all__:
                called.append((module, name))

        before = len(context.graph.nodes)
        sys.setprofile(watch)
        try:
            results = original(context, rule, *arguments)
        finally:
            sys.setprofile(None)
        if called:  # else there are no elements
            uses.append((context.origin, Use(name_of(context.call), called[0], context.graph.nodes[before:])))
        return results

    with patch.object(importer, "values", values):
        yield uses


@dataclass(frozen=True)
class Imported:
    """What became of an example: the rules that it used, and its part of the simplified graph, with ReLUs for steps."""

    code: str
    uses: list[Use]
    nodes: list[Node]


class Examples(nn.Module):
    """Examples of one shape, so that one export serves all; each has an input of its own."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.examples = nn.ModuleList(modules)

    def forward(self, *inputs: torch.Tensor) -> list[Any]:
        return [module(x) for module, x in zip(self.examples, inputs, strict=True)]


def aten_name(call: Any) -> str:
    """As the table of rules names an operator."""
    name: str = call.target.overloadpacket.__name__
    with_overload = f"{name}.{call.target._overloadname}"
    return with_overload if with_overload in ATEN else name


def import_torch_examples(examples: Sequence[Example]) -> Iterator[Imported]:
    """Import examples of PyTorch."""
    by_shape: dict[tuple[int, ...], list[Example]] = defaultdict(list)
    for example in examples:
        by_shape[example.shape].append(example)
    for shape, group in by_shape.items():
        functions = [example.function for example in group]
        modules = [each if isinstance(each, nn.Module) else Function(each) for each in functions]
        inputs = tuple(constant(2, *shape, seed=seed) for seed in range(len(group)))
        with watched(torch_importer, aten_name) as uses, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of PyTorch, about how it computes an example
            network = torch_importer.import_torch(Examples(modules).double().eval(), inputs)
        nodes = to_relu(simplify(network.graph), torch.float64).nodes
        for number, example in enumerate(group):
            prefix = f"examples.{number}."
            own = [use for origin, use in uses if f"{origin}.".startswith(prefix)]
            yield Imported(
                example.code,
                [dataclasses.replace(u, example=example.name, code=example.code, operators=len(own)) for u in own],
                [node for node in nodes if any(f"{origin}.".startswith(prefix) for origin in node.origin)],
            )


def import_onnx_examples(cases: Sequence[Any]) -> Iterator[Imported]:
    """Import examples of ONNX."""
    for case in cases:
        code = case.nodes.replace("\n", "; ")
        proto = onnx_models.model(case.nodes, {"x": case.shape}, case.constants, opset=case.opset)
        with watched(onnx_importer, lambda call: call.op_type) as uses:
            network = onnx_importer.import_onnx(read(proto))
        yield Imported(
            code,
            [dataclasses.replace(use, example=case.name, code=code, operators=len(uses)) for _, use in uses],
            to_relu(simplify(network.graph), torch.float64).nodes,
        )


def codes(module: ModuleType, name: str, position: int = 0) -> dict[str, str]:
    """The code of the examples in a dict of a test file, by key; `position` is where an entry has it."""
    tree = ast.parse(inspect.getsource(module))
    assigned = {
        target.id: node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    found = {}
    table: Any = assigned[name]
    for key, entry in zip(table.keys, table.values, strict=True):
        if key is None:  # examples made by a comprehension
            continue
        code = entry.elts[position]
        code = assigned.get(code.id, code) if isinstance(code, ast.Name) else code
        if isinstance(code, ast.Lambda):
            found[key.value] = ast.unparse(code.body)
        else:
            text = ast.unparse(code).removesuffix(".double().eval()")
            found[key.value] = text if "(" in text else f"{text}(x)"
    return found


def torch_examples(module: ModuleType, name: str, position: int = 0, shape: Any = None) -> list[Example]:
    """The examples in a dict of a test file; `position` is where an entry has the function."""
    table = getattr(module, name)
    return [
        Example(key, code, table[key][position], shape or table[key][position + 1])
        for key, code in codes(module, name, position).items()
    ]
