"""The names of a network's values in its model: as one vector per sample, and as tensors of shapes of their own."""

from __future__ import annotations

from collections.abc import Sequence

from conv2affine.network.graph import Value
from conv2affine.onnx.exporting.writer import Writer
from conv2affine.onnx.model import OnnxNetwork


class Values:
    """Names of values; one that has no name in a shape yet is reshaped to it.

    Inputs and outputs have those of the network; `are_vectors` says whether they are vectors.
    """

    def __init__(self, network: OnnxNetwork, writer: Writer, is_batched: bool, are_vectors: bool) -> None:
        self.writer, self.is_batched, self.are_vectors = writer, is_batched, are_vectors
        self.flat: dict[Value, str] = {}  # names of values as vectors
        self.shaped: dict[tuple[Value, tuple[int, ...]], str] = {}  # names of values as tensors
        graph = network.graph
        self.outputs, self.tensors = graph.outputs, network.outputs
        self.output_shapes = [(1, value.size) for value in graph.outputs] if are_vectors else graph.output_shapes
        # Outputs that need no reshape are computed under their names at once.
        self.wishes = {
            value: tensor.name
            for value, shape, tensor in zip(graph.outputs, self.output_shapes, network.outputs, strict=True)
            if self.is_flat(shape)
        }
        for value, tensor in zip(graph.inputs, network.inputs, strict=True):
            if are_vectors:
                self.flat[value] = tensor.name
            else:
                self.shaped[value, value.shape] = tensor.name

    def vector(self, value: Value) -> str:
        """The name of a value as one vector per sample."""
        if value not in self.flat:
            name = self.shaped[value, value.shape]
            if not self.is_flat(value.shape):
                origin = f"{value.name}/flat"
                name = self.writer.reshape(name, [-1 if self.is_batched else 1, value.size], origin)
            self.flat[value] = name
        return self.flat[value]

    def tensor(self, value: Value, shape: tuple[int, ...], origin: str, output: str | None = None) -> str:
        """The name of a value as a tensor of a shape."""
        if output is None and (value, shape) in self.shaped:
            return self.shaped[value, shape]
        if self.is_flat(shape):
            name = self.vector(value)
            return name if output is None else self.writer.call("Identity", [name], origin, output)
        name = self.writer.reshape(self.vector(value), self.sizes(shape), f"{origin}/shaped", output)
        self.shaped[value, shape] = name
        return name

    def result(self, value: Value, origin: str) -> str:
        """The name of a new result as a tensor of its shape."""
        names = [
            tensor.name
            for other, shape, tensor in zip(self.outputs, self.output_shapes, self.tensors, strict=True)
            if other is value and shape == value.shape
        ]
        name = names[0] if names else self.writer.name(origin)
        self.shaped[value, value.shape] = name
        return name

    def is_flat(self, shape: Sequence[int]) -> bool:
        """Whether a tensor of this shape is one vector per sample already."""
        return len(shape) == 2 and shape[0] == 1

    def sizes(self, shape: Sequence[int]) -> list[int]:
        """The argument of a Reshape to a shape."""
        return [-1, *shape[1:]] if self.is_batched and shape else list(shape)
