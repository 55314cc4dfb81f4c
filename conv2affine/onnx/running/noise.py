"""An ONNX model with noise after each of its operators, which moves its outputs as rounding does."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

NOISY = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
# Their roundings are relative to the largest element: where others are 0, runtimes leave some of it.
BY_LARGEST = ("DFT", "STFT")


def with_noise(model: ModelProto, size: float) -> ModelProto:
    """The model, of one graph, with all that its inputs reach multiplied by random numbers from 1 - size to 1 + size.

    To what a Fourier transform gives, random numbers up to its largest element times size are added. The size is as in
    `conv2affine.network.torch.noise.Noise`.
    """
    inferred = shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    constants = {tensor.name for tensor in model.graph.initializer}
    reached = {value.name for value in model.graph.input} - constants
    noisy = ModelProto()
    noisy.CopyFrom(model)
    for type in NOISY:
        one = np.ones((), helper.tensor_dtype_to_np_dtype(type))
        noisy.graph.initializer.append(numpy_helper.from_array(one, f"one/{type}"))
    del noisy.graph.node[:]
    nodes = noisy.graph.node
    for node in model.graph.node:
        copy = nodes.add()
        copy.CopyFrom(node)
        if reached.isdisjoint(node.input):
            continue
        reached.update(node.output)
        for number, name in enumerate(node.output):
            if types.get(name) in NOISY:
                copy.output[number] = f"{name}/exact"
                by_largest = node.op_type in BY_LARGEST
                nodes.extend(_move(copy.output[number], name, types[name], size, len(nodes), by_largest))
    return noisy


def _move(exact: str, moved: str, type: int, size: float, seed: int, by_largest: bool) -> Iterator[NodeProto]:
    """The nodes that make a value, moved, of another."""
    noise, factor = f"{exact}/noise", f"{exact}/factor"
    yield helper.make_node("RandomUniformLike", [exact], [noise], low=-size, high=size, seed=float(seed))
    if by_largest:
        yield helper.make_node("Abs", [exact], [f"{exact}/abs"])
        yield helper.make_node("ReduceMax", [f"{exact}/abs"], [f"{exact}/largest"], keepdims=0)
        yield helper.make_node("Mul", [noise, f"{exact}/largest"], [factor])
        yield helper.make_node("Add", [exact, factor], [moved])
    else:
        yield helper.make_node("Add", [noise, f"one/{type}"], [factor])  # low = 1 - size would be float32
        yield helper.make_node("Mul", [exact, factor], [moved])
