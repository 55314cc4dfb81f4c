"""Reads ONNX files, which may be broken or hostile: checks them, and puts them into the order of computation."""

from __future__ import annotations

import operator
import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, external_data_helper, inliner

from conv2affine.onnx.model import Model, input_info, location

__all__ = ["MAX_BYTES", "read"]

MAX_BYTES = 2**31 - 1  # of one protobuf message, of external data, and of all constants and values
MAX_NODES = 1_000_000  # of a model with its functions written out
MIN_OPSET = 7


def read(source: ModelProto | str | Path, shapes: Mapping[str, Sequence[int]] | None = None) -> Model:
    """Read and check a model.

    Args:
        source: The model, or its file.
        shapes: Shapes by input name, where sizes after the first are symbolic. A symbolic first size is taken as 1.

    Raises:
        TypeError: If `source` is neither, or `shapes` are not integers by name.
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX model, or breaks its rules; or if a size is missing.
    """
    if isinstance(source, ModelProto):
        proto = ModelProto()
        proto.CopyFrom(source)
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(f"source must be an onnx.ModelProto or the path of a file, got {type(source).__name__}")
    else:
        proto = _parse(Path(source))
    if not proto.graph.output:
        name = "the model" if isinstance(source, ModelProto) else source
        raise ValueError(f"{name} must be an ONNX model with outputs, and has none")
    _check_text(proto.graph)
    imports = [entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")]
    opset = imports[0].version if imports else 0
    if opset == MIN_OPSET:  # the next one only adds: broadcasting to Max, Min, Mean and Sum, attributes to MaxPool
        opset = imports[0].version = MIN_OPSET + 1
    elif not MIN_OPSET <= opset <= onnx.defs.onnx_opset_version():
        raise ValueError(
            f"the model's opset ({opset}) must be {MIN_OPSET} to {onnx.defs.onnx_opset_version()}; convert it with "
            "onnx.version_converter, or install a newer onnx"
        )
    try:
        if proto.functions:
            _check_functions(proto)
            proto = inliner.inline_local_functions(proto)
        _sort(proto.graph)
        _check(proto)
    except UnicodeDecodeError as error:
        raise ValueError(f"names in the model must be text in UTF-8, got {error.object!r:.100}") from error
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise ValueError(f"the model must be valid ONNX: {' '.join(str(error).split())}") from error
    initializers = {tensor.name for tensor in proto.graph.initializer}
    infos = [info for info in proto.graph.input if info.name not in initializers]
    given, names = _shapes(shapes or {}), [info.name for info in infos]
    if not set(given).issubset(names):
        raise ValueError(f"shapes must be of inputs ({', '.join(names)}), got {', '.join(given)}")
    inputs = tuple(input_info(info.name, info.type, given.get(info.name)) for info in infos)
    return Model(proto, opset, inputs, tuple(info.name for info in proto.graph.output))


def _parse(path: Path) -> ModelProto:
    try:
        size = path.stat().st_size
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or with NUL
        raise ValueError(f"source ({str(path)!r}) must be a path that a file can have: {error}") from error
    if size > MAX_BYTES:
        raise ValueError(f"{path} ({size} bytes) must be at most {MAX_BYTES} bytes, without its external data")
    try:
        proto: ModelProto = ModelProto.FromString(path.read_bytes())
    except DecodeError as error:
        raise ValueError(f"{path} must be an ONNX file, and is not, or is truncated") from error
    folder, total = path.resolve().parent, size
    for tensor in external_data_helper._get_all_tensors(proto):
        if external_data_helper.uses_external_data(tensor):
            total += _load_external(tensor, folder, MAX_BYTES - total)
    return proto


def _load_external(tensor: TensorProto, folder: Path, max_bytes: int) -> int:
    """Read the data of a tensor from a file in the folder of the model; gives the number of bytes."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name = str(entries.get("location", ""))
    file = (folder / name).resolve()
    if not name or not file.is_relative_to(folder):
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must lie in the folder of the model")
    if not file.is_file():
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must be a file, and is not there")
    length = str(entries.get("length", ""))
    size = int(length) if length.isdecimal() else file.stat().st_size
    if size > max_bytes:
        raise ValueError(
            f"external data of tensor {tensor.name} ({name!r}, {size} bytes) must not make the model larger than "
            f"{MAX_BYTES} bytes, however often tensors share a file"
        )
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must be readable: {error}") from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return len(tensor.raw_data)


def _check_text(graph: GraphProto) -> None:
    """Raise an error for names that are not text, which protobuf gives as bytes."""
    infos = [*graph.input, *graph.output]
    names = [
        *(info.name for info in infos),
        *(dim.dim_param for info in infos for dim in info.type.tensor_type.shape.dim),
        *(tensor.name for tensor in graph.initializer),
        *(name for node in graph.node for name in (node.name, node.op_type, node.domain, *node.input, *node.output)),
    ]
    for name in names:
        if not isinstance(name, str):
            raise ValueError(f"names in the model must be text in UTF-8, got {name!r}")


def _check(proto: ModelProto) -> None:
    """Check a model; inputs and outputs may lack shapes, which the checker asks for."""
    infos = [*proto.graph.input, *proto.graph.output]
    bare = [info for info in infos if info.type.HasField("tensor_type") and not info.type.tensor_type.HasField("shape")]
    for info in bare:
        info.type.tensor_type.shape.SetInParent()
    onnx.checker.check_model(proto)
    for info in bare:
        info.type.tensor_type.ClearField("shape")


def _shapes(shapes: object) -> dict[str, tuple[int, ...]]:
    """The shapes that are given, as integers."""
    try:
        return {name: tuple(map(operator.index, sizes)) for name, sizes in shapes.items()}  # type: ignore[attr-defined]
    except (AttributeError, TypeError):
        raise TypeError(f"shapes ({shapes!r}) must be sizes by name, as in {{'x': (1, 3, 32, 32)}}") from None


def _sort(graph: GraphProto) -> None:
    """Put the nodes into an order in which each uses only what comes before it."""
    nodes = list(graph.node)
    makers = {name: number for number, node in enumerate(nodes) for name in node.output if name}
    uses = {
        number: [makers[name] for name in sorted(_reads(node)) if name in makers] for number, node in enumerate(nodes)
    }
    if all(maker < number for number, made in uses.items() for maker in made):
        return
    try:
        ready = [nodes[number] for number in TopologicalSorter(uses).static_order()]
    except CycleError as error:
        names = ", ".join(location(nodes[number]) for number in error.args[1][:3])
        raise ValueError(f"nodes must not depend on their own results, and these do: {names}") from None
    copies = [NodeProto.FromString(node.SerializeToString()) for node in ready]
    del graph.node[:]
    graph.node.extend(copies)


def _check_functions(proto: ModelProto) -> None:
    """Raise an error if the functions of a model call themselves, or are too many nodes when written out."""
    functions = {(function.domain, function.name, function.overload): function for function in proto.functions}
    called = {
        key: Counter((node.domain, node.op_type, node.overload) for node in _all_nodes(function.node))
        for key, function in functions.items()
    }
    counts: dict[tuple[str, str, str], int] = {}
    try:
        for key in TopologicalSorter(
            {key: [*filter(functions.get, calls)] for key, calls in called.items()}
        ).static_order():
            counts[key] = sum(times * counts.get(callee, 1) for callee, times in called[key].items())
    except CycleError as error:
        names = ", ".join(name for _, name, _ in error.args[1][:3])
        raise ValueError(f"functions of the model must not call themselves, and these do: {names}") from None
    calls = ((node.domain, node.op_type, node.overload) for node in _all_nodes(proto.graph.node))
    total = sum(counts.get(key, 1) for key in calls)
    if total > MAX_NODES:
        raise ValueError(f"the model must have at most {MAX_NODES} nodes, and its functions written out have {total}")


def _all_nodes(nodes: Iterable[NodeProto]) -> Iterator[NodeProto]:
    """Nodes, and those of their subgraphs."""
    for node in nodes:
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                yield from _all_nodes(graph.node)


def _reads(node: NodeProto) -> set[str]:
    """What a node and its subgraphs read."""
    names = set(node.input)
    for attribute in node.attribute:
        for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
            names |= {name for inner in graph.node for name in _reads(inner)}
    return names
