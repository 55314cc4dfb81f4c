"""Reads ONNX files, which may be broken or hostile: checks them, and puts them into the order of computation."""

from __future__ import annotations

import copy
import gzip
import operator
import os
import zlib
from collections.abc import Mapping, Sequence
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, TensorProto, external_data_helper

from conv2affine.onnx.importing.functions import all_nodes, inlined
from conv2affine.onnx.importing.upgrade import check, name_parts, open_sizes, upgraded, widened
from conv2affine.onnx.model import CheckedModel, input_info, location, one_line

PROTOBUF_BYTES = 2**31 - 1  # of one protobuf message, of external data, and of all constants and values
LFS_POINTER = b"version https://git-lfs"
GZIP = b"\x1f\x8b"
# Limits for an unpacked gzip file: weights do not compress better.
SMALL_FILE, MAX_RATIO = 2**27, 20
BASE_BYTES = 2**26  # that any model may ask for, however small its files are


def read(
    source: ModelProto | str | Path, shapes: Mapping[str, Sequence[int]] | None = None, argument: str = "shapes"
) -> CheckedModel:
    """Read and check a model.

    Args:
        source: The model, or its file.
        shapes: Shapes by input name, where sizes after the first are symbolic. A symbolic first size is taken as 1.
        argument: What gave these names, in messages.

    Raises:
        TypeError: If `source` is neither, or `shapes` are not integers by name.
        FileNotFoundError: If there is no such file.
        ValueError: If it is not an ONNX model, or breaks its rules; or if a size is missing.
    """
    if isinstance(source, ModelProto):
        proto = copy.deepcopy(source)
        size = proto.ByteSize()
    elif not isinstance(source, str | os.PathLike):
        raise TypeError(
            f"source must be an onnx.ModelProto or the path of a file, got {type(source).__name__}; for a module, call "
            "conv2affine.onnx.export, conv2affine.plan or conv2affine.check"
        )
    else:
        proto, size = _parse(Path(source))
    if not proto.graph.output:
        name = "the model" if isinstance(source, ModelProto) else source
        raise ValueError(f"{name} must be an ONNX model with outputs, and has none")
    _check_text(proto.graph)
    open_sizes(proto)
    try:
        proto = inlined(upgraded(proto))
        name_parts(proto.graph)
        _sort(proto.graph)
        check(proto)
    except UnicodeDecodeError as error:
        raise ValueError(f"names in the model must be text in UTF-8, got {error.object!r:.100}") from error
    except (onnx.checker.ValidationError, RuntimeError) as error:
        raise ValueError(f"the model must be valid ONNX: {one_line(error)}") from error
    initializers = {tensor.name for tensor in proto.graph.initializer}
    infos = [info for info in proto.graph.input if info.name not in initializers]
    given, names = _shapes(shapes or {}), [info.name for info in infos]
    if not set(given).issubset(names):
        advice = "" if argument == "shapes" else "; or be a tuple, which goes by places"
        raise ValueError(f"{argument} must be of inputs ({', '.join(names)}), got {', '.join(given)}{advice}")
    inputs = tuple(input_info(info.name, info.type, given.get(info.name)) for info in infos)
    opset = next(entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx"))
    return CheckedModel(proto, *widened(proto), opset, inputs, tuple(info.name for info in proto.graph.output), size)


def _parse(path: Path) -> tuple[ModelProto, int]:
    """The model of a file, with its external data; and the bytes of both."""
    try:
        size = path.stat().st_size
    except (FileNotFoundError, PermissionError):
        raise
    except (OSError, ValueError) as error:  # a name that is too long, or with NUL
        raise ValueError(f"source ({str(path)!r}) must be a path that a file can have: {error}") from error
    if size > PROTOBUF_BYTES:
        raise ValueError(f"{path} ({size} bytes) must be at most {PROTOBUF_BYTES} bytes, without its external data")
    data = unpacked(path)
    try:
        proto: ModelProto = ModelProto.FromString(data)
    except DecodeError as error:
        advice = "; it is a pointer to one: run git lfs pull" if data.startswith(LFS_POINTER) else ""
        raise ValueError(f"{path} must be an ONNX file, and is not, or is truncated{advice}") from error
    folder, files = path.resolve().parent, dict[Path, int]()
    tensors = [*filter(external_data_helper.uses_external_data, external_data_helper._get_all_tensors(proto))]
    for tensor in tensors:
        file = _external_file(tensor, folder)
        files[file] = file.stat().st_size
    max_bytes = left = min(PROTOBUF_BYTES - len(data), BASE_BYTES + sum(files.values()))
    for tensor in tensors:
        left -= _load_external(tensor, folder, left, max_bytes)
    return proto, size + sum(files.values())


def unpacked(path: Path) -> bytes:
    """The bytes of a file, unpacked if it is a gzip file, as in VNN-COMP."""
    with path.open("rb") as file:
        if file.read(len(GZIP)) != GZIP:
            return path.read_bytes()
    size = path.stat().st_size
    max_bytes = min(PROTOBUF_BYTES, max(SMALL_FILE, MAX_RATIO * size))
    try:
        with gzip.open(path) as unpacked:
            data = unpacked.read(max_bytes + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{path} must be a gzip file, and is broken: {error}") from error
    if len(data) > max_bytes:
        raise ValueError(f"{path} ({size} bytes) must be at most {max_bytes} bytes when unpacked")
    return data


def _external_file(tensor: TensorProto, folder: Path) -> Path:
    """The file that has the data of a tensor, in the folder of the model."""
    name = next((str(entry.value) for entry in tensor.external_data if entry.key == "location"), "")
    file = (folder / name).resolve()
    if not name or not file.is_relative_to(folder):
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must lie in the folder of the model")
    if not file.is_file():
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must be a file, and is not there")
    return file


def _load_external(tensor: TensorProto, folder: Path, left: int, max_bytes: int) -> int:
    """Read the external data of a tensor, at most `left` bytes; returns their number."""
    entries = {entry.key: entry.value for entry in tensor.external_data}
    name, length = str(entries["location"]), str(entries.get("length", ""))
    size = int(length) if length.isdecimal() else (folder / name).stat().st_size
    if size > left:
        raise ValueError(
            f"external data of tensor {tensor.name} ({name!r}, {size} bytes) must not make that of the model larger "
            f"than {max_bytes} bytes, however often tensors share a file"
        )
    try:
        external_data_helper.load_external_data_for_tensor(tensor, str(folder))
    except (ValueError, onnx.checker.ValidationError) as error:
        raise ValueError(f"external data of tensor {tensor.name} ({name!r}) must be readable: {error}") from error
    tensor.data_location = TensorProto.DEFAULT
    del tensor.external_data[:]
    return len(tensor.raw_data)


def _check_text(graph: GraphProto) -> None:
    """Raise an error for names that are not text, which protobuf returns as bytes."""
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
    read = [sorted({name for each in all_nodes([node]) for name in each.input}) for node in nodes]
    uses = {number: [makers[name] for name in names if name in makers] for number, names in enumerate(read)}
    if all(maker < number for number, made in uses.items() for maker in made):
        return
    try:
        ready = [copy.deepcopy(nodes[number]) for number in TopologicalSorter(uses).static_order()]
    except CycleError as error:
        names = ", ".join(location(nodes[number]) for number in error.args[1][:3])
        raise ValueError(f"nodes must not depend on their own results, and these do: {names}") from None
    del graph.node[:]
    graph.node.extend(ready)
