"""An ONNX model with noise after each of its operators, which moves its outputs as rounding does."""

from __future__ import annotations

import numpy as np
from onnx import ModelProto, TensorProto, helper, numpy_helper, shape_inference

__all__ = ["with_noise"]

NOISY = (TensorProto.FLOAT, TensorProto.DOUBLE, TensorProto.FLOAT16)
# Their roundings are relative to the largest element: where others are 0, runtimes leave some of it.
BY_LARGEST = ("DFT", "STFT")


def with_noise(model: ModelProto, size: float) -> ModelProto:
    """The model with all that its inputs reach multiplied by random numbers from 1 - size to 1 + size.

    To what a Fourier transform gives, random numbers up to its largest element times size are added.

    Args:
        model: Of one graph.
        size: As `torch.finfo(dtype).eps`; see `conv2affine.network.torch.rounding.Noise`.
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
    for node in model.graph.node:
        copy = noisy.graph.node.add()
        copy.CopyFrom(node)
        if reached.isdisjoint(node.input):
            continue
        reached.update(node.output)
        for number, name in enumerate(node.output):
            if types.get(name) in NOISY:
                exact, noise, factor, moved = (f"{name}/{part}" for part in ("exact", "noise", "factor", "moved"))
                copy.output[number] = exact
                random = helper.make_node("RandomUniformLike", [exact], [noise])
                for key, value in (("low", -size), ("high", size), ("seed", float(len(noisy.graph.node)))):
                    random.attribute.append(helper.make_attribute(key, value))
                noisy.graph.node.append(random)
                if node.op_type in BY_LARGEST:
                    steps = [
                        helper.make_node("Abs", [exact], [moved]),
                        helper.make_node("ReduceMax", [moved], [factor], keepdims=0),
                        helper.make_node("Mul", [noise, factor], [f"{moved}/sum"]),
                        helper.make_node("Add", [exact, f"{moved}/sum"], [name]),
                    ]
                else:  # low = 1 - size would be float32
                    steps = [
                        helper.make_node("Add", [noise, f"one/{types[name]}"], [factor]),
                        helper.make_node("Mul", [exact, factor], [name]),
                    ]
                noisy.graph.node.extend(steps)
    return noisy
