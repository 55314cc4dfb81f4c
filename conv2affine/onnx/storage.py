"""Writes models: past the largest protobuf message with their data in a file next to them; and whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

from onnx import ModelProto, TensorProto

__all__ = ["check_target", "publish", "save"]

LARGE = 2**31 - 2**20  # bytes of data; the rest of a model is small
SUFFIX = ".data"
SMALL = 1024  # bytes of a tensor that stays in the model


def check_target(path: Path, overwrite: bool) -> None:
    """Raise an error if a file cannot be written there."""
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} must be there")
    if path.is_dir():
        raise IsADirectoryError(f"{path} must be a file, and is a folder")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{path} is there already; overwrite=True, or --force, replaces it")


def save(model: ModelProto, path: Path) -> None:
    """Write a model, the same bytes each time."""
    if sum(len(tensor.raw_data) for tensor in model.graph.initializer) > LARGE:
        model = _with_external_data(model, path)
    path.write_bytes(model.SerializeToString(deterministic=True))


def publish(file: Path, path: Path) -> None:
    """Move a model, and its data, to where it is wanted; the model itself last."""
    data = file.with_name(file.name + SUFFIX)
    if data.exists():
        path.unlink(missing_ok=True)  # it may have other data: whoever ends this here leaves no mixture
        os.replace(data, path.with_name(path.name + SUFFIX))
    os.replace(file, path)


def _with_external_data(model: ModelProto, path: Path) -> ModelProto:
    """The model without its large tensors, which are written to a file of their own."""
    tensors = list(model.graph.initializer)
    del model.graph.initializer[:]  # for a moment: what is left is small
    light = ModelProto()
    light.CopyFrom(model)
    model.graph.initializer.extend(tensors)
    location = path.name + SUFFIX
    with path.with_name(location).open("wb") as file:
        for tensor in tensors:
            if len(tensor.raw_data) <= SMALL:
                light.graph.initializer.append(tensor)
                continue
            entry = light.graph.initializer.add(name=tensor.name, dims=tensor.dims, data_type=tensor.data_type)
            entry.data_location = TensorProto.EXTERNAL
            position = {"location": location, "offset": str(file.tell()), "length": str(len(tensor.raw_data))}
            for key, value in position.items():
                entry.external_data.add(key=key, value=value)
            file.write(tensor.raw_data)
    return light
