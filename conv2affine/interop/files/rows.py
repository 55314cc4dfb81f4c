"""The layers of a network for a file: their datasets, and their rows by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import csr_array

from conv2affine.convolution.guard import check_left
from conv2affine.convolution.sizes import INT32_MAX
from conv2affine.interop.files.csr import CSR, csr_block, csr_blocks, csr_datasets
from conv2affine.interop.files.description import Layer
from conv2affine.interop.files.storage import Block
from conv2affine.network.matrices.layers import Convolution
from conv2affine.network.matrices.matrix import Matrix
from conv2affine.network.matrices.rows import by_rows, entries_of, held_entries, row_blocks, take_rows
from conv2affine.network.torch.layers import row_chunks

ENTRY_BYTES = 16  # of one in float64, with its column


class LayerRows:
    """The rows of a layer.

    Args:
        group: Where the layer is in the file.
        layer: The matrix, and its layout.
        dtype: Of its elements.

    Raises:
        MemoryError: If a block of rows, with what it needs of the factors of a product, needs more than is left.
    """

    def __init__(self, group: str, layer: Layer, dtype: torch.dtype) -> None:
        self.group, self.layer, self.dtype = group, layer, dtype
        self.rows, self.cols = layer.matrix.shape
        self.datasets: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        self.attributes: dict[str, Any] = {"name": layer.name}
        self.row_nnz: NDArray[np.int64] | None = None  # where they are not known by its shape
        if layer.layout == "dense":
            for _ in self._ranges(range(self.rows)):  # they are checked
                pass
            self.datasets = {f"{group}weight": (dtype, (self.rows, self.cols))}
            return
        if isinstance(layer.matrix, Convolution):
            nnz = layer.matrix.nnz
        else:
            slices = (np.diff(csr.indptr) for csr in self._slices(range(self.rows)))
            self.row_nnz = np.concatenate([np.empty(0, np.int64), *slices])
            nnz = int(self.row_nnz.sum())
        self.index_dtype = torch.int32 if max(nnz, self.rows, self.cols) <= INT32_MAX else torch.int64
        self.datasets = csr_datasets(group, self.rows, nnz, dtype, self.index_dtype)
        if dtype is not torch.bfloat16:  # which others would take for integers
            self.attributes |= {**CSR, "shape": (self.rows, self.cols)}

    def blocks(self, first: int) -> Iterator[Block]:
        """The rows from `first` on."""
        if first >= self.rows:
            return iter(())
        if self.layer.layout == "dense":
            return self._dense_blocks(first)
        matrix = self.layer.matrix
        if isinstance(matrix, Convolution):
            weight = matrix.weight.detach().to(self.dtype)
            return csr_blocks(self.group, weight, matrix.geometry, range(first, self.rows), self.index_dtype)
        return self._sparse_blocks(first)

    def _dense_blocks(self, first: int) -> Iterator[Block]:
        for chunk in row_chunks(self.layer.matrix, self.dtype, first):
            yield [(f"{self.group}weight", first * self.cols, chunk.flatten())], first + len(chunk)
            first += len(chunk)

    def _ranges(self, rows: range) -> Iterator[tuple[Matrix, range]]:
        """The matrix, and blocks of its rows that fit into memory."""
        if isinstance(self.layer.matrix, Convolution):
            return
        what, advice = f"{self.layer.name}: parts of its layer", "choose a smaller input, or merge='never'"
        check_left(what, ENTRY_BYTES * held_entries(self.layer.matrix), advice)
        matrix = by_rows(self.layer.matrix)
        for block in row_blocks(matrix, rows):
            if len(block) == 1:  # it may be of any size
                check_left(what, ENTRY_BYTES * entries_of(matrix, block), advice)
            yield matrix, block

    def _slices(self, rows: range) -> Iterator[csr_array]:
        """Blocks of rows of any matrix."""
        narrow = np.float32 if self.dtype is torch.float32 else np.float64
        return (take_rows(matrix, block).csr(narrow) for matrix, block in self._ranges(rows))

    def _sparse_blocks(self, first: int) -> Iterator[Block]:
        assert self.row_nnz is not None  # for the type checker
        before = int(self.row_nnz[:first].sum())
        for csr in self._slices(range(first, self.rows)):
            starts, columns = (torch.from_numpy(part).to(self.index_dtype) for part in (csr.indptr, csr.indices))
            parts = starts, columns, torch.from_numpy(csr.data).to(self.dtype)
            yield csr_block(self.group, first, before, parts), first + csr.shape[0]
            first, before = first + csr.shape[0], before + csr.nnz
