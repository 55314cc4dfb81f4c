"""The datasets of a file: which they are, where their bytes are, and of which type."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

NAME = "path"  # the attribute of a dataset that has its own name
DIGEST = "sha256"  # the dataset of what `digest_of` gives
DIGEST_BYTES = 32
READ_BYTES = 2**20


class Place(NamedTuple):
    """Where a dataset is.

    Args:
        dtype: Of its elements.
        shape: (size of each axis).
        offset: Of its first byte in the file; None if it is not contiguous, or has no elements.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    offset: int | None


def places(file: Any) -> dict[str, Place]:
    """All datasets of an open file, by name, without those that are links to others.

    Raises:
        ValueError: If one of them has another's place.
    """
    found: dict[str, Place] = {}

    def add(name: str, item: Any) -> None:
        if hasattr(item, "dtype"):
            written = item.attrs.get(NAME, name)
            if written != name:
                raise ValueError(f"dataset {name} must be the one that was written, and is {written}")
            found[name] = Place(item.dtype, item.shape, item.id.get_offset())

    file.visititems(add)
    return found


def mark(dataset: Any, name: str) -> None:
    """Write its name to a dataset, so that `places` finds it changed for another."""
    dataset.attrs[NAME] = name


def digest_of(opened: Any) -> bytes:
    """SHA-256 of a file opened by h5py: of its attributes, and of all datasets but its own, read block by block.

    Raises:
        ValueError: If one of them is not contiguous.
    """
    found = places(opened)
    attributes = sorted((name, np.asarray(value).tolist()) for name, value in opened.attrs.items())
    digest = hashlib.sha256(repr(attributes).encode())
    with open(opened.filename, "rb") as file:
        for name, (dtype, shape, _) in sorted(found.items()):
            if name == DIGEST:
                continue
            digest.update(f"{name} {dtype.str} {shape}".encode())
            left, _ = prod(shape) * dtype.itemsize, file.seek(offset_of(found, name))
            while left and (block := file.read(min(left, READ_BYTES))):
                digest.update(block)
                left -= len(block)
    return digest.digest()


def check_digest(opened: Any) -> None:
    """Refuse a file, opened by h5py, that does not hold what was written.

    Raises:
        ValueError: With the path.
    """
    path = opened.filename
    if DIGEST not in opened:
        raise ValueError(f"path ({path}) has no digest to check: an earlier version wrote it; pass check=False")
    if opened[DIGEST][...].tobytes() != digest_of(opened):
        raise ValueError(f"path ({path}) does not hold what was written: the file is damaged; write it again")


def byte_offset(found: Mapping[str, Place], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Where a dataset begins, which must have this dtype and shape; 0 if it has no elements.

    Raises:
        ValueError: If it has not, or is not contiguous.
    """
    place = found.get(name)
    if place is None or place[:2] != (numpy_dtype(dtype), shape):
        raise ValueError(f"dataset {name} must have {shape} elements of {dtype}, and has {place and place[:2]}")
    return offset_of(found, name)


def offset_of(found: Mapping[str, Place], name: str) -> int:
    """Where a dataset begins; 0 if it has no elements.

    Raises:
        ValueError: If it is not contiguous.
    """
    dtype, shape, offset = found[name]
    if not prod(shape):
        return 0
    if not offset or offset % dtype.itemsize:
        raise ValueError(f"dataset {name} must be contiguous in the file; another program may have written it")
    return offset


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The dtype of a dataset; bfloat16, which NumPy does not have, is the uint16 of the same bits."""
    return np.dtype(np.uint16 if dtype is torch.bfloat16 else str(dtype).removeprefix("torch."))
