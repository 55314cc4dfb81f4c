"""From a PyTorch module to a network whose steps are ONNX operators, to be written as an ONNX model.

For users who have PyTorch and onnx only. `torch.onnx.export`, then `convert`, needs onnxscript; it writes operators of
opset 18, but old readers support 13 at most; and the result is compared with its file, not with the module.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import numpy as np
import torch
from onnx import AttributeProto, TensorProto, defs, helper
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.graph import Graph, Kept, Node, Piece, Slot, Step
from conv2affine.network.torch.importing.importer import import_torch
from conv2affine.network.torch.models.advice import no_batch
from conv2affine.network.torch.models.surroundings import users_device
from conv2affine.network.torch.models.unchanged import unchanged
from conv2affine.network.torch.noise import Noise
from conv2affine.onnx.call import OnnxCall
from conv2affine.onnx.model import FLOATS, OnnxNetwork, TensorInfo
from conv2affine.onnx.running.runner import Run

# The name of each operator that a module may keep, and the first opset in which it means the same. Their arguments are
# those of PyTorch.
ONNX_NAMES = {
    **{
        name: (name.capitalize(), 13) for name in ("ceil", "erf", "exp", "floor", "log", "neg", "reciprocal", "sigmoid")
    },
    **{name: (name.capitalize(), 13) for name in ("sign", "sqrt", "tanh", "add", "sub", "mul", "div", "softplus")},
    **{name: (name.capitalize(), 13) for name in ("acos", "asin", "atan", "cos", "cosh", "sin", "sinh", "tan")},
    "hardswish": ("HardSwish", 14),
    "matmul": ("MatMul", 13),
    "bmm": ("MatMul", 13),
    "mish": ("Mish", 18),
}
FIRST_OPSET = 13  # of the result; their meaning has not changed since
SOFTMAX = {"_softmax": "Softmax", "softmax": "Softmax", "_log_softmax": "LogSoftmax", "log_softmax": "LogSoftmax"}


def import_module(model: nn.Module, examples: Sequence[Tensor], wanted: int | None = None) -> OnnxNetwork:
    """The network of a module, with operators of the wanted opset if it has them all.

    Raises:
        TypeError: If an input has a type that ONNX files of linear layers do not have.
        NotImplementedError: If a step has no ONNX operator here; the message names it.
    """
    network = import_torch(model, examples, floats=True)
    for constant in network.constants:
        raise NotImplementedError(
            f"outputs must depend on the inputs or have the dtype {network.dtype}, and one is a constant of "
            f"{constant.dtype}; leave it out"
        )
    graph, opset = as_onnx(network.graph, wanted)
    if any(dtype not in (torch.float32, torch.float64) for dtype in network.input_dtypes):
        raise TypeError(
            "example_inputs must be tensors of float32 or float64, or integers that the model casts to that before "
            "it computes anything else; call model.float(), or let it begin with x.float()"
        )
    elem_types = [helper.np_dtype_to_tensor_dtype(x[:0].cpu().numpy().dtype) for x in examples]
    inputs = tuple(
        TensorInfo(value.name, elem_type, ("batch", *value.shape[1:]), value.shape, is_cast=elem_type not in FLOATS)
        for value, elem_type in zip(graph.inputs, elem_types, strict=True)
    )
    eps = max(torch.finfo(dtype).eps for dtype in network.dtypes)
    names = ["output"] if len(graph.outputs) == 1 else [f"output_{number}" for number in range(len(graph.outputs))]
    outputs = tuple(TensorInfo(name, TensorProto.FLOAT) for name in names)
    return OnnxNetwork(graph, inputs, outputs, True, opset, network.dtype, eps)


def as_onnx(graph: Graph, wanted: int | None) -> tuple[Graph, int]:
    """A module's graph with ONNX operators for those of PyTorch; and their opset, at least the wanted one.

    Raises:
        NotImplementedError: If a step has no ONNX operator here; the message names it.
    """
    # One opset for all: a later one only adds to what these operators take.
    kinds = {node.kind for node in graph.nodes if isinstance(node, Kept)}
    opset = max([FIRST_OPSET, wanted or 0, *(first for kind, (_, first) in ONNX_NAMES.items() if kind in kinds)])
    return dataclasses.replace(graph, nodes=[_node(node, opset) for node in graph.nodes]), opset


def module_runner(model: nn.Module, network: OnnxNetwork) -> Run:
    """Runs a module the way others run an ONNX model."""
    device = next((tensor.device for tensor in [*model.parameters(), *model.buffers()]), torch.device("cpu"))

    def run(mode: Any, inputs: Mapping[str, Any]) -> list[Any]:
        batch = [torch.tensor(inputs[tensor.name], device=device) for tensor in network.inputs]
        with unchanged(model), torch.no_grad(), users_device(batch), mode:
            try:
                result = model(*batch)
            except Exception as error:
                raise no_batch(len(batch[0]), error) from error
        return [leaf.numpy(force=True) for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor)]

    return Run(functools.partial(run, nullcontext()), noisy=lambda *given: Run(functools.partial(run, Noise(*given))))


def _node(node: Node, opset: int) -> Node:
    """The node, with an ONNX operator for that of PyTorch."""
    if isinstance(node, Piece):
        return node
    if isinstance(node, Step):  # its kind defines it
        return dataclasses.replace(node, call=None)
    name, args, kwargs = node.kind, node.call.args, node.call.kwargs
    attributes: tuple[AttributeProto, ...] = ()
    if name == "softplus" and args[1:] == (1, 20):  # beta and threshold, which ONNX lacks, at their defaults
        args = args[:1]
    if name in SOFTMAX and len(args) > 1:
        op_type, attributes = SOFTMAX[name], (helper.make_attribute("axis", args[1]),)
        args = args[:1]
    elif (
        name in ONNX_NAMES
        and not kwargs
        and all(isinstance(arg, Slot | Tensor | float | int) for arg in args)
        and len(args) <= defs.get_schema(*ONNX_NAMES[name]).max_input
    ):
        op_type = ONNX_NAMES[name][0]
    else:
        raise NotImplementedError(
            f"{', '.join(node.origin)} ({name}) has no ONNX operator here; use torch.onnx.export, and convert the file"
        )
    call = OnnxCall(op_type, opset, tuple(map(_argument, args)), attributes, reason="it is not affine")
    return dataclasses.replace(node, call=call)


def _argument(argument: Any) -> Any:
    if isinstance(argument, Slot):
        return argument
    if isinstance(argument, Tensor):
        return argument.detach().cpu().numpy()
    return np.array(argument, np.float64)
