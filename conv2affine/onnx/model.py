"""A model: as its file has it, and as a network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from onnx import ModelProto, NodeProto, TensorProto, TypeProto

from conv2affine.network.graph import Graph

HALVES = (TensorProto.FLOAT16, TensorProto.BFLOAT16)
FLOATS = (TensorProto.FLOAT, TensorProto.DOUBLE, *HALVES)
BOX_KEY = "conv2affine.box"  # in the metadata of a chain for a box
# Of layers.
DTYPES: Mapping[int, torch.dtype] = {
    TensorProto.BFLOAT16: torch.bfloat16,
    TensorProto.FLOAT16: torch.float16,
    TensorProto.FLOAT: torch.float32,
    TensorProto.DOUBLE: torch.float64,
}
EPS = {elem_type: torch.finfo(dtype).eps for elem_type, dtype in DTYPES.items()}


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a model.

    Args:
        name: As in the file.
        elem_type: As in `onnx.TensorProto`.
        dims: A number, or a name for a size that is not fixed. Of an input.
        shape: Of a batch of one sample; all sizes are numbers. Of an input.
        is_cast: Whether the result takes integers as floating point. Of an input.
    """

    name: str
    elem_type: int
    dims: tuple[int | str, ...] = ()
    shape: tuple[int, ...] = ()
    is_cast: bool = False

    @property
    def is_floating(self) -> bool:
        """Whether the result takes it in the dtype of its layers."""
        return self.elem_type in FLOATS or self.is_cast

    @property
    def is_batched(self) -> bool:
        """Whether it may hold any number of samples, along its first axis."""
        return bool(self.dims) and isinstance(self.dims[0], str) and self.shape[0] == 1


@dataclass(frozen=True)
class CheckedModel:
    """A model that has passed all checks.

    Args:
        proto: The model, its nodes in the order of computation, its functions written out, its data in it.
        wide: The same with float32 for types of half the size.
        rounding: Of the coarsest of these; 0 if it has none.
        opset: Of the standard operators.
        inputs: Those that are not initializers.
        outputs: Their types are not read.
        size: Bytes of its file, as it is on disk, with its external data.
    """

    proto: ModelProto
    wide: ModelProto
    rounding: float
    opset: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[str, ...]
    size: int


@dataclass(frozen=True)
class OnnxNetwork:
    """An imported model.

    Args:
        graph: Its values are those of a batch of one sample.
        inputs: Of the model, as those of the graph.
        outputs: Of the model, as those of the graph; they have no shapes.
        is_batched: Whether all inputs may hold any number of samples.
        opset: Of the model.
        dtype: In which it computes: float64 if an input or output has that, else the widest type of the inputs.
        eps: Rounding of the coarsest type that it computes in.
        written: Names in the file of what it writes into at places.
        selected: Names in the file of what it selects or reduces.
    """

    graph: Graph
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    is_batched: bool
    opset: int
    dtype: torch.dtype
    eps: float
    written: tuple[str, ...] = ()
    selected: tuple[str, ...] = ()


def one_line(error: BaseException) -> str:
    """The message of an error of onnx or onnxruntime, which have several lines."""
    return " ".join(str(error).split())


def location(node: NodeProto) -> str:
    """The name of a node in messages."""
    return node.name or next(filter(None, node.output), "") or str(node.op_type)


def input_info(name: str, type: TypeProto, given: Sequence[int] | None) -> TensorInfo:
    """An input of a file; with the shape given, where the file leaves sizes open."""
    if not type.HasField("tensor_type"):
        raise ValueError(f"input {name} must be a tensor, got {type.WhichOneof('value')}")
    tensor = type.tensor_type
    if not tensor.HasField("shape"):
        if given is None:
            raise ValueError(f"input {name} must have a shape, and the file has none; {_advice(name, ['N', 3])}")
        return TensorInfo(name, tensor.elem_type, tuple(given), tuple(given))
    dims = tuple(
        dim.dim_value if dim.HasField("dim_value") else dim.dim_param or f"{name}_{axis}"
        for axis, dim in enumerate(tensor.shape.dim)
    )
    shown = ", ".join(map(str, dims))
    fits = given is None or (
        len(given) == len(dims) and all(isinstance(a, str) or a == b for a, b in zip(dims, given, strict=True))
    )
    if given is not None and not fits:
        raise ValueError(f"the shape given for input {name} ({tuple(given)}) must fit that in the file, ({shown})")
    shape = []
    for axis, dim in enumerate(dims):
        size = given[axis] if given is not None else 1 if isinstance(dim, str) and axis == 0 else dim
        if isinstance(size, str):
            raise ValueError(
                f"input {name} ({shown}) must have fixed sizes after its first axis; {_advice(name, dims)}"
            )
        if size < 1:
            raise ValueError(f"sizes of input {name} must be at least 1, got {size} in ({shown})")
        shape.append(size)
    return TensorInfo(name, tensor.elem_type, dims, tuple(shape))


def _advice(name: str, dims: Sequence[int | str]) -> str:
    """How to give a shape; the sizes that are open are examples."""
    sizes = [(32 if axis else 1) if isinstance(dim, str) else dim for axis, dim in enumerate(dims)]
    shown = ",".join(map(str, sizes))
    return f"pass shapes={{{name!r}: ({shown.replace(',', ', ')})}}, or --shape {name}={shown}, with its sizes"
