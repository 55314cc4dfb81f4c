"""From an ONNX model to a graph, one node at a time."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from onnx import NodeProto, TensorProto, TypeProto, helper, numpy_helper

from conv2affine.network.graph import Graph, Kept, Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.rules.operands import Context, NoRuleError, may_overflow, values
from conv2affine.onnx.call import OnnxCall
from conv2affine.onnx.importing.inference import (
    Budget,
    batch_advice,
    check_inference,
    check_node,
    check_size,
    check_work,
    infer,
    inferred_shape,
)
from conv2affine.onnx.importing.rules import FOR_NUMBERS, NEVER_TRUE, find_rule
from conv2affine.onnx.model import DTYPES, EPS, FLOATS, HALVES, CheckedModel, OnnxNetwork, TensorInfo, location
from conv2affine.onnx.running.runner import runner
from conv2affine.onnx.running.trials import DISPUTED, agrees, run_alone

# Types of inputs and outputs, which are generated and compared: those that NumPy has.
TYPES = frozenset(map(helper.np_dtype_to_tensor_dtype, map(np.dtype, "?bBhHiIqQefd")))
LARGE = 2**16  # elements of constants
WRITING = ("Scatter", "ScatterElements", "ScatterND")
SELECTING = re.compile("Gather.*|Slice|Split|Reduce.*|Arg.*")


@np.errstate(all="ignore")  # constants may hold anything; what matters is checked
def import_onnx(model: CheckedModel) -> OnnxNetwork:
    """The graph of a model, not simplified: one piece or step for each node.

    Raises:
        ValueError: If the model breaks the rules of its operators, or depends on chance.
        NotImplementedError: If it has what a graph cannot represent: subgraphs, sequences, other domains.
    """
    return _Importer(model).run()


class _Importer:
    def __init__(self, model: CheckedModel) -> None:
        self.model = model
        self.graph = Graph()
        self.advice = batch_advice(model)
        self.results: dict[str, Any] = {"": None}  # by name: values, or arrays where they depend on no input
        self.types: dict[str, TypeProto] = {}
        self.unsure: set[Value] = set()  # what may be infinite or no number for finite inputs
        self.made: dict[Any, list[Value]] = {}  # of each node that depends on inputs
        self.parameters: set[int] = set()  # addresses of the numbers of the file
        self.largest = torch.finfo(torch.float16 if model.rounding == EPS[TensorProto.FLOAT16] else torch.float32).max
        self.written: list[str] = []  # names of what is written into at places
        self.selected: list[str] = []  # and of what is selected or reduced
        self.budget = Budget(model.size)
        self.used = {*model.outputs, *(name for node in model.proto.graph.node for name in node.input if name)}

    def run(self) -> OnnxNetwork:
        """Import all nodes."""
        for tensor in self.model.inputs:
            self.budget.count(tensor.shape, f"input {tensor.name}")
            _check_type(tensor.elem_type, f"input {tensor.name}")
            self.results[tensor.name] = self.graph.add_input(tensor.shape, tensor.name)
            elem_type = TensorProto.FLOAT if tensor.elem_type in HALVES else tensor.elem_type
            self.types[tensor.name] = helper.make_tensor_type_proto(elem_type, tensor.shape)
        for initializer in self.model.wide.graph.initializer:
            self.budget.count(initializer.dims, f"initializer {initializer.name}")
            self.constant(initializer.name, _array(initializer, f"initializer {initializer.name}"))
        self.parameters = {x.ctypes.data for x in self.results.values() if isinstance(x, np.ndarray)}
        if self.model.wide.graph.sparse_initializer:
            raise NotImplementedError("sparse initializers must be written as dense ones")
        for node in self.model.wide.graph.node:
            self.node(node)
        outputs = []
        for name in self.model.outputs:
            result = self.results[name]
            elem_type = self.types[name].tensor_type.elem_type
            _check_type(elem_type, f"output {name}")
            if not isinstance(result, Value):
                if elem_type not in FLOATS:
                    raise NotImplementedError(f"output {name} must depend on an input, and is a constant; leave it out")
                result = self.graph.add_piece(AffineMap.constant(result), result.shape, name)
            if not result.size:
                raise NotImplementedError(f"output {name} must have elements, got shape {result.shape}")
            self.graph.add_output(result)
            outputs.append(TensorInfo(name, elem_type))
        if not self.model.inputs:
            raise ValueError("the model must have an input, and has constants only")
        types = [self.types[name].tensor_type.elem_type for name, x in self.results.items() if isinstance(x, Value)]
        return OnnxNetwork(
            self.graph,
            self.model.inputs,
            tuple(outputs),
            all(tensor.is_batched for tensor in self.model.inputs),
            self.model.opset,
            _dtype(self.model.inputs, outputs),
            max([self.model.rounding, *(EPS[type] for type in types if type in EPS)]) or EPS[TensorProto.FLOAT],
            tuple(self.written),
            tuple(self.selected),
        )

    def node(self, node: NodeProto) -> None:
        """Record the results of a node."""
        where = f"{node.op_type} node {location(node)}"
        names = [name for name in node.output if name in self.used]
        if not names:
            return
        check_node(node)
        args = [self.results[name] for name in node.input]
        check_inference(node, args, self.model.opset)
        shapes = self.infer(node, args, where)
        call, inputs = OnnxCall.of(node, self.model.opset, args, self.used)
        if node.op_type == "Constant" or not inputs or node.op_type in ("Shape", "Size"):
            blanks = [np.broadcast_to(np.float32(0), value.shape) for value in inputs]
            try:
                results = _fold(call, blanks, sum(map(prod, shapes)))
            except Exception as error:  # onnx.reference may raise anything
                raise ValueError(f"{where} must have a result: {error}") from error
            for name, result in zip(names, results, strict=True):
                self.constant(name, np.asarray(result))
            if node.op_type == "Constant":
                self.parameters.update(self.results[name].ctypes.data for name in names)
            return
        if node.op_type in FOR_NUMBERS and may_overflow(self.graph, inputs, self.largest):
            self.unsure.update(inputs)
        is_sure = self.unsure.isdisjoint(inputs)
        if is_sure and node.op_type in NEVER_TRUE and names[0] not in self.model.outputs:
            self.constant(names[0], np.zeros(shapes[0], bool))
            return
        self.written += names if node.op_type in WRITING else []
        self.selected += names if SELECTING.fullmatch(node.op_type) else []
        context = Context(self.graph, call, inputs, shapes, self.parameters, location(node))
        before = len(self.graph.nodes)
        # Equal nodes are one, so that rules see that h > 0 is about the h next to it.
        attributes = [attribute.SerializeToString() for attribute in node.attribute]
        key = (node.op_type, *map(id, args), *attributes, *(name in self.used for name in node.output))
        made = self.made[key] = self.made.get(key) or self.values(context, node, args, is_sure)
        is_sure = is_sure and not any(isinstance(each, Kept) for each in self.graph.nodes[before:])
        for name, value in zip(names, made, strict=True):
            self.results[name] = value
            if not is_sure and self.types[name].tensor_type.elem_type != TensorProto.BOOL:
                self.unsure.add(value)

    def constant(self, name: str, array: Any) -> None:
        """Record a constant."""
        check_size(array.shape, name)
        self.results[name] = array
        self.types[name] = helper.make_tensor_type_proto(helper.np_dtype_to_tensor_dtype(array.dtype), array.shape)

    def infer(self, node: NodeProto, args: list[Any], where: str) -> tuple[tuple[int, ...], ...]:
        """Record the types of the results of a node, and count them; returns the shapes of those that are used."""
        inferred = infer(node, self.model, self.results, self.types, where, self.advice)
        self.types.update(inferred)
        shapes = []
        for name in (name for name in node.output if name in self.used):
            shapes.append(inferred_shape(node, name, inferred, args, where))
            self.budget.count(shapes[-1], f"{where}: {name}")
            check_work(node, shapes[-1], where)
        return tuple(shapes)

    def values(self, context: Context, node: NodeProto, args: list[Any], is_sure: bool) -> list[Value]:
        """The results of a node that depends on inputs: by its rule, or from the kept operator."""
        moved = [name for name in node.input if isinstance(self.results[name], Value)]
        moved += [name for name in node.output if name in self.used]
        where = f"{node.op_type} node {context.origin}"
        rule = find_rule(node.op_type) if is_sure or node.op_type not in FOR_NUMBERS else None
        trial = None
        if node.op_type in DISPUTED:
            trial = run_alone(node, self.model.opset, self.results, self.types)
            made = [] if trial is None else [result.shape for result in trial[1]]
            if made and made[0] != context.shapes[0]:
                raise NotImplementedError(
                    f"{where}: its result must have the shape that onnx infers, {context.shapes[0]}, and the runtime "
                    f"gives {made[0]}; change its attributes"
                )
        if node.op_type == "Where" and isinstance(args[0], Value) and node.input[0] not in node.input[1:]:
            moved.remove(node.input[0])  # a mask
        others = [name for name in moved if self.types[name].tensor_type.elem_type not in FLOATS]
        if others:
            type = TensorProto.DataType.Name(self.types[others[0]].tensor_type.elem_type)
            reason = f"{others[0]} is of type {type.lower()}"
        elif rule is None:
            reason = "no rule covers the operator"
        else:
            attributes = {a.name: _shown(helper.get_attribute_value(a)) for a in node.attribute}
            before = len(self.graph.nodes)
            try:
                results = values(context, rule, args, attributes)
                if trial is None or agrees(self.graph.nodes[before:], trial):  # type: ignore[arg-type]  # no rule keeps
                    return results
                del self.graph.nodes[before:]
                reason = "the runtime computes it differently"
            except NoRuleError as error:
                reason = str(error) or "no rule covers it with these inputs"
            except (IndexError, ValueError) as error:  # of Python and NumPy, for axes and shapes that do not fit
                raise ValueError(f"{where} must follow the rules of its operator: {error}") from error
        if any(size == 0 for shape in context.shapes for size in shape):
            shapes = ", ".join(map(str, context.shapes))
            raise NotImplementedError(f"{where}: its result must have elements, got shape {shapes}")
        call = dataclasses.replace(context.call, reason=reason)
        return list(self.graph.add_kept(node.op_type, context.inputs, context.shapes, call, context.origin))


def _fold(call: OnnxCall, blanks: Sequence[Any], size: int) -> list[Any]:
    """The results, of `size` elements, of a node that depends on no input; large ones by the faster runtime."""
    if size + sum(arg.size for arg in call.args if isinstance(arg, np.ndarray)) <= LARGE or blanks:
        return call.run(blanks, double=False)
    feeds = call.feeds(())
    return runner(call.model(feeds))(feeds)


def _array(tensor: TensorProto, where: str) -> Any:
    """The array of a tensor."""
    check_size(tensor.dims, where)
    try:
        return numpy_helper.to_array(tensor)
    except Exception as error:  # a broken tensor may raise anything
        raise ValueError(f"{where} must hold a tensor: {error}") from error


def _check_type(elem_type: int, where: str) -> None:
    if elem_type not in TYPES and elem_type not in HALVES:
        name = TensorProto.DataType.Name(elem_type).lower()
        raise NotImplementedError(f"{where} must be of a type that NumPy has, and is of {name}; put a Cast next to it")


def _dtype(inputs: Sequence[TensorInfo], outputs: Sequence[TensorInfo]) -> torch.dtype:
    """The dtype of the layers, unless another is asked for."""
    if any(tensor.elem_type == TensorProto.DOUBLE for tensor in outputs):
        return torch.float64
    types = [tensor.elem_type for tensor in inputs if tensor.elem_type in FLOATS]
    return DTYPES[max(types, key=list(DTYPES).index, default=TensorProto.FLOAT)]


def _shown(attribute: Any) -> Any:
    """The value of an attribute, decoded if it is text."""
    return attribute.decode(errors="replace") if isinstance(attribute, bytes) else attribute
