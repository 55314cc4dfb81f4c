"""ONNX models for tests, from a line of text per node."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, parser, shape_inference

from conv2affine.onnx.running.runner import runner

Constants = Mapping[str, Any]


def random(*shape: int, seed: int = 0) -> Any:
    """Random numbers in float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def model(
    nodes: str,
    inputs: Mapping[str, Sequence[int | str]],
    constants: Constants | None = None,
    *,
    outputs: Sequence[str] = ("y",),
    opset: int = 13,
    types: Mapping[str, int] | None = None,
) -> ModelProto:
    """A model.

    Args:
        nodes: One a line, as in `y = Conv<pads = [1, 1, 1, 1]>(x, w)`.
        inputs: Their shapes.
        constants: Initializers.
        outputs: Their names.
        opset: Of the operators.
        types: Of inputs and outputs that are not float32.
    """
    kinds = dict(types or {})
    graph = helper.make_graph(
        [parser.parse_node(line.strip()) for line in nodes.strip().splitlines()],
        "test",
        [
            helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), dims)
            for name, dims in inputs.items()
        ],
        [helper.make_tensor_value_info(name, kinds.get(name, TensorProto.FLOAT), None) for name in outputs],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in (constants or {}).items()],
    )
    opsets = [helper.make_opsetid("", opset)]
    made = helper.make_model(graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets)))
    return shape_inference.infer_shapes(made, data_prop=True)  # the outputs need shapes


CNN = """
c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
r = Relu(c)
p = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(r)
f = Flatten(p)
y = Gemm(f, v, u)
"""
WEIGHTS = {"w": random(2, 1, 3, 3), "b": random(2), "v": random(18, 4), "u": random(4)}


def cnn(batch: int | str = "N", **options: Any) -> ModelProto:
    """A small network with max pooling."""
    return model(CNN, {"x": (batch, 1, 6, 6)}, WEIGHTS, **options)


def difference(original: ModelProto, result: ModelProto, inputs: Mapping[str, Any]) -> float:
    """How much the outputs of two models differ, relative to the largest element."""
    off = 0.0
    for a, b in zip(runner(original)(inputs), runner(result)(inputs), strict=True):
        assert a.shape == b.shape
        assert a.dtype == b.dtype
        a, b = (np.where(np.isfinite(a) | (a != b), array, 0).astype(float) for array in (a, b))  # infinities are equal
        off = max(off, np.abs(a - b).max(initial=0) / max(np.abs(a).max(initial=0), 1e-6))
    return float(off)


def inputs(result: ModelProto, batch: int = 1, seed: int = 1) -> dict[str, Any]:
    """Random inputs for a model."""
    arrays = {}
    for number, info in enumerate(result.graph.input):
        dims = [dim.dim_value or batch for dim in info.type.tensor_type.shape.dim]
        dtype = helper.tensor_dtype_to_np_dtype(info.type.tensor_type.elem_type)
        arrays[info.name] = (2 * random(*dims, seed=seed + number)).astype(dtype)
    return arrays


def operators(result: ModelProto) -> list[str]:
    """The operators of a model, in order, without the constants that reshapes take."""
    return [node.op_type for node in result.graph.node if node.op_type != "Constant"]


__all__ = ["WEIGHTS", "cnn", "difference", "inputs", "model", "operators", "random"]
