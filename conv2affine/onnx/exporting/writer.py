"""Builds an ONNX graph: nodes and constants, each under a name of its own; layers, and the steps between them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import torch
from onnx import NodeProto, TensorProto, defs, helper, numpy_helper
from torch import Tensor

from conv2affine.network.graph import Kept, Slot, Step, runs_on_vectors, unused
from conv2affine.network.matrices.matrix import Selection
from conv2affine.onnx.call import OnnxCall
from conv2affine.onnx.exporting.storage import SMALL, external_tensor
from conv2affine.onnx.model import FLOATS

MIN_WHERE = 9  # the first opset that has Where
MIN_INTEGER_CONSTANT = 9  # before, a Constant is of floating type
MIN_SPLIT_INPUT = 13  # before, the sizes of Split are an attribute
SIMPLE = {"relu": "Relu", "abs": "Abs", "maximum": "Max", "minimum": "Min"}
WINDOWS = {"window_max": "ReduceMax", "window_min": "ReduceMin"}


class Writer:
    """Nodes and initializers in the order in which they are added.

    `names` are taken by inputs and outputs; `data` is the file for large tensors, if they are not to be in the model.
    """

    def __init__(self, dtype: Any, opset: int, names: Sequence[str], data: BinaryIO | None = None) -> None:
        self.dtype, self.opset = np.dtype(dtype), opset
        self.nodes: list[NodeProto] = []
        self.initializers: list[TensorProto] = []
        self.taken = set(names)
        self.data = data

    def name(self, wish: str) -> str:
        """A name that is not taken yet."""
        name = unused(re.sub(r"\s+", "_", wish) or "value", self.taken.__contains__)
        self.taken.add(name)
        return name

    def constant(self, wish: str, array: Any, *, keeps_type: bool = False) -> str:
        """A constant tensor; one of float32 or float64 in the type of the network, unless it keeps its own."""
        array = np.ascontiguousarray(array) if np.ndim(array) else np.asarray(array)
        if array.dtype in (np.float32, np.float64) and not keeps_type:
            array = array.astype(self.dtype, copy=False)
        name = self.name(wish)
        if self.data is not None and array.nbytes > SMALL:
            self.initializers.append(external_tensor(self.data, name, array.shape, array.dtype, [array]))
        else:
            self.initializers.append(numpy_helper.from_array(array, name))
        return name

    def call(
        self, op_type: str, inputs: Sequence[str], origin: str, output: str | None = None, **attributes: Any
    ) -> str:
        """A node with one result, both named after their origin."""
        result = self.name(origin) if output is None else output
        self.nodes.append(helper.make_node(op_type, inputs, [result], self.name(f"{origin}/{op_type}"), **attributes))
        return result

    def linear(self, x: str, weight: str, bias: str, origin: str, output: str | None = None) -> str:
        """The product x @ weight.T + bias; defaults are explicit: some readers require them."""
        return self.call("Gemm", [x, weight, bias], origin, output, alpha=1.0, beta=1.0, transA=0, transB=1)

    def split(self, x: str, sizes: Sequence[int], outputs: Sequence[str | None]) -> list[str]:
        """The parts of vectors, of these sizes."""
        names = [output or self.name(f"{x}/part") for output in outputs]
        node = helper.make_node("Split", [x], names, self.name(f"{x}/Split"), axis=1)
        if self.opset < MIN_SPLIT_INPUT:
            node.attribute.append(helper.make_attribute("split", sizes))
        else:
            node.input.append(self.constant(f"{x}.sizes", np.array(sizes)))
        self.nodes.append(node)
        return names

    def reshape(self, x: str, shape: Sequence[int], origin: str, output: str | None = None) -> str:
        """The same elements as a tensor of another shape; OMLT requires the shape to come from a node."""
        if self.opset < MIN_INTEGER_CONSTANT:
            target = self.constant(f"{origin}.shape", np.array(shape, np.int64))
            return self.call("Reshape", [x, target], origin, output)
        target = self.name(f"{origin}.shape")
        value = numpy_helper.from_array(np.array(shape, np.int64), target)
        self.nodes.append(helper.make_node("Constant", [], [target], self.name(f"{target}/Constant"), value=value))
        return self.call("Reshape", [x, target], origin, output)


def write_kind(writer: Writer, step: Step, x: list[str], origin: str, output: str | None) -> str:
    """Write a step that its kind defines, of inputs x as vectors; returns the name of its result."""
    call, constant = writer.call, writer.constant
    if step.kind in SIMPLE:
        return call(SIMPLE[step.kind], x, origin, output)
    if step.kind == "leaky_relu":
        slope = step.parameters["slope"]
        if writer.dtype == np.float64:
            # An attribute is float32, and onnxruntime has neither operator for float64: max(x, 0) + slope * min(x, 0).
            low = call("Min", [*x, constant(f"{origin}.zero", np.float64(0))], origin)
            scaled = call("Mul", [low, constant(f"{origin}.slope", slope)], origin)
            return call("Add", [call("Relu", x, origin), scaled], origin, output)
        if np.ndim(slope) == 0:
            return call("LeakyRelu", x, origin, output, alpha=float(slope))
        return call("PRelu", [*x, constant(f"{origin}.slope", slope)], origin, output)
    if step.kind == "clip":
        bounds = [("Max", step.parameters["low"]), ("Min", step.parameters["high"])]
        finite = [(op_type, bound) for op_type, bound in bounds if np.isfinite(bound).any()]
        for op_type, bound in finite:
            name = output if op_type == finite[-1][0] else None
            x = [call(op_type, [*x, constant(f"{origin}.{op_type.lower()}", bound)], origin, name)]
        return x[0] if finite else call("Identity", x, origin, output)
    if step.kind in WINDOWS:
        windows = step.parameters["windows"]
        # -1 is replaced by another element of the window, which changes neither maximum nor minimum.
        windows = np.where(windows < 0, windows.max(axis=1, keepdims=True), windows)
        gathered = call("Gather", [*x, constant(f"{origin}.windows", windows)], origin, axis=1)
        if writer.opset < 18:
            return call(WINDOWS[step.kind], [gathered], origin, output, axes=[2], keepdims=0)
        axes = constant(f"{origin}.axes", np.array([2]))
        return call(WINDOWS[step.kind], [gathered, axes], origin, output, keepdims=0)
    raise NotImplementedError(f"a step of kind {step.kind} from {step.origin} has no operator to run it")


def write_kept(writer: Writer, step: Step | Kept, inputs: Sequence[str], results: Sequence[str], origin: str) -> None:
    """Write a step with a call, under the names of its inputs, vectors where it runs on those, and of its outputs."""
    call: OnnxCall = step.call
    formal = defs.get_schema(call.op_type, writer.opset).inputs
    elem_type = helper.np_dtype_to_tensor_dtype(writer.dtype)
    type_name = f"tensor({TensorProto.DataType.Name(elem_type).lower()})"  # as the schemas of operators write it
    on_vectors = runs_on_vectors(step)
    args = []
    for number, arg in enumerate(call.args):
        if isinstance(arg, Slot):
            args.append(inputs[arg.number])
        elif arg is None:
            args.append("")
        else:
            # Some arguments are float32 whatever the type of the others: the scales of Resize.
            keeps_type = type_name not in formal[min(number, len(formal) - 1)].types
            array = arg.reshape(()) if on_vectors else arg
            args.append(writer.constant(f"{origin}.{number}", array, keeps_type=keeps_type))
    wanted = dict(zip(call.results, results, strict=True))
    outputs = [
        wanted.get(number) or (name and writer.name(f"{origin}.unused")) for number, name in enumerate(call.outputs)
    ]
    node = call.node(args, outputs, writer.name(f"{origin}/{call.op_type}"))
    if call.op_type == "Cast" and helper.get_node_attr_value(node, "to") in FLOATS:
        [to] = [attribute for attribute in node.attribute if attribute.name == "to"]
        to.i = elem_type
    writer.nodes.append(node)


def write_selection(writer: Writer, x: str, selection: Selection, origin: str) -> str:
    """A selection without a matrix."""
    selection = selection.split()
    call, constant, index = writer.call, writer.constant, selection.index
    read = None if index is None or (index >= 0).all() else index[None] >= 0
    if index is not None and read is not None and writer.opset < MIN_WHERE:  # zeros are read from one at the end
        x, index, read = call("Pad", [x], origin, pads=[0, 0, 0, 1]), np.where(read[0], index, selection.cols), None
    if index is not None:
        x = call("Gather", [x, constant(f"{origin}.index", index.clip(0))], origin, axis=1)
    if selection.scale is not None:
        x = call("Mul", [x, constant(f"{origin}.scale", selection.scale)], origin)
    if read is not None:
        zero = constant(f"{origin}.zero", np.float64(0))
        x = call("Where", [constant(f"{origin}.read", read), x, zero], origin)
    return x


def as_array(tensor: Tensor) -> Any:
    """The array that shares the memory of a tensor."""
    if tensor.dtype is torch.bfloat16:  # torch converts to NumPy's own types only
        return tensor.view(torch.int16).numpy().view(helper.tensor_dtype_to_np_dtype(TensorProto.BFLOAT16))
    return tensor.numpy()
