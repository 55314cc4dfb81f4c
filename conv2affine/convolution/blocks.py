"""Blocks of rows, from which processes and files build their parts of a matrix."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor

from conv2affine.convolution.build import checked_request
from conv2affine.convolution.geometry import Geometry
from conv2affine.operators import ops

# Entries in a block of rows. One thread makes so few of them, faster than a disk writes. In blocks four times as large,
# 0.9 GB took 18 s with two threads on a busy machine, where they waited for each other, and 0.1 s with one.
BLOCK_ENTRIES = 2**15


def csr_rows(
    weight: Tensor, geometry: Geometry, rows: range, index_dtype: torch.dtype = torch.int64
) -> tuple[Tensor, Tensor, Tensor]:
    """(crow_indices, col_indices, values) of a block of rows, without checks: those take longer than a small block.

    Example:
        >>> csr_rows(torch.tensor([[[1.0, 2.0]]]), Geometry(1, 1, (2,), input_size=4), range(1, 3))
        (tensor([0, 2, 4]), tensor([1, 2, 2, 3]), tensor([1., 2., 1., 2.]))
    """
    return ops.csr(weight, geometry, rows.start, rows.stop, index_dtype, by_columns=False)


def check_rows(weight: Tensor, geometry: Geometry, index_dtype: torch.dtype) -> None:
    """The checks that `csr_rows` leaves out, for all blocks; raises as `to_matrix`."""
    checked_request(weight, geometry, torch.sparse_csr, range(1), index_dtype, drop_zeros=False)


def bias_rows(bias: Tensor, geometry: Geometry, rows: range) -> Tensor:
    """The part of `to_bias(conv, input_size)` that belongs to these rows.

    Example:
        >>> bias_rows(torch.tensor([5.0, 7.0]), Geometry(1, 2, (2,), input_size=4), range(2, 5))
        tensor([5., 7., 7.])
    """
    positions = prod(geometry.output_size)
    channels = range(rows.start // positions, -(-rows.stop // positions))
    block = ops.bias(bias[channels.start : channels.stop], geometry)
    start = rows.start - channels.start * positions
    return block[start : start + len(rows)].clone()


def row_blocks(geometry: Geometry, rows: range) -> Iterator[range]:
    """`rows` in blocks of at most BLOCK_ENTRIES entries, or of a single row.

    Example:
        >>> list(row_blocks(Geometry(1, 1, (3,), input_size=32768), range(30000)))
        [range(0, 10922), range(10922, 21844), range(21844, 30000)]
    """
    row_nnz = geometry.in_channels // geometry.groups * prod(geometry.kernel_size)  # at most
    step = max(1, BLOCK_ENTRIES // row_nnz)
    return (rows[start : start + step] for start in range(0, len(rows), step))
