"""The matrix as a PETSc matrix: sparse, over MPI, for solves, and for singular values by SLEPc."""

from __future__ import annotations

from itertools import pairwise
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.blocks import check_rows, csr_rows, row_blocks
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.guard import check_matrix_memory
from conv2affine.convolution.layouts import check_request
from conv2affine.convolution.parameters import read
from conv2affine.operators import ops

if TYPE_CHECKING:
    from petsc4py.PETSc import Comm, Mat


def to_petsc(conv: Conv | Tensor, input_size: InputSize | Geometry, comm: Comm | None = None) -> Mat:
    """The matrix A of a convolution layer as a PETSc AIJ matrix, of which each rank builds its own rows.

        A[(co, o), (ci, i)] = sum over taps k with tap(o, k) == i of  w[co, ci, k]

    Args:
        conv: A convolution layer, as in `to_matrix`; or its weight, with a `Geometry` as `input_size`. Its values must
            be the same on every rank.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes; or the `Geometry` of the weight.
        comm: The MPI communicator, as PETSc takes it. Default: `PETSc.COMM_WORLD`.

    Returns:
        An assembled `petsc4py.PETSc.Mat` of type "aij" and of PETSc's scalar type, rows and columns split as PETSc
        splits them. Element [r, c] is that of `to_matrix`; the entries are those of CSR. It has no gradient.

    Raises:
        TypeError: As `to_matrix`; or if PETSc's scalar type does not hold every value of the weight's dtype.
        ValueError: As `to_matrix`; or if PETSc's integers are too small to count the entries.
        MemoryError: If this rank's rows need more memory than is left.
        ImportError: If petsc4py is not installed.

    Example:
        >>> A = to_petsc(torch.nn.Conv2d(3, 64, 7, stride=2, padding=3), 112)  # doctest: +SKIP
        >>> A.getSize(), A.getInfo()["nz_used"]  # doctest: +SKIP
        ((200704, 37632), 28449792.0)
    """
    petsc = _petsc()
    weight, _, geometry = read(conv, input_size)
    weight = weight.detach().cpu()
    scalar, integer = np.dtype(petsc.ScalarType), np.dtype(petsc.IntType)
    dtype, index_dtype = (getattr(torch, kind.name) for kind in (scalar, integer))
    if weight.dtype is torch.int64 or torch.promote_types(weight.dtype, dtype) is not dtype:
        raise TypeError(
            f"conv.weight ({weight.dtype}) must have a dtype that PETSc's scalars ({scalar}) hold; convert the weight, "
            "or use a PETSc configured with --with-scalar-type=complex or --with-precision=double"
        )
    _check_count(max(geometry.shape), "rows and columns", integer)
    check_rows(weight, geometry, index_dtype)
    matrix = petsc.Mat().create(comm)
    matrix.setSizes(tuple((petsc.DECIDE, size) for size in geometry.shape))
    matrix.setType(petsc.Mat.Type.AIJ)
    matrix.setPreallocationNNZ(0)  # decides who owns which rows and columns
    rows, cols = range(*matrix.getOwnershipRange()), range(*matrix.getOwnershipRangeColumn())
    # Of every rank, on every rank: so none waits for another one that has raised.
    entries = (ops.nnz(geometry, range(*bounds)) for bounds in pairwise(map(int, matrix.getOwnershipRanges())))
    _check_count(max(entries), "entries of a rank", integer)
    request = check_request(geometry, torch.sparse_csr, rows, index_dtype)
    check_matrix_memory(geometry, torch.empty(0, dtype=dtype, device="cpu"), request)

    # Rows are made twice, first to count: all at once they would take as much memory as the matrix.
    counts = np.empty((2, len(rows)), integer)  # entries per row, in this rank's columns and in all others
    for block in row_blocks(geometry, rows):
        starts, indices, _ = csr_rows(weight, geometry, block, index_dtype)
        own = F.pad(((indices >= cols.start) & (indices < cols.stop)).cumsum(0), (1, 0))  # before each entry
        place = slice(block.start - rows.start, block.stop - rows.start)
        counts[0, place] = own[starts].diff()
        counts[1, place] = starts.diff() - counts[0, place]
    matrix.setPreallocationNNZ(tuple(counts))
    # Set by PETSc itself, but not on a rank without rows: there, assembly would wait for other messages than elsewhere.
    matrix.setOption(petsc.Mat.Option.NEW_NONZERO_ALLOCATION_ERR, True)
    matrix.setOption(petsc.Mat.Option.SORTED_FULL, True)
    matrix.setOption(petsc.Mat.Option.NO_OFF_PROC_ENTRIES, True)
    for block in row_blocks(geometry, rows):
        starts, indices, values = csr_rows(weight, geometry, block, index_dtype)
        numbers = np.arange(block.start, block.stop, dtype=integer)
        matrix.setValuesIJV(starts.numpy(), indices.numpy(), values.to(dtype).numpy(), rowmap=numbers)
    matrix.assemble()
    return matrix


def _check_count(count: int, what: str, integer: np.dtype[Any]) -> None:
    largest = int(np.iinfo(integer).max)
    if count > largest:
        raise ValueError(
            f"the {count} {what} must be at most {largest}, to which PETSc's integers ({integer}) count; use more "
            "ranks, or a PETSc configured with --with-64-bit-indices"
        )


def _petsc() -> ModuleType:
    try:
        from petsc4py import PETSc
    except ModuleNotFoundError as error:
        raise ImportError(
            "to_petsc needs petsc4py; Debian has it as python3-petsc4py, and docs/scale.md has an environment for it"
        ) from error
    return PETSc  # type: ignore[no-any-return]
