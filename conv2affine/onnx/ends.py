"""The inputs and outputs of a model as the vectors that a chain takes and returns, and the box of its inputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto

from conv2affine.interop.vnnlib import Specification, read_spec
from conv2affine.network.graph import Kept, Node, Value
from conv2affine.network.passes.ends import join_ends, slices
from conv2affine.network.passes.simplify import rewrite
from conv2affine.network.proof.box import Box, BoxBounds, read_box
from conv2affine.onnx.model import FLOATS, OnnxNetwork, TensorInfo
from conv2affine.onnx.running.runner import Run


def begin_at_casts(network: OnnxNetwork) -> OnnxNetwork:
    """The network without the casts of its integer inputs, such as pixels: a chain takes floating point."""
    graph, users = network.graph, network.graph.users
    names: dict[Value, Value] = {}
    inputs = []
    for value, tensor in zip(graph.inputs, network.inputs, strict=True):
        if tensor.elem_type not in FLOATS and value not in graph.outputs and all(map(_is_cast, users[value])):
            names.update({cast.outputs[0]: value for cast in users[value]})
            tensor = dataclasses.replace(tensor, elem_type=TensorProto.FLOAT)
        inputs.append(tensor)
    graph = rewrite(graph, lambda cast: ([], names[cast.outputs[0]]) if cast.outputs[0] in names else None)
    return dataclasses.replace(network, graph=graph, inputs=tuple(inputs))


def _is_cast(node: Node) -> bool:
    """Whether a node casts to floats."""
    if not isinstance(node, Kept) or node.kind != "Cast":
        return False
    return any(attribute.name == "to" and attribute.i in FLOATS for attribute in node.call.attributes)


def check_floats(network: OnnxNetwork) -> None:
    """Refuse integers among several inputs, which become one vector."""
    integers = [tensor for tensor in network.inputs if tensor.elem_type not in FLOATS]
    if integers and len(network.inputs) > 1:
        name = TensorProto.DataType.Name(integers[0].elem_type).lower()
        raise NotImplementedError(
            f"inputs of a chain must be of type float or double, and {integers[0].name} is of {name}; form graph "
            "takes it"
        )


def joined(network: OnnxNetwork) -> OnnxNetwork:
    """The network of one vector of all inputs, and of one of all outputs, where there are several."""
    graph = join_ends(network.graph)
    inputs, outputs = network.inputs, network.outputs
    if len(inputs) > 1:
        [value] = graph.inputs
        inputs = (
            dataclasses.replace(inputs[0], name=value.name, dims=(inputs[0].dims[0], value.size), shape=value.shape),
        )
    if len(outputs) > 1:
        outputs = (dataclasses.replace(outputs[0], name=graph.outputs[0].name),)
    return dataclasses.replace(network, graph=graph, inputs=inputs, outputs=outputs)


def apart(run: Run, network: OnnxNetwork) -> Run:
    """Calls a run that takes and returns joined vectors with separate inputs, and returns separate outputs."""
    starts = [part.start for part in slices(network.graph.outputs)]
    [vector] = joined(network).inputs

    def function(inputs: Mapping[str, Any]) -> list[Any]:
        whole = np.concatenate([inputs[tensor.name] for tensor in network.inputs], axis=1)
        return np.split(run({vector.name: whole})[0], starts[1:], axis=1)

    noisy = run.noisy
    return dataclasses.replace(run, function=function, noisy=noisy and (lambda *given: apart(noisy(*given), network)))


def slices_by_name(tensors: Sequence[TensorInfo], values: Sequence[Value]) -> dict[str, slice]:
    """Where the elements of each tensor are in the vector of all."""
    return dict(zip((tensor.name for tensor in tensors), slices(values), strict=True))


def given_box(box: BoxBounds | None, spec: Specification | str | Path | None) -> BoxBounds | Specification | None:
    """Which of both a user gives; a specification is read."""
    if spec is None:
        return box
    if box is not None:
        raise ValueError("box and spec must not come together: the box is that of the specification")
    return spec if isinstance(spec, Specification) else read_spec(spec)


def box_of(given: BoxBounds | Specification | None, shapes: Mapping[str, Sequence[int]], outputs: int) -> Box | None:
    """The box of a network with inputs of these shapes, by name, for one sample, and `outputs` output elements.

    `given` is as from `given_box`; None is for all inputs.
    """
    if isinstance(given, Specification):
        given = given.box_for(sum(map(prod, shapes.values())), outputs)
    return None if given is None else read_box(given, shapes)
