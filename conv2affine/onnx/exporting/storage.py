"""Writes models, completely or not at all; large ones with their data in a file next to them."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from google.protobuf.message import DecodeError
from onnx import ModelProto, TensorProto, external_data_helper, helper

from conv2affine.network.proof.forward import Interval
from conv2affine.onnx.importing.reader import unpacked

LARGE = 2**27  # bytes of layers: a model with more has them in a file of their own
ALIGNMENT = 64
SUFFIX = ".data"
SMALL = 1024  # bytes of a tensor that stays in the model


def check_target(path: Path, overwrite: bool, *sources: object) -> None:
    """Raise an error if a file cannot be written there, or if it is one of those that are read."""
    if "\0" in str(path):
        raise ValueError(f"path ({str(path)!r}) must not hold NUL")
    try:
        str(path).encode()
    except UnicodeEncodeError:  # onnx requires it
        raise ValueError(f"path ({str(path)!r}) must be text in UTF-8") from None
    data = path.with_name(path.name + SUFFIX) if path.name else path
    try:
        os.lstat(data)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise ValueError(f"path ({path}) must be one that a file can have: {error.strerror}") from error
    if path.suffix == ".gz":
        raise ValueError(f"{path} must not have the name of a packed file: it is not packed; name it {path.stem}")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"the folder of {path} must be there")
    there = [file for file in (path, data) if os.path.lexists(file)]
    for file in there:
        if file.is_dir():
            raise IsADirectoryError(f"{file} must be a file, and is a folder")
        if file.exists() and not file.is_file():
            raise ValueError(f"{file} must be a regular file, and is a device, pipe or socket")
    for number, source in enumerate(sources):
        if not isinstance(source, str | os.PathLike):
            continue
        if path.exists() and os.path.exists(source) and path.samefile(source):
            raise ValueError(f"{path} must not be {'a file that is read' if number else 'the source itself'}")
        for file in there:
            if _has_data_in(Path(source), file):
                raise ValueError(f"{file} must not be replaced: the source has its data there; choose another path")
    if data in there and overwrite and not _has_data_in(path, data):
        raise FileExistsError(f"{data} is there and not the data of {path}; move it, or choose another path")
    if there and not overwrite:
        raise _is_there(there[0])


def _is_there(path: Path) -> FileExistsError:
    return FileExistsError(f"{path} is there already; overwrite=True, or --force, replaces it")


def _has_data_in(model: Path, data: Path) -> bool:
    """Whether a file is a model that has its data in another."""
    try:
        proto = ModelProto.FromString(unpacked(model))
    except (OSError, ValueError, DecodeError):
        return False
    tensors = external_data_helper._get_all_tensors(proto)
    names = {entry.value for tensor in tensors for entry in tensor.external_data if entry.key == "location"}
    return any((model.resolve().parent / name).resolve() == data.resolve() for name in names)


@contextmanager
def named(path: Path | None) -> Iterator[None]:
    """Errors of writing, such as that of a full disk, with the name of the file."""
    try:
        yield
    except OSError as error:
        if path is None or error.filename is not None or error.strerror is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def data_of(path: Path, size: int) -> Iterator[BinaryIO | None]:
    """The file for the data of a model of `size` bytes; None for a small one, which keeps its data in itself."""
    if size <= LARGE:
        yield None
        return
    with path.with_name(path.name + SUFFIX).open("wb") as file:
        yield file


def save(model: ModelProto, path: Path) -> None:
    """Write a model, the same bytes each time."""
    path.write_bytes(model.SerializeToString(deterministic=True))


def publish(file: Path, path: Path, overwrite: bool) -> None:
    """Move a model and its data to their destination, the model last.

    Raises:
        FileExistsError: If another writer was there first, and `overwrite` is not set.
    """
    data, wanted = file.with_name(file.name + SUFFIX), path.with_name(path.name + SUFFIX)
    has_data = data.exists()
    if not overwrite:
        if has_data:
            _place(data, wanted)
        try:
            _place(file, path)
        except OSError:
            if has_data:
                wanted.unlink()
            raise
        return
    check_target(path, overwrite)
    for new, old in ((file, path), (data, wanted)):
        if new.exists() and old.is_file():
            new.chmod(stat.S_IMODE(old.stat().st_mode))
    if has_data:
        path.unlink(missing_ok=True)  # it may have other data: an interruption never leaves mismatched files
        os.replace(data, wanted)
    os.replace(file, path)
    if not has_data:
        wanted.unlink(missing_ok=True)


def _place(file: Path, path: Path) -> None:
    """Move a file; unlike os.replace, it fails if the target exists."""
    try:
        os.link(file, path)
    except FileExistsError:
        raise _is_there(path) from None
    except OSError:  # the file system has no hard links
        path.open("x").close()
        os.replace(file, path)


def external_tensor(file: BinaryIO, name: str, shape: Sequence[int], dtype: Any, chunks: Iterable[Any]) -> TensorProto:
    """Write the data of a tensor to a file, one chunk of rows at a time; returns the tensor without it."""
    file.write(bytes(-file.tell() % ALIGNMENT))
    start = file.tell()
    for chunk in chunks:
        file.write(np.ascontiguousarray(chunk).reshape(-1).view(np.uint8).data)
    entry = TensorProto(name=name, dims=shape, data_type=helper.np_dtype_to_tensor_dtype(dtype))
    entry.data_location = TensorProto.EXTERNAL
    location = Path(file.name).name
    for key, value in (("location", location), ("offset", start), ("length", file.tell() - start)):
        entry.external_data.add(key=key, value=str(value))
    return entry


def save_bounds(bounds: Mapping[str, Interval], path: Path) -> None:
    """Write a NumPy file with the arrays NAME.low and NAME.high for each layer."""
    arrays = {f"{name}.{end}": array for name, pair in bounds.items() for end, array in pair._asdict().items()}
    with named(path), path.open("wb") as file:  # NumPy adds .npz to names without it
        try:
            np.savez_compressed(file, **arrays)
        except OSError:
            path.unlink()
            raise
