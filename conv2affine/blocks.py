"""Blocks of rows: what each engine past one machine builds its part of a matrix from."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from conv2affine import ops
from conv2affine.geometry import Conv, Geometry, Sizes
from conv2affine.layouts import INDEX_DTYPES, check_request
from conv2affine.matrix import build
from conv2affine.memory import check_memory

__all__ = ["BLOCK_BYTES", "bias_rows", "check_csr", "csr_rows", "matrix_rows", "row_blocks", "weight_and_geometry"]

# Bytes of a block of rows. So few are made by one thread, which is faster than a disk: threads that wait for each other
# on a busy machine took 18 s for 0.9 GB in blocks of 1 MB, and one thread 0.1 s.
BLOCK_BYTES = 2**18


def weight_and_geometry(conv: Conv | Tensor, input_size: Sizes | Geometry) -> tuple[Tensor, Geometry]:
    """The two things that decide every row, from a layer and its input size, or as they were passed.

    The weight of a layer is read once, so every block comes from the same values.
    """
    if isinstance(conv, Tensor) and isinstance(input_size, Geometry):
        input_size.canonical(conv)  # for its checks
        return conv, input_size
    if isinstance(conv, Tensor) or isinstance(input_size, Geometry):
        raise TypeError(
            "conv and input_size must be a layer and its input size, or a weight and its Geometry, got "
            f"{type(conv).__name__} and {type(input_size).__name__}"
        )
    return conv.weight, Geometry.from_layer(conv, input_size)


def matrix_rows(
    weight: Tensor,
    geometry: Geometry,
    rows: range,
    layout: torch.layout = torch.strided,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Tensor:
    """A block of rows of the matrix, as `to_matrix(conv, input_size, rows=rows, ...)`."""
    return build(weight, geometry, layout, rows, index_dtype, drop_zeros)


def csr_rows(
    weight: Tensor, geometry: Geometry, rows: range, index_dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor, Tensor]:
    """(crow_indices, col_indices, values) of a block of rows, without the sparse tensor, of which PyTorch warns.

    Example:
        >>> csr_rows(torch.tensor([[[1.0, 2.0]]]), Geometry(1, 1, (2,), 4), range(1, 3))
        (tensor([0, 2, 4]), tensor([1, 2, 2, 3]), tensor([1., 2., 1., 2.]))
    """
    return ops.csr(weight, geometry, rows.start, rows.stop, index_dtype, transpose=False)


def check_csr(geometry: Geometry, dtype: torch.dtype, rows: range, index_dtype: torch.dtype) -> None:
    """Raise MemoryError if there is not enough memory left for these rows in CSR."""
    request = check_request(geometry, torch.sparse_csr, rows, index_dtype)
    check_memory(geometry, torch.empty(0, dtype=dtype, device="cpu"), request)


def bias_rows(bias: Tensor, geometry: Geometry, rows: range) -> Tensor:
    """The part of `to_bias(conv, input_size)` that belongs to these rows.

    Example:
        >>> bias_rows(torch.tensor([5.0, 7.0]), Geometry(1, 2, (2,), 4), range(2, 5))
        tensor([5., 7., 7.])
    """
    positions = prod(geometry.output_size)
    channels = range(rows.start // positions, -(-rows.stop // positions))
    block = bias[channels.start : channels.stop].repeat_interleave(positions)
    start = rows.start - channels.start * positions
    return block[start : start + len(rows)].clone()


def row_blocks(geometry: Geometry, dtype: torch.dtype, rows: range, limit: int) -> Iterator[range]:
    """`rows` in blocks, each of which takes at most `limit` bytes in CSR, unless a single row takes more.

    Example:
        >>> geometry = Geometry(1, 1, (3,), 10)  # 3 entries of 4 + 8 bytes, and 8 bytes for where the row starts
        >>> list(row_blocks(geometry, torch.float32, range(8), 150))
        [range(0, 3), range(3, 6), range(6, 8)]
    """
    index = max(index_dtype.itemsize for index_dtype in INDEX_DTYPES)
    entries = geometry.in_channels // geometry.groups * prod(geometry.kernel_size)  # at most, in one row
    step = max(1, limit // (entries * (dtype.itemsize + index) + index))
    return (rows[start : start + step] for start in range(0, len(rows), step))
