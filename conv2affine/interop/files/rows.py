"""The layers of a network for a file: their datasets, and their rows by blocks."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.convolution.guard import check_left
from conv2affine.convolution.sizes import INT32_MAX
from conv2affine.interop.files.csr import csr_blocks
from conv2affine.interop.files.description import Layer
from conv2affine.interop.files.storage import CSR, Block, csr_block, csr_datasets
from conv2affine.network.matrices.layers import Convolution
from conv2affine.network.matrices.rows import by_rows, entries_at_once, rows_at_once, take_rows
from conv2affine.network.torch.layers import row_chunks

__all__ = ["LayerRows"]

BLOCK_BYTES = 2**24  # of a dense layer


class LayerRows:
    """The rows of a layer.

    Args:
        group: Where the layer is in the file.
        layer: The matrix, and its layout.
        dtype: float32 or float64.

    Raises:
        MemoryError: If what is in memory as a whole, while it is written, needs more than is left.
    """

    def __init__(self, group: str, layer: Layer, dtype: torch.dtype) -> None:
        self.group, self.layer, self.dtype = group, layer, dtype
        self.rows, self.cols = layer.matrix.shape
        self.datasets: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        self.attributes: dict[str, Any] = {"name": layer.name}
        advice = "choose a smaller input, or merge='never'"
        check_left(f"{layer.name}: parts of its layer", 16 * entries_at_once(layer.matrix), advice)
        if layer.layout == "dense":
            self.datasets = {f"{group}weight": (dtype, (self.rows, self.cols))}
            return
        is_known = isinstance(layer.matrix, Convolution)
        nnz = layer.matrix.nnz if is_known else sum(csr.nnz for _, csr in self._slices(range(self.rows)))
        self.index_dtype = torch.int32 if max(nnz, self.rows, self.cols) <= INT32_MAX else torch.int64
        self.datasets = csr_datasets(group, self.rows, nnz, dtype, self.index_dtype)
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
        step = max(1, BLOCK_BYTES // max(1, self.cols * self.dtype.itemsize))
        for chunk in row_chunks(self.layer.matrix, self.dtype, step, first):
            yield [(f"{self.group}weight", first * self.cols, chunk.flatten())], first + len(chunk)
            first += len(chunk)

    def _slices(self, rows: range) -> Iterator[tuple[int, csr_array]]:
        """Blocks of rows of any matrix, with the first row of each."""
        matrix, step = by_rows(self.layer.matrix), rows_at_once(self.layer.matrix)
        for start in rows[::step]:
            block = take_rows(matrix, range(start, min(start + step, rows.stop)))
            yield start, block.csr(np.float32 if self.dtype is torch.float32 else np.float64)

    def _sparse_blocks(self, first: int) -> Iterator[Block]:
        before = sum(csr.nnz for _, csr in self._slices(range(first)))
        for row, csr in self._slices(range(first, self.rows)):
            starts, columns = (torch.from_numpy(part).to(self.index_dtype) for part in (csr.indptr, csr.indices))
            yield csr_block(self.group, row, before, (starts, columns, torch.from_numpy(csr.data))), row + csr.shape[0]
            before += csr.nnz
