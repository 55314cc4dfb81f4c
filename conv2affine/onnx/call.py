"""An ONNX operator with its constant arguments: how a step is run as it was."""

from __future__ import annotations

from collections.abc import Container, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from onnx import AttributeProto, NodeProto, ValueInfoProto, helper
from onnx.reference import ReferenceEvaluator

from conv2affine.network.graph import Kept, Step, Value
from conv2affine.network.torch.call import Slot

__all__ = ["OnnxCall", "runs_on_vectors"]

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
        opset: By which it is meant.
        args: Its arguments: a `Slot` for each input, arrays for constants, None for what is left out.
        attributes: Its attributes.
        outputs: Names of all of its results in the file, "" for one that is left out.
        results: Which of its results are wanted.
        inputs: Names of its arguments in the file.
        reason: Why it is kept, if no rule knows it as it is.
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
    def tensors(self) -> list[str]:
        """Names in the file of the values that it takes and gives, if it comes from a file."""
        taken = [name for name, arg in zip(self.inputs, self.args, strict=False) if isinstance(arg, Slot)]
        return [*taken, *(self.outputs[number] for number in self.results)] if self.inputs else []

    def node(self, inputs: Sequence[str], outputs: Sequence[str], name: str = "") -> NodeProto:
        """The node of these names, one for each of `args` and of `outputs`.

        A result that nothing uses has a name all the same: the operator may require it, or go by their number.
        """
        node = NodeProto(op_type=self.op_type, input=inputs, output=outputs, name=name)
        node.attribute.extend(self.attributes)
        return node

    def run(self, inputs: Sequence[Any], *, double: bool = False) -> list[Any]:
        """Its results that are used, of arrays, by `onnx.reference`; with constants as float64 too if `double`."""
        feeds = {}
        for number, arg in enumerate(self.args):
            if isinstance(arg, Slot):
                feeds[f"x{number}"] = inputs[arg.number]
            elif arg is not None:
                feeds[f"x{number}"] = arg.astype(np.float64) if double and arg.dtype.kind == "f" else arg
        names = [f"x{number}" if f"x{number}" in feeds else "" for number in range(len(self.args))]
        node = self.node(names, [output and f"y{number}" for number, output in enumerate(self.outputs)])
        # As a model: of a node alone, onnx.reference takes the newest meaning.
        wanted = [f"y{number}" for number in self.results]
        read, written = ([ValueInfoProto(name=name) for name in side if name] for side in (names, wanted))
        graph = helper.make_graph([node], "node", read, written)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", self.opset)])
        try:
            evaluator = ReferenceEvaluator(model)
        except RuntimeError:  # it has no older one: what changed since is an addition
            evaluator = ReferenceEvaluator(node)
        return list(evaluator.run(wanted, feeds))


def runs_on_vectors(step: Step | Kept) -> bool:
    """Whether a step does the same on flat vectors: its values have one shape, and its constants one element."""
    call: OnnxCall = step.call
    shapes = {*step.shapes, *(value.shape for value in step.outputs)}
    constants = (arg for arg in call.args if isinstance(arg, np.ndarray))
    return call.op_type in POINTWISE and len(shapes) == 1 and all(array.size == 1 for array in constants)
