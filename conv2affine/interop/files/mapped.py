"""A file of a network in memory: mapped, so that what is used is read from the disk, and no more."""

from __future__ import annotations

import mmap
import os
from math import prod

import torch
from torch import Tensor

from conv2affine.interop.files.datasets import byte_offset, places
from conv2affine.interop.files.paths import open_hdf5
from conv2affine.interop.files.storage import COUNTER
from conv2affine.operators.products import matmul
from conv2affine.sparse_linear import SparseLinear

KIND = "conv2affine_network"
# Entries of a block of rows that a product takes at a time.
BLOCK_ENTRIES = 2**20
# Pages that are not written to need no swap; Python 3.13 has the name, and Linux the number on all usual processors.
NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000)


class MappedFile:
    """The datasets of a file of `save_network`, as tensors in its memory. Writing to these does not reach the file.

    Args:
        path: Of a file that has all of its rows.

    Raises:
        ValueError: If it has not, or is another file.
        OSError: If there is no such file, or if it is not HDF5.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = path
        with open_hdf5(path) as file:
            if file.attrs.get("encoding-type") != KIND or "rows" not in file.attrs:
                raise ValueError(f"path ({path}) must be a file of save_network; open_csr reads those of save_csr")
            rows = int(file.attrs["rows"])
            try:
                self.places = places(file)
            except ValueError as error:
                raise ValueError(f"path ({path}) must be a file of save_network as it was written: {error}") from error
        with open(path, "rb") as opened:
            flags = mmap.MAP_PRIVATE | NORESERVE
            self.memory = mmap.mmap(opened.fileno(), 0, flags=flags, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        written = int(self.tensor(COUNTER, torch.int64, (1,)))
        if written != rows:
            raise ValueError(f"path ({path}) has {written} of {rows} rows; call save_network again to continue")

    def tensor(self, name: str, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
        """A dataset, which must have this dtype and shape."""
        offset = byte_offset(self.places, name, dtype, shape)
        if not offset:
            return torch.empty(shape, dtype=dtype)
        return torch.frombuffer(self.memory, dtype=dtype, count=prod(shape), offset=offset).view(shape)

    def text(self, name: str) -> str:
        """A dataset of text in UTF-8."""
        return bytes(self.tensor(name, torch.uint8, self.places[name][1]).numpy()).decode()

    def matrix(self, name: str, layout: str, dtype: torch.dtype, shape: tuple[int, int]) -> Tensor:
        """The weight of a layer; of a sparse one, the columns are not read yet."""
        if layout == "dense":
            return self.tensor(f"{name}weight", dtype, shape)
        if layout != "sparse":
            raise ValueError(f"layout ({layout!r}) must be dense or sparse")
        index_dtype = torch.int64 if self.places[f"{name}indptr"][0] == "int64" else torch.int32
        [nnz] = self.places[f"{name}data"][1]
        starts = self.tensor(f"{name}indptr", index_dtype, (shape[0] + 1,))
        columns = self.tensor(f"{name}indices", index_dtype, (nnz,))
        if starts[0] != 0 or starts[-1] != nnz or (starts.diff() < 0).any():
            raise ValueError(f"{name}indptr must ascend from 0 to the number of entries")
        values = self.tensor(f"{name}data", dtype, (nnz,))
        return torch.sparse_csr_tensor(starts, columns, values, shape, check_invariants=False)


class MappedLinear(SparseLinear):
    """A `SparseLinear` in a file: a product goes through the file once, by blocks of rows.

    It checks the columns before it uses them, so that no file makes it read anything else.
    """

    is_checked = False

    def _product(self, values: Tensor, x: Tensor) -> Tensor:
        if values.is_meta:
            return super()._product(values, x)
        if torch.compiler.is_exporting():  # where numbers have no values
            if not self.is_checked:
                raise ValueError("a network in a file must have run once before torch.export; a run checks its columns")
            return super()._product(values, x)
        step = max(1, BLOCK_ENTRIES * self.out_features // max(1, len(values)))
        blocks = []
        for start in range(0, self.out_features, step):
            starts = self.crow_indices[start : start + step + 1]
            entries = slice(*starts[[0, -1]].tolist())
            columns = self.col_indices[entries]
            if len(columns):
                first, last = torch.aminmax(columns)
                if first < 0 or last >= self.in_features:
                    raise ValueError(
                        f"columns must be from 0 to {self.in_features - 1}, and those of rows {start} to "
                        f"{start + len(starts) - 2} are not: the file is damaged"
                    )
            blocks.append(matmul(starts - starts[0], columns, values[entries].to(x.dtype), x))
        self.is_checked = True
        return torch.cat(blocks)
