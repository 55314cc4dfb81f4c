"""From a graph, or a chain, to an ONNX model of Gemm, Add and the nonlinear steps, on flat vectors."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, BinaryIO

import numpy as np
import onnx
import torch
from onnx import ModelProto, helper

from conv2affine.network.graph import Graph, Kept, Node, Piece, Step, runs_on_vectors
from conv2affine.network.matrices.matrix import Matrix, Selection
from conv2affine.network.passes.chain import Layer
from conv2affine.network.proof.forward import Interval
from conv2affine.network.torch.layers import CHUNK_BYTES, finite, finite_layer, row_chunks
from conv2affine.onnx.exporting.storage import external_tensor
from conv2affine.onnx.exporting.values import Values
from conv2affine.onnx.exporting.writer import Writer, as_array, write_kept, write_kind, write_selection
from conv2affine.onnx.model import DTYPES, OnnxNetwork, TensorInfo


def gathers(graph: Graph) -> bool:
    """Whether selections are written as Gather, Mul and Where, not as Gemm: if a step is kept.

    Its values may be infinite, and 0 times infinity is not 0; and readers of the result must support more than
    Gemm and Relu anyway.
    """
    return any(isinstance(node, Kept) for node in graph.nodes)


def with_sources(graph: Graph) -> Graph:
    """A graph whose constants read its first input, times 0: that has the number of samples."""

    def read(node: Node) -> Node:
        if not isinstance(node, Piece) or node.map.terms:
            return node
        x = graph.inputs[0]
        zeros = Selection(np.full(node.map.size, -1), x.size)
        return Piece(node.output, node.map.plus({x: zeros}), {x: node.origin})

    return dataclasses.replace(graph, nodes=[read(node) for node in graph.nodes])


class Exporter:
    """Writes one model, of the imported network with its graph after all passes.

    Args:
        network: The network.
        dtype: Of the layers.
        opset: Of the result.
        is_batched: Whether the result takes any number of samples, or one.
        flat: Whether its inputs and outputs are vectors.
        each: Called with the name of each layer before it is made.
        data: As in `Writer`; layers are written there a few rows at a time.
    """

    def __init__(
        self,
        network: OnnxNetwork,
        dtype: torch.dtype,
        opset: int,
        is_batched: bool,
        flat: bool,
        each: Callable[[str], None],
        data: BinaryIO | None = None,
    ) -> None:
        self.network, self.dtype, self.opset, self.is_batched, self.each = network, dtype, opset, is_batched, each
        self.elem_type = next(elem_type for elem_type, other in DTYPES.items() if other is dtype)
        names = [tensor.name for tensor in (*network.inputs, *network.outputs)]
        self.writer = Writer(helper.tensor_dtype_to_np_dtype(self.elem_type), opset, names, data)
        self.values = Values(network, self.writer, is_batched, flat)
        self.gathers = gathers(network.graph)
        inputs = zip(network.graph.inputs, network.inputs, strict=True)
        self.integers = {value for value, tensor in inputs if not tensor.is_floating}
        self.bounds: dict[str, Interval | None] = {}  # of the layers of a chain, by the names of what they compute

    def graph(self) -> ModelProto:
        """The model of form "graph"."""
        for node in self.network.graph.nodes:
            if isinstance(node, Piece):
                self.piece(node)
            else:
                self.step(node)
        return self.finish("graph")

    def mlp(self, layers: Sequence[Layer]) -> ModelProto:
        """The model of form "mlp"."""
        made = []
        for item in layers:
            origin = item.origin[0] if item.origin else "carried"
            made.append((item.bounds, origin, *self.layer(item.matrix(), item.bias, origin)))
        vectors = [self.values.vector(value) for value in self.network.graph.inputs]
        x = vectors[0] if len(vectors) == 1 else self.writer.call("Concat", vectors, "inputs", axis=1)
        for bounds, origin, weight, offset in made[:-1]:
            x = self.writer.linear(x, weight, offset, origin)
            self.bounds[x] = bounds
            x = self.writer.call("Relu", [x], origin)
        bounds, origin, weight, offset = made[-1]
        self.bounds[self.last(x, weight, offset, origin)] = bounds
        return self.finish("mlp")

    def last(self, x: str, weight: Any, bias: Any, origin: str) -> str:
        """The name of the last layer of a chain, whose elements become the outputs."""
        outputs = self.network.graph.outputs
        ends = zip(self.values.output_shapes, self.network.outputs, strict=True)
        wishes: list[str | None] = []
        for shape, tensor in ends:  # a name is written once: an output may be an input, or another output
            is_new = tensor.name not in (*wishes, *(other.name for other in self.network.inputs))
            wishes.append(tensor.name if is_new and self.values.is_flat(shape) else None)
        if len(outputs) == 1:
            self.values.flat[outputs[0]] = self.writer.linear(x, weight, bias, origin, wishes[0])
            return self.values.flat[outputs[0]]
        joined = self.writer.linear(x, weight, bias, origin)
        names = self.writer.split(joined, [value.size for value in outputs], wishes)
        self.values.flat.update(zip(outputs, names, strict=True))
        return joined

    def layer(self, matrix: Matrix, bias: Any, origin: str) -> tuple[str, str]:
        """Names of the weight and the bias of a layer."""
        self.each(origin)
        writer, (rows, cols) = self.writer, matrix.shape
        if writer.data is None or rows * cols * self.dtype.itemsize <= CHUNK_BYTES:
            fc = finite_layer(origin, matrix, bias, self.dtype, "dense")
            weight = writer.constant(f"{origin}.weight", as_array(fc.weight))
            return weight, writer.constant(f"{origin}.bias", as_array(fc.bias))
        name = writer.name(f"{origin}.weight")
        chunks = (as_array(finite(origin, chunk)) for chunk in row_chunks(matrix, self.dtype))
        writer.initializers.append(external_tensor(writer.data, name, (rows, cols), writer.dtype, chunks))
        return name, writer.constant(f"{origin}.bias", bias)

    def piece(self, piece: Piece) -> None:
        """The sum of a layer for each source; a source that is only added needs none."""
        bias: Any = piece.map.bias
        terms, selected = piece.map.terms, piece.without_layer(gathers=self.gathers)
        wish = self.values.wishes.get(piece.output)
        operands = []
        for source, matrix in terms.items():
            x, origin = self.values.vector(source), (piece.origins.get(source) or piece.origin)[0]
            if source in self.integers and not matrix.nnz:  # a constant
                x = self.writer.call("Cast", [x], f"{origin}/float", to=self.elem_type)
            if source in selected:
                for scale in matrix.numbers:
                    finite(origin, torch.from_numpy(scale).to(self.dtype))
                x = write_selection(self.writer, x, selected[source], origin)
            else:
                names = self.layer(matrix, bias, origin)
                x = self.writer.linear(x, *names, origin, wish if len(terms) == 1 else None)
                bias = np.zeros_like(bias)
            operands.append(x)
        if bias.any():
            operands.append(self.writer.constant(f"{piece.origin[0]}.bias", bias))
        total, *others = operands
        for other in others:
            total = self.writer.call("Add", [total, other], piece.origin[0], wish if other is others[-1] else None)
        self.values.flat[piece.output] = total

    def step(self, step: Step | Kept) -> None:
        """A nonlinear step on vectors, or on tensors of its own shape."""
        values, origin = self.values, step.name
        if isinstance(step, Step) and step.call is None:
            [output] = step.outputs
            x = [values.vector(value) for value in step.inputs]
            values.flat[output] = write_kind(self.writer, step, x, origin, values.wishes.get(output))
            return
        if runs_on_vectors(step):
            [value] = step.outputs
            values.flat[value] = values.wishes.get(value) or self.writer.name(origin)
            names, results = [values.vector(value) for value in step.inputs], [values.flat[value]]
        else:
            names = [values.tensor(value, shape, origin) for value, shape in zip(step.inputs, step.shapes, strict=True)]
            results = [values.result(value, origin) for value in step.outputs]
        write_kept(self.writer, step, names, results, origin)

    def finish(self, form: str) -> ModelProto:
        """The model, once all nodes are written."""
        graph, infos = self.network.graph, []
        there = {tensor.name for tensor in self.network.inputs}  # an output may be an input
        there.update(name for node in self.writer.nodes for name in node.output)
        for value, shape, tensor in zip(graph.outputs, self.values.output_shapes, self.network.outputs, strict=True):
            if tensor.name not in there:
                self.values.tensor(value, shape, tensor.name, tensor.name)
                there.add(tensor.name)
            infos.append(self.info(tensor, self.values.sizes(shape)))
        inputs = [
            self.info(tensor, (1, value.size) if self.values.are_vectors else tensor.shape)
            for value, tensor in zip(graph.inputs, self.network.inputs, strict=True)
        ]
        made = helper.make_graph(self.writer.nodes, "conv2affine", inputs, infos, self.writer.initializers)
        opsets = [helper.make_opsetid("", self.opset)]
        model = helper.make_model(made, opset_imports=opsets, producer_name="conv2affine")
        model.ir_version = max(4, helper.find_min_ir_version_for(opsets))  # before 4, initializers are inputs
        helper.set_model_props(model, {"conv2affine.form": form})
        return model

    def info(self, tensor: TensorInfo, shape: Sequence[int]) -> onnx.ValueInfoProto:
        """The type of an input or output."""
        elem_type = self.elem_type if tensor.is_floating else tensor.elem_type
        dims = [next(t.dims[0] for t in self.network.inputs), *shape[1:]] if self.is_batched and shape else shape
        return helper.make_tensor_value_info(tensor.name, elem_type, dims)
