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
from conv2affine.network.torch.layers import layout_bytes, row_chunks

__all__ = ["LayerRows"]

# Of a dense layer, and of a sparse one that is there as a whole.
BLOCK_BYTES = 2**24


class LayerRows:
    """The rows of a layer.

    Args:
        group: Where the layer is in the file.
        layer: The matrix, and its layout.
        dtype: float32 or float64.

    Raises:
        MemoryError: If it cannot be made by blocks, and needs more memory than is left.
    """

    def __init__(self, group: str, layer: Layer, dtype: torch.dtype) -> None:
        self.group, self.layer, self.dtype = group, layer, dtype
        self.rows, self.cols = layer.matrix.shape
        self.datasets: dict[str, tuple[torch.dtype, tuple[int, ...]]]
        self.attributes: dict[str, Any] = {"name": layer.name}
        if not isinstance(layer.matrix, Convolution):
            needed = layout_bytes(layer.matrix, dtype)["sparse"] + 12 * layer.matrix.nnz  # as it is computed in float64
            advice = "choose a smaller input, or merge='never'"
            check_left(f"{layer.name}, which is not written by blocks, and so", needed, advice)
        if layer.layout == "dense":
            self.datasets = {f"{group}weight": (dtype, (self.rows, self.cols))}
            return
        nnz = layer.matrix.nnz if isinstance(layer.matrix, Convolution) else self._csr().nnz  # exactly
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
        return self._slices(self._csr(), first)

    def _csr(self) -> csr_array:
        return self.layer.matrix.csr(np.float32 if self.dtype is torch.float32 else np.float64)

    def _dense_blocks(self, first: int) -> Iterator[Block]:
        step = max(1, BLOCK_BYTES // max(1, self.cols * self.dtype.itemsize))
        for chunk in row_chunks(self.layer.matrix, self.dtype, step, first):
            yield [(f"{self.group}weight", first * self.cols, chunk.flatten())], first + len(chunk)
            first += len(chunk)

    def _slices(self, csr: csr_array, first: int) -> Iterator[Block]:
        """A block at a time of a matrix that is written out."""
        data = torch.from_numpy(csr.data)
        starts, columns = (torch.from_numpy(part).to(self.index_dtype) for part in (csr.indptr, csr.indices))
        step = max(1, BLOCK_BYTES // 12 * self.rows // max(1, csr.nnz))
        for row in range(first, self.rows, step):
            block = starts[row : row + step + 1]
            before, after = block[[0, -1]].tolist()
            parts = block - before, columns[before:after], data[before:after]
            yield csr_block(self.group, row, before, parts), row + len(block) - 1
