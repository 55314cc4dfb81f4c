"""Brings a model into the form that the importer reads: one opset, open batch sizes, no half floats."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import onnx
from onnx import (
    AttributeProto,
    GraphProto,
    ModelProto,
    TensorProto,
    helper,
    numpy_helper,
    version_converter,
)

from conv2affine.network.graph import unused
from conv2affine.onnx.importing.functions import all_nodes, taken
from conv2affine.onnx.model import EPS, HALVES, location, one_line

MIN_OPSET = 8  # to which older models are converted: the first in which Max broadcasts
INFERS = 6  # the first opset for which onnx infers all shapes
ADDS_ONLY = 7  # opset 8 only adds to it: broadcasting to Max, Min, Mean and Sum, attributes to MaxPool
# Attributes that are types of results.
TYPE_ATTRIBUTES = ("to", "dtype", "output_dtype", "stash_type")


def upgraded(proto: ModelProto) -> ModelProto:
    """The model in an opset that the importer supports.

    Raises:
        ValueError: If it has none, or one that onnx does not know or cannot convert.
    """
    imports = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    opset, newest = (imports[0].version if imports else 0), onnx.defs.onnx_opset_version()
    if not 1 <= opset <= newest:
        raise ValueError(f"the model's opset ({opset}) must be 1 to {newest}; install a newer onnx for newer ones")
    if opset >= MIN_OPSET:
        return proto
    if opset == ADDS_ONLY:
        imports[0].version = MIN_OPSET
        return proto
    proto.ir_version = max(proto.ir_version, 3)  # the converter takes no older one
    infos = [*proto.graph.input, *proto.graph.output]
    types = {info.name: copy.deepcopy(info.type) for info in infos}
    try:
        check(proto)
        # Broadcasting needs shapes, of one sample; these are inferred from opset 6 on.
        for dim in (dim for info in infos for dim in info.type.tensor_type.shape.dim[:1]):
            dim.dim_value = dim.dim_value or 1
        if opset < INFERS:
            proto = version_converter.convert_version(proto, INFERS)
        _align(proto)
        made: ModelProto = version_converter.convert_version(onnx.shape_inference.infer_shapes(proto), MIN_OPSET)
    except Exception as error:  # the converter may raise anything
        rule = f"the model's opset ({opset}) must be one that onnx.version_converter converts to {MIN_OPSET}"
        raise ValueError(f"{rule}: {one_line(error)}") from error
    del made.graph.value_info[:]
    for info in (info for info in (*made.graph.input, *made.graph.output) if info.name in types):
        info.type.CopyFrom(types[info.name])
    return made


def check(proto: ModelProto) -> None:
    """Check a model; inputs and outputs may lack shapes, and outputs types, which the checker asks for."""
    infos = [*proto.graph.input, *proto.graph.output]
    kept = [(info, copy.deepcopy(info.type)) for info in infos]
    for info in proto.graph.output:
        if info.type.WhichOneof("value") is None:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for info in infos:
        if info.type.HasField("tensor_type"):
            info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)
    for info, type in kept:
        info.type.CopyFrom(type)


def _align(proto: ModelProto) -> None:
    """Write out what opset 6 aligns along an axis, which the converter gets wrong.

    Raises:
        ValueError: If a node is for training, which the converter takes for inference.
    """
    inferred = onnx.shape_inference.infer_shapes(proto).graph
    infos = (*inferred.input, *inferred.output, *inferred.value_info)
    ranks = {info.name: len(info.type.tensor_type.shape.dim) for info in infos}
    ranks.update({tensor.name: len(tensor.dims) for tensor in inferred.initializer})
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    for number, node in enumerate(nodes):
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        if node.op_type in ("BatchNormalization", "Dropout") and not attributes.get("is_test"):
            raise ValueError(f"{node.op_type} node {location(node)} must be for inference, with is_test = 1")
        if node.op_type == "PRelu" or (attributes.get("broadcast") and "axis" in attributes):
            x, other = (ranks[name] for name in node.input)
            axis = attributes.get("axis", min(1, x - other)) % x
            if added := list(range(other, x - axis)):
                name = f"{node.output[0]}/aligned_{number}"
                proto.graph.node.append(helper.make_node("Unsqueeze", [node.input[1]], [name], axes=added))
                node.input[1] = name
            kept = [attribute for attribute in node.attribute if attribute.name != "axis"]
            del node.attribute[:]
            node.attribute.extend(kept)
        proto.graph.node.append(node)


def open_sizes(proto: ModelProto) -> None:
    """Name open sizes, however tools write them: -1, or a first size of 0."""
    for info in (*proto.graph.input, *proto.graph.output, *proto.graph.value_info):
        for axis, dim in enumerate(info.type.tensor_type.shape.dim):
            if dim.HasField("dim_value") and (dim.dim_value < 0 or (dim.dim_value == 0 and axis == 0)):
                dim.dim_param = "batch" if axis == 0 else f"{info.name}_{axis}"


def name_parts(graph: GraphProto) -> None:
    """Name the results of Split that are left out: onnxruntime crashes on them."""
    split = [node for node in graph.node if node.op_type == "Split" and "" in node.output]
    names = taken(graph) if split else set()
    for node in split:
        for number, name in enumerate(node.output):
            node.output[number] = name or unused("unused", names.__contains__)
            names.add(node.output[number])


def widened(proto: ModelProto) -> tuple[ModelProto, float]:
    """The model with float32 for float16 and bfloat16, and the rounding of the coarsest of these; 0 if it has none.

    It computes the same up to that rounding, and every reader supports float32.
    """
    found = {type for part, field in _typed(proto) if (type := getattr(part, field)) in HALVES}
    if not found:
        return proto, 0.0
    wide = copy.deepcopy(proto)
    for part, field in _typed(wide):
        if getattr(part, field) not in HALVES:
            continue
        if isinstance(part, TensorProto):
            part.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(part).astype("float32"), part.name))
        else:
            setattr(part, field, TensorProto.FLOAT)
    del wide.graph.value_info[:]
    return wide, max(EPS[type] for type in found)


def _typed(proto: ModelProto) -> Iterator[tuple[Any, str]]:
    """What has a type in a model, and the name of its field."""
    yield from ((info.type.tensor_type, "elem_type") for info in (*proto.graph.input, *proto.graph.output))
    yield from ((tensor, "data_type") for tensor in proto.graph.initializer)
    for attribute in (attribute for node in all_nodes(proto.graph.node) for attribute in node.attribute):
        if attribute.type == AttributeProto.TENSOR:
            yield attribute.t, "data_type"
        elif attribute.name in TYPE_ATTRIBUTES:
            yield attribute, "i"
