"""An ONNX model with noise after each of its operators, which moves its outputs as rounding does."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import numpy as np
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, shape_inference

from conv2affine.network.torch.noise import NEAR

NOISY = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
# Their roundings are relative to the largest element: where others are 0, runtimes leave some of it. In float32, the
# sigmoid of -13, 2e-6, is off by 3e-8 in onnxruntime.
BY_LARGEST = ("DFT", "STFT", "Sigmoid")
# More than a model has nodes: each pair of runs has other numbers.
SEEDS = 2**20


def with_noise(model: ModelProto, size: float, run: int = 0, walls: bool = False) -> ModelProto:
    """The model, of one graph, with all that its inputs reach multiplied by random numbers from 1 - size to 1 + size.

    To what a Fourier transform or a sigmoid gives, random numbers up to its largest element times size are added. The
    size and the run are as in `conv2affine.network.torch.noise.Noise`. With `walls`, a ReLU keeps the noise of an
    element near 0: for this the model is computed without noise too.
    """
    inferred = shape_inference.infer_shapes(model).graph
    types = {info.name: info.type.tensor_type.elem_type for info in (*inferred.value_info, *inferred.output)}
    constants = {tensor.name for tensor in model.graph.initializer}
    given = {value.name for value in model.graph.input} - constants
    reached = set(given)
    noisy = copy.deepcopy(model)
    for type in NOISY:
        for name, number in (("one", 1), ("near", NEAR)):
            array = np.array(number, helper.tensor_dtype_to_np_dtype(type))
            noisy.graph.initializer.append(numpy_helper.from_array(array, f"{name}/{type}"))
    del noisy.graph.node[:]
    nodes = noisy.graph.node
    for node in model.graph.node:
        moved = nodes.add()
        moved.CopyFrom(node)
        if reached.isdisjoint(node.input):
            continue
        reached.update(filter(None, node.output))
        if walls:
            still = nodes.add()
            still.CopyFrom(node)
            for names in (still.input, still.output):
                names[:] = [f"{name}/still" if name in reached - given else name for name in names]
            if node.op_type == "Relu" and node.input[0] not in given and types.get(node.output[0]) in NOISY:
                moved.output[0] = f"{node.output[0]}/exact"
                nodes.extend(_keep(node.input[0], node.output[0], types[node.output[0]]))
                continue
        for number, name in enumerate(node.output):
            if types.get(name) in NOISY:
                moved.output[number] = f"{name}/exact"
                by_largest = node.op_type in BY_LARGEST
                seed = len(nodes) + run // 2 * SEEDS
                nodes.extend(_move(moved.output[number], name, types[name], size, run, seed, by_largest))
    return noisy


def _keep(x: str, y: str, type: int) -> Iterator[NodeProto]:
    """The nodes that make a ReLU's value, y, of what it is with noise and without, and of what it reads, x."""
    names = [f"{y}/{part}" for part in ("noise", "size", "limit", "distance", "is_near", "kept")]
    noise, size, limit, distance, is_near, kept = names
    yield helper.make_node("Sub", [x, f"{x}/still"], [noise])
    yield helper.make_node("Abs", [noise], [size])
    yield helper.make_node("Mul", [size, f"near/{type}"], [limit])
    yield helper.make_node("Abs", [f"{x}/still"], [distance])
    yield helper.make_node("Less", [distance, limit], [is_near])
    yield helper.make_node("Add", [f"{y}/still", noise], [kept])
    yield helper.make_node("Where", [is_near, kept, f"{y}/exact"], [y])


def _move(exact: str, moved: str, type: int, size: float, run: int, seed: int, by_largest: bool) -> Iterator[NodeProto]:
    """The nodes that make a value, moved, of another."""
    drawn, noise, factor = f"{exact}/drawn", f"{exact}/noise", f"{exact}/factor"
    yield helper.make_node("RandomUniformLike", [exact], [drawn], low=-size, high=size, seed=float(seed))
    yield helper.make_node("Neg" if run % 2 else "Identity", [drawn], [noise])
    if by_largest:
        yield helper.make_node("Abs", [exact], [f"{exact}/abs"])
        yield helper.make_node("ReduceMax", [f"{exact}/abs"], [f"{exact}/largest"], keepdims=0)
        yield helper.make_node("Mul", [noise, f"{exact}/largest"], [factor])
        yield helper.make_node("Add", [exact, factor], [moved])
    else:
        yield helper.make_node("Add", [noise, f"one/{type}"], [factor])  # low = 1 - size would be float32
        yield helper.make_node("Mul", [exact, factor], [moved])
