"""An ONNX operator with its constant arguments, to run a step as it was."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, ModelProto, NodeProto, TensorProto, ValueInfoProto, defs, helper

from conv2affine.network.graph import Slot, Value
from conv2affine.onnx.reference import evaluator

# Version 14 of these differs from 13 in the types it takes only.
SAME_SINCE_13 = ("Add", "Div", "Mul", "Sub")
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


@dataclass(frozen=True, eq=False)
class OnnxCall:
    """An ONNX operator with its constant arguments.

    Args:
        op_type: Its name.
        opset: Opset that defines it.
        args: Its arguments: a `Slot` for each input, arrays for constants, None for what is left out.
        attributes: Its attributes.
        outputs: Names of all of its results in the file, "" for one that is left out.
        results: Which of its results are wanted.
        inputs: Names of its arguments in the file.
        reason: Why it is kept, if no rule covers it as it is.
    """

    op_type: str
    opset: int
    args: tuple[Any, ...]
    attributes: tuple[AttributeProto, ...]
    outputs: tuple[str, ...] = ("y",)
    results: tuple[int, ...] = (0,)
    inputs: tuple[str, ...] = ()
    reason: str = ""

    @classmethod
    def of(cls, node: NodeProto, opset: int, args: Sequence[Any], used: Container[str]) -> tuple[OnnxCall, list[Value]]:
        """The operator and its inputs: the values among its arguments, each once; `used` has the results wanted."""
        inputs = list(dict.fromkeys(arg for arg in args if isinstance(arg, Value)))
        slots = tuple(Slot(inputs.index(arg)) if isinstance(arg, Value) else arg for arg in args)
        results = tuple(number for number, name in enumerate(node.output) if name in used)
        names = tuple(node.output), results, tuple(node.input)
        return cls(node.op_type, opset, slots, tuple(node.attribute), *names), inputs

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What determines its results: the same in all opsets that define it alike."""
        schema = defs.get_schema(self.op_type, self.opset)
        attributes = {name: each.default_value.SerializeToString() for name, each in schema.attributes.items()}
        attributes |= {attribute.name: attribute.SerializeToString() for attribute in self.attributes}
        version = 13 if self.op_type in SAME_SINCE_13 else schema.since_version
        return self.op_type, version, self.args, attributes, len(self.outputs), self.results

    @property
    def tensors(self) -> list[str]:
        """Names in the file of its inputs and used results, if it comes from a file."""
        taken = [name for name, arg in zip(self.inputs, self.args, strict=False) if isinstance(arg, Slot)]
        return [*taken, *(self.outputs[number] for number in self.results)] if self.inputs else []

    def runs_on_vectors(self, shapes: Sequence[tuple[int, ...]]) -> bool:
        """Whether it computes the same on flat vectors; `shapes` are those of its inputs and its results."""
        constants = (arg for arg in self.args if isinstance(arg, np.ndarray))
        return self.op_type in POINTWISE and len(set(shapes)) == 1 and all(array.size == 1 for array in constants)

    def node(self, inputs: Sequence[str], outputs: Sequence[str], name: str = "") -> NodeProto:
        """The node of these names, one for each of `args` and of `outputs`.

        Unused results have names too: the operator may require them, or depend on their number.
        """
        node = NodeProto(op_type=self.op_type, input=inputs, output=outputs, name=name)
        node.attribute.extend(self.attributes)
        return node

    def filled(self, inputs: Sequence[Any]) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with inputs in their places, and its attributes."""
        args = tuple(inputs[arg.number] if isinstance(arg, Slot) else arg for arg in self.args)
        return args, {each.name: helper.get_attribute_value(each) for each in self.attributes}

    def run(self, inputs: Sequence[Any], *, double: bool = True) -> list[Any]:
        """Its results that are used, by `onnx.reference`, for arrays; if `double`, with float64 constants."""
        feeds = self.feeds(inputs)
        if double:
            for number, arg in enumerate(self.args):
                if isinstance(arg, np.ndarray) and arg.dtype.kind == "f":
                    feeds[f"x{number}"] = arg.astype(np.float64)
        model = self.model(feeds)
        try:
            run = evaluator(model).run
        except RuntimeError:  # it lacks the older version; later ones only add to it
            run = evaluator(model.graph.node[0]).run
        return list(run([info.name for info in model.graph.output], feeds))

    def feeds(self, inputs: Sequence[Any]) -> dict[str, Any]:
        """All its arguments, by their names in its model."""
        return {f"x{number}": array for number, array in enumerate(self.filled(inputs)[0]) if array is not None}

    def model(self, feeds: Mapping[str, Any]) -> ModelProto:
        """A model of this node alone: for a bare node, onnx.reference takes the newest opset."""
        names = [f"x{number}" if f"x{number}" in feeds else "" for number in range(len(self.args))]
        node = self.node(names, [output and f"y{number}" for number, output in enumerate(self.outputs)])
        read = [make_info(name, array) for name, array in feeds.items()]
        written = [ValueInfoProto(name=f"y{number}") for number in self.results]
        return one_node(node, self.opset, read, written)


def make_info(name: str, array: Any) -> ValueInfoProto:
    """The type of an array, under a name."""
    return helper.make_tensor_value_info(name, helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)


def one_node(
    node: NodeProto,
    opset: int,
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    constants: Sequence[TensorProto] = (),
) -> ModelProto:
    """The model of one node."""
    opsets = [helper.make_opsetid("", opset)]
    graph = helper.make_graph([node], "node", inputs, outputs, constants)
    return helper.make_model(graph, opset_imports=opsets, ir_version=max(4, helper.find_min_ir_version_for(opsets)))
