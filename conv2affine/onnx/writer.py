"""Builds an ONNX graph: nodes, constants and reshaped values, each under a name of its own."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from onnx import NodeProto, TensorProto, helper, numpy_helper

__all__ = ["Writer"]

MIN_INTEGER_CONSTANT = 9  # before, a Constant is of floating type


class Writer:
    """Nodes and initializers in the order in which they are added.

    Args:
        dtype: Of floating constants.
        opset: Of the model.
        names: That are taken by inputs and outputs.
    """

    def __init__(self, dtype: Any, opset: int, names: Sequence[str]) -> None:
        self.dtype, self.opset = np.dtype(dtype), opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.taken = set(names)

    def name(self, wish: str) -> str:
        """A name that is not taken yet."""
        wish = re.sub(r"\s+", "_", wish) or "value"
        name, number = wish, 1
        while name in self.taken:
            name, number = f"{wish}_{number}", number + 1
        self.taken.add(name)
        return name

    def constant(self, wish: str, array: Any, *, keeps_type: bool = False) -> str:
        """A constant tensor; one of float32 or float64 in the type of the network, unless it keeps its own."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        if array.dtype in (np.float32, np.float64) and not keeps_type:
            array = array.astype(self.dtype, copy=False)
        name = self.name(wish)
        self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def call(
        self, op_type: str, inputs: Sequence[str], origin: str, output: str | None = None, **attributes: Any
    ) -> str:
        """A node of one result, both named after where they come from."""
        result = self.name(origin) if output is None else output
        self.nodes.append(helper.make_node(op_type, inputs, [result], self.name(f"{origin}/{op_type}"), **attributes))
        return result

    def linear(self, x: str, weight: Any, bias: Any, origin: str, output: str | None = None) -> str:
        """The product x @ weight.T + bias; what is not needed is written nevertheless: some readers ask for it."""
        names = [x, self.constant(f"{origin}.weight", weight), self.constant(f"{origin}.bias", bias)]
        return self.call("Gemm", names, origin, output, alpha=1.0, beta=1.0, transA=0, transB=1)

    def reshape(self, x: str, shape: Sequence[int], origin: str, output: str | None = None) -> str:
        """The same elements as a tensor of another shape, which OMLT wants to come from a node."""
        if self.opset < MIN_INTEGER_CONSTANT:
            target = self.constant(f"{origin}.shape", np.array(shape, np.int64))
            return self.call("Reshape", [x, target], origin, output)
        target = self.name(f"{origin}.shape")
        value = numpy_helper.from_array(np.array(shape, np.int64), target)
        self.nodes.append(helper.make_node("Constant", [], [target], self.name(f"{target}/Constant"), value=value))
        return self.call("Reshape", [x, target], origin, output)
