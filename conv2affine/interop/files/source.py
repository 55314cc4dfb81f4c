"""A name for what a network's file is made of: all that decides its bytes."""

from __future__ import annotations

import dataclasses
import hashlib
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array
from torch import Tensor

from conv2affine.network.matrices.matrix import Matrix


def source_of(*items: Any) -> str:
    """A digest of matrices, arrays and tensors, with all numbers in them, in lists and dicts; and of text."""
    digest, numbers = hashlib.sha256(), dict[int, int]()

    def add(item: Any) -> None:
        match item:
            case Tensor():
                add((str(item.dtype), *item.shape))
                digest.update(item.detach().contiguous().view(-1).view(torch.uint8).numpy().data)
            case np.ndarray():
                add((str(item.dtype), *item.shape))
                digest.update(np.ascontiguousarray(item).data)
            case csr_array():
                add((*item.shape, item.data, item.indices, item.indptr))
            case Matrix() if id(item) in numbers:  # parts of several products, which could be exponentially many
                add(numbers[id(item)])
            case Matrix():
                numbers[id(item)] = len(numbers)
                add((type(item).__name__, *(getattr(item, each.name) for each in dataclasses.fields(item))))  # type: ignore[arg-type]
            case tuple() | list():
                digest.update(f"({len(item)}:".encode())
                for part in item:
                    add(part)
            case dict():
                add(tuple(item.items()))
            case _:  # a number, text, or a geometry
                digest.update(f"{item!r},".encode())

    add(items)
    return digest.hexdigest()
