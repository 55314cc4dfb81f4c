"""The node of an operator that is kept as it is."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from onnx import TensorProto, defs, helper

from conv2affine.network.graph import Kept, Step
from conv2affine.network.torch.call import Slot
from conv2affine.onnx.call import OnnxCall
from conv2affine.onnx.importer import FLOATS
from conv2affine.onnx.writer import Writer

__all__ = ["runs_on_vectors", "write_kept"]

# Operators that treat every element alike: they run on flat vectors.
POINTWISE = frozenset(
    (
        *("Acos", "Acosh", "Asin", "Asinh", "Atan", "Atanh", "BitwiseNot", "Ceil", "Celu", "Cos", "Cosh"),
        *("Elu", "Erf", "Exp", "Floor", "Gelu", "HardSwish", "IsNaN", "Log", "Mish", "Neg", "Not"),
        *("Reciprocal", "Round", "Selu", "Shrink", "Sigmoid", "Sign", "Sin", "Sinh", "Softplus", "Softsign"),
        *("Sqrt", "Swish", "Tan", "Tanh", "ThresholdedRelu", "Add", "Sub", "Mul", "Div", "Pow", "Mod"),
        *("And", "Or", "Xor", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Where", "Cast"),
        *("Sum", "Mean", "Max", "Min"),
    )
)


def runs_on_vectors(step: Step | Kept) -> bool:
    """Whether a step does the same on flat vectors: its values have one shape, and its constants one element."""
    call: OnnxCall = step.call
    shapes = {*step.shapes, *(value.shape for value in step.outputs)}
    constants = (arg for arg in call.args if isinstance(arg, np.ndarray))
    return call.op_type in POINTWISE and len(shapes) == 1 and all(array.size == 1 for array in constants)


def write_kept(writer: Writer, step: Step | Kept, inputs: Sequence[str], results: Sequence[str], origin: str) -> None:
    """Write a kept step.

    Args:
        writer: Of the model.
        step: With a call.
        inputs: Names of its inputs; all are vectors where it runs on those.
        results: Names for its outputs.
        origin: What to name the node after.
    """
    call: OnnxCall = step.call
    formal = defs.get_schema(call.op_type, writer.opset).inputs
    elem_type = helper.np_dtype_to_tensor_dtype(writer.dtype)
    on_vectors = runs_on_vectors(step)
    args = []
    for number, arg in enumerate(call.args):
        if isinstance(arg, Slot):
            args.append(inputs[arg.number])
        elif arg is None:
            args.append("")
        else:
            # Some arguments are float32 whatever the type of the others: the scales of Resize.
            keeps_type = _type_name(elem_type) not in formal[min(number, len(formal) - 1)].types
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


def _type_name(elem_type: int) -> str:
    """A type as the schemas of operators write it."""
    return f"tensor({TensorProto.DataType.Name(elem_type).lower()})"
