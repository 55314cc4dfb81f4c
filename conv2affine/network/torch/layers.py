"""From a matrix to the layer that applies it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from conv2affine.convolution.build import make_linear
from conv2affine.convolution.layouts import NAMES
from conv2affine.convolution.sizes import INT32_MAX, prefers_dense, sizes_of
from conv2affine.matrix import to_matrix
from conv2affine.network.matrices.layers import Convolution, Repeated
from conv2affine.network.matrices.matrix import Array, Matrix, Selection
from conv2affine.network.matrices.rows import by_rows, row_blocks, take_rows
from conv2affine.network.passes.chain import Layer
from conv2affine.sparse_linear import SparseLinear

NetworkLayout = Literal["auto", "dense", "sparse"] | torch.layout
LAYOUTS = ("auto", *NAMES, *NAMES.values())
# Dense rows that are made at a time.
CHUNK_BYTES = 2**24
# Layers above this are shared by all ranks: each gathers the outputs, which takes longer than a small product.
SHARED_BYTES = 2**24


def layout_bytes(matrix: Matrix | Layer, dtype: torch.dtype) -> dict[str, int]:
    """Bytes of each layout."""
    return {name: sizes_of(layout, *matrix.shape, matrix.nnz, dtype)[0].bytes for name, layout in NAMES.items()}


def choose_layout(matrix: Matrix | Layer, dtype: torch.dtype, layout: NetworkLayout, ranks: int = 1) -> str:
    """The name of the layout asked for; for "auto" the sparse one, unless the dense one is small or hardly larger.

    A large layer of several ranks is "sharded": each has the sparse matrix of its rows.
    """
    if layout == "auto":
        sizes = layout_bytes(matrix, dtype)
        name = "dense" if prefers_dense(**sizes) else "sparse"
    else:
        name = next(name for name, same in NAMES.items() if layout in (name, same))
    return "sharded" if ranks > 1 and layout_bytes(matrix, dtype)[name] > SHARED_BYTES else name


def layer(matrix: Matrix, bias: Array | None, dtype: torch.dtype, layout: NetworkLayout = "auto") -> nn.Linear:
    """The layer x -> x @ matrix.T + bias, an `nn.Linear` or a `SparseLinear`; numbers are rounded here, once."""
    weight = _weight(matrix, dtype, choose_layout(matrix, dtype, layout))
    rounded = None if bias is None else torch.tensor(bias, dtype=dtype)
    return SparseLinear(weight, rounded) if weight.layout is torch.sparse_csr else dense_layer(weight, rounded)


def finite_layer(name: str, matrix: Matrix, bias: Array | None, dtype: torch.dtype, layout: NetworkLayout) -> nn.Linear:
    """The layer as `layer` makes it, whose weight must be finite, as in `finite`."""
    fc = layer(matrix, bias, dtype, layout)
    parts: Iterable[Tensor] = (fc.values if isinstance(fc, SparseLinear) else fc.weight,)
    if isinstance(matrix, Convolution | Repeated | Selection):  # its entries are these, and fewer
        parts = (torch.as_tensor(part).to(dtype) for part in matrix.numbers)
    for part in parts:
        finite(name, part)
    return fc


def finite(name: str, weight: Tensor) -> Tensor:
    """The weight of a layer, or a part of it, which must be finite: a ReLU may hide infinities from a comparison.

    A bias may be infinite, as that of a mask is: it gives what a number too large for the dtype does.
    """
    if weight.numel() and not all(end.isfinite() for end in weight.aminmax()):
        raise ValueError(
            f"{name}: weight of its layer must be finite in {weight.dtype}, and some numbers are larger; pass a wider "
            "dtype, such as dtype=torch.float64"
        )
    return weight


def dense_layer(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """The layer of a dense weight, in the memory of its arguments."""
    rows = None if bias is None else nn.Parameter(bias, requires_grad=False)
    return make_linear(nn.Parameter(weight, requires_grad=False), rows)


def _weight(matrix: Matrix, dtype: torch.dtype, layout: str) -> Tensor:
    if isinstance(matrix, Convolution):
        return matrix.tensor(dtype, torch.strided if layout == "dense" else torch.sparse_csr).cpu()
    if isinstance(matrix, Repeated) and layout == "dense":
        return matrix.tensor(dtype).cpu()
    narrow = np.float32 if dtype is torch.float32 else np.float64
    csr = matrix.csr(narrow)
    if layout == "dense":
        return torch.from_numpy(csr.toarray()).to(dtype)
    index = np.int32 if max(csr.nnz, *csr.shape) <= INT32_MAX else np.int64
    starts, columns = (torch.from_numpy(part.astype(index, copy=False)) for part in (csr.indptr, csr.indices))
    values = torch.from_numpy(csr.data).to(dtype)
    return torch.sparse_csr_tensor(starts, columns, values, csr.shape, check_invariants=False)


def row_chunks(matrix: Matrix, dtype: torch.dtype, first: int = 0) -> Iterator[Tensor]:
    """The dense weight of a layer from row `first` on, a chunk of rows at a time."""
    rows, step = range(first, matrix.shape[0]), max(1, CHUNK_BYTES // max(1, matrix.shape[1] * dtype.itemsize))
    if isinstance(matrix, Convolution):
        weight = matrix.weight.detach().to(dtype)
        chunks = (rows[start : start + step] for start in range(0, len(rows), step))
        yield from (to_matrix(weight, matrix.geometry, rows=chunk).cpu() for chunk in chunks)
        return
    matrix, narrow = by_rows(matrix), np.float32 if dtype is torch.float32 else np.float64
    for chunk in row_blocks(matrix, rows, step):
        yield torch.from_numpy(take_rows(matrix, chunk).csr(narrow).toarray()).to(dtype)
