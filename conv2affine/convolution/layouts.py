"""The layouts that a matrix comes in: what can be requested, and the function that builds each."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, cast

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from conv2affine.convolution.arguments import shown
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.sizes import INDICES, INT32_MAX, index_dtypes
from conv2affine.operators import ops
from conv2affine.operators.derivatives import is_transformed


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for besides the geometry; made by `check_request`."""

    layout: torch.layout
    rows: range
    index_dtype: torch.dtype
    drop_zeros: bool


def dense(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """All elements."""
    return ops.dense(weight, geometry, request.rows.start, request.rows.stop)


def compressed(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """The entries by rows; by columns in CSC, which are the rows of the transposed matrix."""
    starts, indices, values = csr_arrays(weight, geometry, request)
    if values.is_complex() and values.requires_grad:
        raise ValueError(
            f"layout ({request.layout}) must be torch.strided or torch.sparse_coo for complex weights that require "
            "gradients: PyTorch has no such gradient for the other layouts; or build it under torch.no_grad()"
        )
    size, by_columns = (len(request.rows), geometry.shape[1]), request.layout is torch.sparse_csc
    return assemble(starts, indices, values, size, by_columns=by_columns)


def sparse_coo(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """The entries with their coordinates."""
    indices, values = ops.coo(weight, geometry, request.rows.start, request.rows.stop)
    if request.drop_zeros:
        keep = values != 0
        indices = indices[:, keep]  # one at a time, so that the memory of the first is freed before
        values = values[keep]
    size = (len(request.rows), geometry.shape[1])
    # The entries are sorted and unique, so the tensor is coalesced, and no sort is needed. The device is passed
    # explicitly, because the default is torch's default device.
    return torch.sparse_coo_tensor(
        indices, values, size, device=values.device, is_coalesced=True, check_invariants=False
    )


# The functions that build each layout.
BUILDERS: dict[torch.layout, Callable[[Tensor, Geometry, Request], Tensor]] = {
    torch.strided: dense,
    torch.sparse_csr: compressed,
    torch.sparse_csc: compressed,
    torch.sparse_coo: sparse_coo,
}


# A layout, or its name as in the functions for whole networks.
Layout: TypeAlias = torch.layout | Literal["dense", "sparse"]
NAMES = {"dense": torch.strided, "sparse": torch.sparse_csr}


def named_layout(layout: Layout) -> torch.layout:
    """The layout that a name stands for; what is neither a layout nor a name, `check_request` refuses."""
    return NAMES[layout] if isinstance(layout, str) and layout in NAMES else cast(torch.layout, layout)


# PyTorch says once in a process that these are in beta. Here, and not where they are made: filters are of all threads.
with warnings.catch_warnings():
    warnings.filterwarnings("ignore", "Sparse CS. tensor support is in beta state", UserWarning)
    torch.sparse_csr_tensor([0, 0], [], [], (1, 1), dtype=torch.float32, device="cpu", check_invariants=False)


def csr_arrays(weight: Tensor, geometry: Geometry, request: Request) -> tuple[Tensor, Tensor, Tensor]:
    """(row starts, columns, values) of the matrix; of the transposed one for CSC."""
    by_columns = request.layout is torch.sparse_csc
    bounds = (0, geometry.shape[1]) if by_columns else (request.rows.start, request.rows.stop)
    starts, indices, values = ops.csr(weight, geometry, *bounds, request.index_dtype, by_columns=by_columns)
    if request.drop_zeros:
        keep = values != 0
        kept = torch.nn.functional.pad(keep, (1, 0)).cumsum(0, dtype=request.index_dtype)  # before each entry
        starts = kept[starts]
        del kept
        indices = indices[keep]  # one at a time, so that the memory of the first is freed before
        values = values[keep]
    return starts, indices, values


def assemble(starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], *, by_columns: bool) -> Tensor:
    """The CSR tensor of these parts, or the CSC tensor; the gradient keeps to the pattern."""
    if values.requires_grad and not is_transformed() and not torch.compiler.is_compiling():
        assembled: Tensor = _Assembled.apply(starts, indices, values, size, by_columns)  # type: ignore[no-untyped-call]
        return assembled
    return _assemble(starts, indices, values, size, by_columns)


def _assemble(starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], by_columns: bool) -> Tensor:
    if torch._C._functorch.is_batchedtensor(values):
        raise NotImplementedError(
            f"layout ({torch.sparse_csc if by_columns else torch.sparse_csr}) must be torch.strided under torch.vmap: "
            "PyTorch has no batches of sparse matrices; or build one matrix after the other"
        )
    make = torch.sparse_csc_tensor if by_columns else torch.sparse_csr_tensor
    matrix: Tensor = make(starts, indices, values, size, device=values.device, check_invariants=False)
    return matrix


class _Assembled(torch.autograd.Function):
    """The same, with a gradient that keeps to the pattern: PyTorch's own makes a dense matrix on the way."""

    @staticmethod
    def forward(
        ctx: Any, starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], by_columns: bool
    ) -> Tensor:
        ctx.save_for_backward(starts, indices)
        ctx.by_columns = by_columns
        return _assemble(starts, indices, values, size, by_columns)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None, None]:
        starts, indices = ctx.saved_tensors
        if gradient.layout is (torch.sparse_csc if ctx.by_columns else torch.sparse_csr):
            by_rows = gradient.transpose(0, 1) if ctx.by_columns else gradient
            if torch.equal(by_rows.crow_indices(), starts) and torch.equal(by_rows.col_indices(), indices):
                return None, None, gradient.values(), None, None
        lines = torch.repeat_interleave(starts.diff())
        rows, cols = (indices, lines) if ctx.by_columns else (lines, indices)
        return None, None, gradient.to_dense()[rows, cols], None, None


def check_request(
    geometry: Geometry,
    layout: torch.layout = torch.strided,
    rows: range | None = None,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Request:
    """The request, once all of it fits the geometry; arguments as in `to_matrix`."""
    if not isinstance(layout, torch.layout) or layout not in BUILDERS:
        names = ", ".join(map(str, BUILDERS))
        reason = ""
        if layout is torch.sparse_bsr or layout is torch.sparse_bsc:
            reason = ": few convolutions have entries in dense blocks, see docs/sparse.md"
        raise ValueError(f'layout ({shown(layout)}) must be one of {names}, "dense" or "sparse"{reason}')
    if not INDICES[layout].dtypes and (index_dtype is not None or drop_zeros):
        raise ValueError(
            f"index_dtype ({shown(index_dtype)}) and drop_zeros ({shown(drop_zeros)}) must be left out with layout "
            f"{layout}, which has no indices and holds every zero"
        )
    block = _block(rows, geometry)
    if layout is torch.sparse_csc and len(block) != geometry.shape[0]:
        raise ValueError(
            f"rows ({rows}) must be left out with layout {layout}, which is built by columns; build "
            "torch.sparse_csr and call to_sparse_csc()"
        )
    return Request(layout, block, _index_dtype(geometry, layout, block, index_dtype), drop_zeros)


def _block(rows: range | None, geometry: Geometry) -> range:
    """A block of output rows; all of them for None."""
    total = geometry.shape[0]
    if rows is None:
        return range(total)
    if not isinstance(rows, range) or rows.step != 1:
        raise TypeError(f"rows ({shown(rows)}) must be None or a range(start, stop) with step 1")
    if not 0 <= rows.start <= rows.stop <= total:
        raise ValueError(f"rows ({rows}) must lie within the {total} rows of the matrix")
    return rows


def _index_dtype(geometry: Geometry, layout: torch.layout, rows: range, index_dtype: torch.dtype | None) -> torch.dtype:
    dtypes = INDICES[layout].dtypes
    if not dtypes:
        return torch.int64  # not used
    if index_dtype is not None and index_dtype not in dtypes:
        raise ValueError(
            f"index_dtype ({shown(index_dtype)}) must be {' or '.join(map(str, dtypes))} with layout {layout}"
        )
    wanted = index_dtype or dtypes[0]
    if wanted is torch.int64:
        return wanted
    nnz = ops.nnz(geometry, rows)
    possible = index_dtypes(layout, len(rows), geometry.shape[1], nnz)
    if wanted in possible:
        # PyTorch's product with a vector takes up to seven times as long with int64, which it converts each time.
        return wanted
    if index_dtype is None:
        return possible[0]
    raise ValueError(
        f"index_dtype {wanted} counts to {INT32_MAX}, too few for {nnz} entries in {len(rows)} rows and "
        f"{geometry.shape[1]} columns; leave it out, or build a block of rows"
    )
