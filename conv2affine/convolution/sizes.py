"""Bytes of a matrix in each layout, and the index dtypes that can count its entries."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch

INT32_MAX = 2**31 - 1
SMALL_BYTES = 2**20


@dataclass(frozen=True, slots=True)
class Size:
    """The size of a matrix, or of a block of its rows, in one layout."""

    layout: torch.layout
    rows: int
    cols: int
    nnz: int
    dtype: torch.dtype
    index_dtype: torch.dtype

    @property
    def name(self) -> str:
        """The key of the layout in `Plan.bytes`."""
        return layout_name(self.layout, self.index_dtype)

    @property
    def bytes(self) -> int:
        """Bytes of the matrix."""
        stored = INDICES[self.layout]
        values = self.nnz if stored.per_entry else self.rows * self.cols
        return values * self.dtype.itemsize + stored.count(self) * self.index_dtype.itemsize

    def peak_bytes(self, drop_zeros: bool) -> int:
        """Bytes at the peak: the result's, and with drop_zeros those of the worst case, in which no entry is 0.

        For each entry, dropping takes a flag, the place (int64) of an entry that is kept, and a second copy of the
        indices or of the values, whichever is larger.
        """
        indices = INDICES[self.layout].per_entry * self.index_dtype.itemsize
        dropping = self.nnz * (1 + torch.int64.itemsize + max(indices, self.dtype.itemsize))
        return self.bytes + dropping * drop_zeros


class Indices(NamedTuple):
    """The indices that a layout stores with its values.

    Args:
        dtypes: To choose from, the preferred one first; empty where there are no indices.
        per_entry: Indices per entry; 0 for a layout that stores all elements.
        count: Number of all indices.
    """

    dtypes: tuple[torch.dtype, ...]
    per_entry: int
    count: Callable[[Size], int]


INDICES: dict[torch.layout, Indices] = {
    torch.strided: Indices((), 0, lambda size: 0),
    torch.sparse_csr: Indices((torch.int32, torch.int64), 1, lambda size: size.nnz + size.rows + 1),
    torch.sparse_csc: Indices((torch.int32, torch.int64), 1, lambda size: size.nnz + size.cols + 1),
    torch.sparse_coo: Indices((torch.int64,), 2, lambda size: 2 * size.nnz),
}


def layout_name(layout: torch.layout, index_dtype: torch.dtype) -> str:
    """The key of a layout in `Plan.bytes`.

    Example:
        >>> layout_name(torch.sparse_csr, torch.int32)
        'sparse_csr, int32'
    """
    name = str(layout).removeprefix("torch.")
    return name if not INDICES[layout].dtypes else f"{name}, {str(index_dtype).removeprefix('torch.')}"


def index_dtypes(layout: torch.layout, rows: int, cols: int, nnz: int) -> list[torch.dtype]:
    """The index dtypes of a layout that can count the entries of such a matrix, the preferred one first."""
    fits = max(nnz, rows, cols) <= INT32_MAX
    return [dtype for dtype in INDICES[layout].dtypes if fits or dtype is torch.int64]


def layout_sizes(rows: int, cols: int, nnz: int, dtype: torch.dtype) -> list[Size]:
    """The `Size` per layout and index dtype that can count the entries, the preferred index dtype first."""
    return [size for layout in INDICES for size in sizes_of(layout, rows, cols, nnz, dtype)]


def sizes_of(layout: torch.layout, rows: int, cols: int, nnz: int, dtype: torch.dtype) -> list[Size]:
    """The `Size` per index dtype that can count the entries, the preferred one first."""
    # A dense matrix has no indices, and none are counted.
    counting = index_dtypes(layout, rows, cols, nnz) or [torch.int64]
    return [Size(layout, rows, cols, nnz, dtype, index_dtype) for index_dtype in counting]


def prefers_dense(dense: int, sparse: int) -> bool:
    """Whether a matrix is better dense than sparse, by its bytes in both layouts: if it is small, or not much larger.

    A product with a sparse matrix takes longer per byte, and longer to start; a small matrix is also easier to read.
    """
    return dense <= max(SMALL_BYTES, 2 * sparse)


def readable_bytes(size: float) -> str:
    """A number of bytes with three digits and a decimal unit.

    Example:
        >>> readable_bytes(70560)
        '70.56 kB'
    """
    if size < 1000:
        return f"{size:.0f} B"
    units = ("kB", "MB", "GB", "TB", "PB")
    power = min(int(math.log10(size)) // 3, len(units))
    return f"{size / 1000**power:.2f} {units[power - 1]}"
