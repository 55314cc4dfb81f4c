"""What is known of a node's results before they are made: types and shapes, and the bytes that all of them may take."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

import numpy as np
import onnx
from onnx import AttributeProto, NodeProto, TypeProto, helper, numpy_helper, shape_inference
from onnx.shape_inference import InferenceError

from conv2affine.convolution.sizes import readable_bytes
from conv2affine.network.graph import Value
from conv2affine.network.rules.bends import MASKS
from conv2affine.onnx.importing.reader import BASE_BYTES, PROTOBUF_BYTES
from conv2affine.onnx.importing.rules import NEVER_TRUE, find_rule
from conv2affine.onnx.model import CheckedModel, location, one_line

# Constants that hold sizes and axes have fewer elements, and shape inference reads only these.
SMALL = 1024
# No single value of a network for which matrices can be made has more elements.
MAX_ELEMENTS = 2**27
ITEM_BYTES = 8
# Bytes of values that are allowed per byte of the file. Known networks need up to 10 times their size.
BYTES_PER_BYTE = 32
# A model is run several times, and MAX_WORK operations take seconds: a pool takes one for each element that it reads, a
# cubic Resize in onnxruntime CUBIC for each element of its result.
MAX_WORK, CUBIC = 2**30, 2**10
RANDOM = ("RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike", "Bernoulli", "Multinomial")
CHANCE = "depends on chance or on its batch; export the model for inference"
# The first opset with an attribute for training; before, more than one output shows it.
BATCH_NORM_MODE = 14
POOLS = ("AveragePool", "LpPool", "MaxPool")
# Below these opsets, onnx infers no shape of their results, or refuses integers that exporters write and runtimes take.
INFERRED_FROM = {"Constant": 9, "GreaterOrEqual": 16, "LessOrEqual": 16}
# Operators whose result has at most this many numbers per element of their first input, whatever its values.
BOUNDED = {"NonZero": 8, "Compress": 1, "Unique": 4}


class Budget:
    """Counts constants and values of a model of `size` bytes before they are made."""

    def __init__(self, size: int) -> None:
        self.max_bytes = min(PROTOBUF_BYTES, BASE_BYTES + BYTES_PER_BYTE * size)
        self.bytes = 0

    def count(self, shape: Sequence[int], where: str) -> None:
        """Count a constant or value; raise ValueError if all of them are too much."""
        check_size(shape, where)
        self.bytes += ITEM_BYTES * prod(shape)
        if self.bytes > self.max_bytes:
            raise ValueError(
                f"{where}: constants and values of a model of this size, in float64, must be at most "
                f"{readable_bytes(self.max_bytes)} together; choose smaller inputs"
            )


def check_size(shape: Sequence[int], where: str) -> None:
    """Raise ValueError for a shape that no tensor of a network has."""
    if any(size < 0 for size in shape) or prod(shape) > MAX_ELEMENTS:
        raise ValueError(f"{where} (shape {tuple(shape)}) must have at most {MAX_ELEMENTS} elements")


def check_work(node: NodeProto, shape: Sequence[int], where: str) -> None:
    """Raise ValueError for a node that takes long for each element of its result, as pools of large windows do."""
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type in POOLS:
        work = prod(shape) * prod(attributes.get("kernel_shape", ()))
    else:
        work = prod(shape) * CUBIC if node.op_type == "Resize" and attributes.get("mode") == b"cubic" else 0
    if work > MAX_WORK:
        raise ValueError(
            f"{where} of shape {tuple(shape)} must take at most {MAX_WORK} operations, and takes {work}; choose a "
            "smaller input"
        )


def check_node(node: NodeProto) -> None:
    """Refuse what no form keeps: operators of other domains or of chance, subgraphs, and sparse tensors."""
    where = f"{node.op_type} node {location(node)}"
    if node.domain not in ("", "ai.onnx"):
        raise NotImplementedError(f"{where}: operators of domain {node.domain} are not supported")
    for attribute in node.attribute:
        if attribute.type in (AttributeProto.GRAPH, AttributeProto.GRAPHS):
            raise NotImplementedError(f"{where}: subgraphs, as in attribute {attribute.name}, are not supported")
        if attribute.type == AttributeProto.SPARSE_TENSOR:
            raise NotImplementedError(f"{where}: {attribute.name} must be written as a dense tensor")
    if node.op_type in RANDOM:
        raise ValueError(f"{where} {CHANCE}")


def check_inference(node: NodeProto, args: Sequence[Any], opset: int) -> None:
    """Refuse a node that is for training, with these arguments."""
    is_training = False
    if node.op_type == "Dropout" and len(args) > 2 and args[2] is not None:
        is_training = isinstance(args[2], Value) or bool(np.any(args[2]))
    if node.op_type == "BatchNormalization" and opset < BATCH_NORM_MODE:
        is_training = len(node.output) > 1
    elif node.op_type == "BatchNormalization":
        is_training = any(attribute.name == "training_mode" and attribute.i for attribute in node.attribute)
    if is_training:
        raise ValueError(f"{node.op_type} node {location(node)} {CHANCE}")


def check_rules(model: CheckedModel) -> None:
    """Refuse an operator between inputs and outputs that has no rule; this is cheap to find out."""
    live = set(model.outputs)
    for node in reversed(model.wide.graph.node):
        if not live.isdisjoint(node.output):
            live.update(node.input)
    reached = {tensor.name for tensor in model.inputs}
    for node in model.wide.graph.node:
        if live.isdisjoint(node.output) or reached.isdisjoint(node.input) or node.op_type in ("Shape", "Size"):
            continue
        # The operator that takes the mask decides.
        if find_rule(node.op_type) is None and node.op_type not in (*MASKS, *NEVER_TRUE):
            check_node(node)
            raise NotImplementedError(
                f"{location(node)}: {node.op_type} must be affine or piecewise linear to become linear layers and "
                "ReLUs, and is not: no rule covers the operator; form graph keeps it as it is"
            )
        reached.update(filter(None, node.output))


def batch_advice(model: CheckedModel) -> str:
    """What to do if a model with a symbolic batch size takes another one only, as exporters fix what `len` gives."""
    shapes = {tensor.name: ("N", *tensor.shape[1:]) for tensor in model.inputs if tensor.is_batched}
    if not shapes:
        return ""
    shown = ", ".join(f"{name!r}: ({', '.join(map(str, shape))})" for name, shape in shapes.items())
    return f"; it was read for one sample: if it was exported for N only, pass shapes={{{shown}}} (--shape)"


def infer(
    node: NodeProto,
    model: CheckedModel,
    results: Mapping[str, Any],
    types: Mapping[str, TypeProto],
    where: str,
    advice: str,
) -> Mapping[str, TypeProto]:
    """The types of a node's results, by name, as far as they follow from those of its inputs.

    `where` and `advice` are for messages.

    Raises:
        ValueError: If it breaks the rules of its operator.
    """
    opset = max(model.opset, INFERRED_FROM.get(node.op_type, 0))
    names = [name for name in node.input if name]
    data = {
        name: numpy_helper.from_array(array, name)
        for name in names
        if isinstance(array := results[name], np.ndarray) and array.size <= SMALL
    }
    try:
        inferred: Mapping[str, TypeProto] = shape_inference.infer_node_outputs(
            onnx.defs.get_schema(node.op_type, opset, ""),
            node,
            {name: types[name] for name in names},
            data,
            opset_imports=[helper.make_opsetid("", opset)],
            ir_version=model.wide.ir_version,
        )
    except (InferenceError, onnx.checker.ValidationError, onnx.defs.SchemaError, RuntimeError, ValueError) as error:
        raise ValueError(f"{where} must follow the rules of its operator: {one_line(error)}{advice}") from error
    if node.op_type == "GroupNormalization":  # of which onnx infers no shape
        return {node.output[0]: types[node.input[0]]}
    return inferred


def inferred_shape(
    node: NodeProto, name: str, inferred: Mapping[str, TypeProto], args: Sequence[Any], where: str
) -> tuple[int, ...]:
    """The shape of a result; if it depends on constants only, a shape of at least as many elements.

    Raises:
        NotImplementedError: If it is not known.
    """
    type = inferred.get(name)
    if type is None or not type.HasField("tensor_type"):
        raise NotImplementedError(f"{where}: its result {name} must be a tensor of a known type")
    dims = type.tensor_type.shape.dim
    if type.tensor_type.HasField("shape") and all(dim.HasField("dim_value") for dim in dims):
        return tuple(dim.dim_value for dim in dims)
    if node.op_type == "Compress" and isinstance(args[1], np.ndarray):
        [axis] = [attribute.i for attribute in node.attribute] or [None]
        shape = list(args[0].shape if axis is not None else (prod(args[0].shape),))
        shape[axis or 0] = np.count_nonzero(args[1][: shape[axis or 0]])
        return tuple(shape)
    if node.op_type in BOUNDED and all(arg is None or isinstance(arg, np.ndarray) for arg in args):
        return (BOUNDED[node.op_type] * args[0].size,)
    raise NotImplementedError(f"{where}: the shape of {name} must follow from those of the inputs")
