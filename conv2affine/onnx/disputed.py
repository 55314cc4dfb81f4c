"""Operators on which onnxruntime, onnx.reference and shape inference disagree, at some of their attributes.

What runs the model decides: onnxruntime where it takes the node, else onnx.reference. Where a rule disagrees, the node
is kept; where the inferred shape does, it is refused, as no result could be declared.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from onnx import NodeProto, TypeProto, ValueInfoProto, helper, numpy_helper

from conv2affine.network.graph import Piece, Step, Value
from conv2affine.network.kinds import KINDS
from conv2affine.onnx.runner import RunError, runner

__all__ = ["DISPUTED", "agrees", "run_alone"]

# Pooling with ceil_mode, auto_pad or dilations; resizing by no whole number; slices that start before an axis.
DISPUTED = ("AveragePool", "LpPool", "MaxPool", "Resize", "Slice", "Upsample")
TOLERANCE = 1e-4  # of the largest element: scales and coordinates are float32

Trial = tuple[Any, list[Any]]


def run_alone(node: NodeProto, opset: int, results: Mapping[str, Any], types: Mapping[str, TypeProto]) -> Trial | None:
    """A random input of a node that has one value among its inputs, and its results; None if it does not run alone.

    Args:
        node: The node.
        opset: Of the model.
        results: Values and constants, by name.
        types: Of values, by name.
    """
    names = list(dict.fromkeys(filter(None, node.input)))
    values = [name for name in names if isinstance(results[name], Value)]
    constants = [numpy_helper.from_array(results[name], name) for name in names if name not in values]
    if len(values) != 1:
        return None
    [name] = values
    infos = [ValueInfoProto(name=name, type=types[name])]
    outputs = [ValueInfoProto(name=output) for output in node.output if output]
    opsets = [helper.make_opsetid("", opset)]
    graph = helper.make_graph([node], "node", infos, outputs, constants)
    version = max(4, helper.find_min_ir_version_for(opsets))
    dtype = helper.tensor_dtype_to_np_dtype(types[name].tensor_type.elem_type)
    x = np.array(np.random.default_rng(0).standard_normal(results[name].shape), dtype)
    try:
        return x, runner(helper.make_model(graph, opset_imports=opsets, ir_version=version))({name: x})
    except RunError:
        return None


def agrees(node: Piece | Step, trial: Trial) -> bool:
    """Whether a piece or step makes of the input what the operator that it stands for makes of it."""
    x, (expected, *_) = trial
    if node.outputs[0].shape != expected.shape:
        return False
    vector = x.reshape(1, -1).astype(np.float64)
    if isinstance(node, Piece):
        got = sum((matrix.apply(vector) for matrix in node.map.terms.values()), node.map.bias[None])
    else:
        got = KINDS[node.kind](vector, **node.parameters)
    largest = np.abs(expected).max(initial=0)
    return np.allclose(got.ravel(), expected.ravel(), rtol=0, atol=TOLERANCE * float(largest), equal_nan=True)
