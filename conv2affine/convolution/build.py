"""The checks before a matrix is built, blocks of its rows, their bias, and the layer of both."""

from __future__ import annotations

from collections.abc import Iterator
from math import prod

import torch
from torch import Tensor, nn

from conv2affine.convolution.arguments import COPIED_DTYPES
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.guard import check_bias_memory, check_matrix_memory
from conv2affine.convolution.layouts import Request, check_request
from conv2affine.operators import ops

# Entries in a block of rows. One thread makes so few of them, faster than a disk writes. In blocks four times as large,
# 0.9 GB took 18 s with two threads on a busy machine, where they waited for each other, and 0.1 s with one.
BLOCK_ENTRIES = 2**15


def checked_request(
    weight: Tensor,
    geometry: Geometry,
    layout: torch.layout,
    rows: range | None,
    index_dtype: torch.dtype | None,
    drop_zeros: bool,
) -> Request:
    """All checks between a checked weight and the operators; arguments as in `to_matrix`.

    Raises:
        TypeError: If taps overlap, and their weights are of a dtype that PyTorch does not add.
        ValueError: As `layouts.check_request`; or if zeros of a meta tensor should be dropped.
        MemoryError: As `guard.check_matrix_memory`.
    """
    request = check_request(geometry, layout, rows, index_dtype, drop_zeros)
    if weight.dtype in COPIED_DTYPES and _has_overlap(geometry):
        raise TypeError(
            f"weight ({weight.dtype}) must have a dtype that can be added, because with padding_mode "
            f"{geometry.padding_mode!r}, padding {geometry.padding} and input size {geometry.input_size} several taps "
            "read the same input; pass weight.float()"
        )
    if drop_zeros and weight.is_meta:
        raise ValueError("drop_zeros must be False on the meta device, where no weight is known to be 0; leave it out")
    check_matrix_memory(geometry, weight, request)
    return request


def expand(bias: Tensor, geometry: Geometry) -> Tensor:
    """A bias with one entry per row of the matrix, from one with one entry per channel, in new memory.

        expanded[(co, o)] = bias[co]

    Raises:
        ValueError: If the bias has another shape.
        MemoryError: If there is not enough memory left.
    """
    if bias.shape != (geometry.out_channels,):
        raise ValueError(
            f"bias must have shape ({geometry.out_channels},), one entry per output channel, got {tuple(bias.shape)}"
        )
    check_bias_memory(geometry, bias)
    return ops.bias(bias, geometry)


def make_linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """The linear layer of these parameters."""
    # The constructor of nn.Linear is not called: it would allocate a second matrix, fill it with random numbers, and
    # change the state of the random number generator.
    linear = nn.Linear.__new__(nn.Linear)
    nn.Module.__init__(linear)
    linear.out_features, linear.in_features = weight.shape
    linear.weight = weight
    linear.register_parameter("bias", bias)
    return linear


def _has_overlap(geometry: Geometry) -> bool:
    """Whether several taps of an output read the same input, so that their weights add up."""
    if geometry.padding_mode == "zeros":
        return False
    rows = geometry.shape[0]
    # No tap falls outside a folded axis: without an overlap, each is an entry.
    return ops.nnz(geometry, range(rows)) < rows * prod(geometry.grouped_size[2:])


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
