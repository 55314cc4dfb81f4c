"""The datasets of a file: which they are, where their bytes are, and of which type."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch

NAME = "path"  # the attribute of a dataset that has its own name


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


def byte_offset(found: Mapping[str, Place], name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> int:
    """Where a dataset begins, which must have this dtype and shape; 0 if it has no elements.

    Raises:
        ValueError: If it has not, or is not contiguous.
    """
    place = found.get(name)
    if place is None or place[:2] != (numpy_dtype(dtype), shape):
        raise ValueError(f"dataset {name} must have {shape} elements of {dtype}, and has {place and place[:2]}")
    if not prod(shape):
        return 0
    if not place.offset or place.offset % dtype.itemsize:
        raise ValueError(f"dataset {name} must be contiguous in the file; another program may have written it")
    return place.offset


def numpy_dtype(dtype: torch.dtype) -> np.dtype[Any]:
    """The dtype of a dataset; bfloat16, which NumPy does not have, is the uint16 of the same bits."""
    return np.dtype(np.uint16 if dtype is torch.bfloat16 else str(dtype).removeprefix("torch."))
