"""The layouts that a matrix comes in: one function each, and the table that names them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from conv2affine import ops
from conv2affine.derivatives import is_transformed
from conv2affine.geometry import Geometry

__all__ = ["INDEX_DTYPES", "LAYOUTS", "Request", "assemble", "check_request"]

INDEX_DTYPES = (torch.int32, torch.int64)
INT32_MAX = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Request:
    """What a user asks for beside the geometry; `check_request` makes it of what was given."""

    layout: torch.layout
    rows: range
    index_dtype: torch.dtype
    drop_zeros: bool


def strided(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """All elements."""
    return ops.dense(weight, geometry, request.rows.start, request.rows.stop)


def sparse_csr(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """The entries by rows."""
    return _compressed(weight, geometry, request, transpose=False)


def sparse_csc(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """The entries by columns: the transposed matrix by rows."""
    return _compressed(weight, geometry, request, transpose=True)


def sparse_coo(weight: Tensor, geometry: Geometry, request: Request) -> Tensor:
    """The entries with their coordinates."""
    indices, values = ops.coo(weight, geometry, request.rows.start, request.rows.stop)
    if request.drop_zeros:
        keep = values != 0
        indices, values = indices[:, keep], values[keep]
    size = (len(request.rows), geometry.shape[1])
    # In order and each once: coalesced, without the sort that would find it out.
    # The device is said: otherwise it would be torch's default one.
    return torch.sparse_coo_tensor(
        indices, values, size, device=values.device, is_coalesced=True, check_invariants=False
    )


LAYOUTS: dict[torch.layout, Callable[[Tensor, Geometry, Request], Tensor]] = {
    torch.strided: strided,
    torch.sparse_csr: sparse_csr,
    torch.sparse_csc: sparse_csc,
    torch.sparse_coo: sparse_coo,
}


def _compressed(weight: Tensor, geometry: Geometry, request: Request, *, transpose: bool) -> Tensor:
    bounds = (0, geometry.shape[1]) if transpose else (request.rows.start, request.rows.stop)
    starts, indices, values = ops.csr(weight, geometry, *bounds, request.index_dtype, transpose=transpose)
    if values.is_complex() and values.requires_grad:
        raise ValueError(
            f"layout ({request.layout}) must be torch.strided or torch.sparse_coo for complex weights that require "
            "gradients, which PyTorch does not send through others; or build it under torch.no_grad()"
        )
    if request.drop_zeros:
        keep = values != 0
        kept = torch.nn.functional.pad(keep.cumsum(0), (1, 0))  # before each entry
        starts, indices, values = kept[starts].to(request.index_dtype), indices[keep], values[keep]
    return assemble(starts, indices, values, (len(request.rows), geometry.shape[1]), transpose=transpose)


def assemble(starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], *, transpose: bool) -> Tensor:
    """The CSR tensor of these parts, or with `transpose` the CSC tensor; the gradient keeps to the pattern."""
    if values.requires_grad and not is_transformed() and not torch.compiler.is_compiling():
        assembled: Tensor = _Assembled.apply(starts, indices, values, size, transpose)  # type: ignore[no-untyped-call]
        return assembled
    return _assemble(starts, indices, values, size, transpose)


def _assemble(starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], transpose: bool) -> Tensor:
    make = torch.sparse_csc_tensor if transpose else torch.sparse_csr_tensor
    matrix: Tensor = make(starts, indices, values, size, device=values.device, check_invariants=False)
    return matrix


class _Assembled(torch.autograd.Function):
    """The same, with a gradient that keeps to the pattern: PyTorch's own makes a strided matrix on the way."""

    @staticmethod
    def forward(
        ctx: Any, starts: Tensor, indices: Tensor, values: Tensor, size: tuple[int, int], transpose: bool
    ) -> Tensor:
        ctx.save_for_backward(starts, indices)
        ctx.transpose = transpose
        return _assemble(starts, indices, values, size, transpose)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, None, Tensor, None, None]:
        starts, indices = ctx.saved_tensors
        if gradient.layout is (torch.sparse_csc if ctx.transpose else torch.sparse_csr):
            transposed = gradient.transpose(0, 1) if ctx.transpose else gradient
            if torch.equal(transposed.crow_indices(), starts) and torch.equal(transposed.col_indices(), indices):
                return None, None, gradient.values(), None, None
        lines = torch.repeat_interleave(starts.diff())
        rows, cols = (indices, lines) if ctx.transpose else (lines, indices)
        return None, None, gradient.to_dense()[rows, cols], None, None


def check_request(
    geometry: Geometry,
    layout: torch.layout = torch.strided,
    rows: range | None = None,
    index_dtype: torch.dtype | None = None,
    drop_zeros: bool = False,
) -> Request:
    """The request, once all of it fits the geometry."""
    if layout not in LAYOUTS:
        names = ", ".join(map(str, LAYOUTS))
        reason = ""
        if layout is torch.sparse_bsr or layout is torch.sparse_bsc:
            reason = ": few convolutions have entries in dense blocks, see docs/sparse.md"
        raise ValueError(f"layout ({layout}) must be one of {names}{reason}")
    if layout is torch.strided and (index_dtype is not None or drop_zeros):
        raise ValueError(
            f"index_dtype ({index_dtype}) and drop_zeros ({drop_zeros}) must be left out with layout torch.strided, "
            "which has no indices and holds every zero"
        )
    block = _block(rows, geometry)
    if layout is torch.sparse_csc and len(block) != geometry.shape[0]:
        raise ValueError(
            f"rows ({rows}) must be left out with layout torch.sparse_csc, which is built by columns; build "
            "torch.sparse_csr and call to_sparse_csc()"
        )
    return Request(layout, block, _index_dtype(geometry, layout, block, index_dtype), drop_zeros)


def _block(rows: range | None, geometry: Geometry) -> range:
    """A block of output rows; all of them for None."""
    total = geometry.shape[0]
    if rows is None:
        return range(total)
    if not isinstance(rows, range) or rows.step != 1:
        raise TypeError(f"rows ({rows!r}) must be None or a range(start, stop) with step 1")
    if not 0 <= rows.start <= rows.stop <= total:
        raise ValueError(f"rows ({rows}) must lie within the {total} rows of the matrix")
    return rows


def _index_dtype(geometry: Geometry, layout: torch.layout, rows: range, index_dtype: torch.dtype | None) -> torch.dtype:
    if layout is torch.sparse_coo and index_dtype not in (None, torch.int64):
        raise ValueError(
            f"index_dtype ({index_dtype}) must be torch.int64 with layout torch.sparse_coo: PyTorch's choice"
        )
    if layout in (torch.strided, torch.sparse_coo):
        return torch.int64
    if index_dtype not in (None, *INDEX_DTYPES):
        raise ValueError(f"index_dtype ({index_dtype}) must be torch.int32 or torch.int64")
    if index_dtype is torch.int64:
        return index_dtype
    nnz = ops.entries(geometry, rows)
    fits = max(nnz, len(rows), geometry.shape[1]) <= INT32_MAX
    if index_dtype is torch.int32 and not fits:
        raise ValueError(
            f"index_dtype torch.int32 counts to {INT32_MAX}, too few for {nnz} entries in {len(rows)} rows and "
            f"{geometry.shape[1]} columns; leave it out, or build a block of rows"
        )
    # PyTorch's product with a vector takes up to seven times as long with int64, which it converts each time.
    return torch.int32 if fits else torch.int64
