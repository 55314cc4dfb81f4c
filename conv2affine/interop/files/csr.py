"""Matrices in files: CSR in HDF5, written by blocks of rows, in the encoding of anndata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.blocks import check_rows, csr_rows, row_blocks
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import check_request
from conv2affine.interop.files.datasets import Place, check_digest, places
from conv2affine.interop.files.paths import open_hdf5, target_of
from conv2affine.interop.files.storage import COUNTER, Block, Contents, save
from conv2affine.interop.scipy import ARRAY_DTYPES, scipy_weight
from conv2affine.operators import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

NAMES = ("data", "indices", "indptr")
# Of a matrix in CSR, as anndata reads it.
# Source: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
CSR = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}


def save_csr(
    path: str | os.PathLike[str],
    conv: Conv | Tensor,
    input_size: InputSize | Geometry,
    *,
    index_dtype: torch.dtype | None = None,
    progress: bool = True,
) -> None:
    """Write the matrix A of a convolution layer to an HDF5 file, a block of rows at a time.

        A[r, indices[n]] == data[n]  for indptr[r] <= n < indptr[r + 1]

    The rows go to `path` with ".part" appended, which becomes `path` when all of them are on the disk. If the process
    is killed, the same call continues where it stopped.

    Args:
        path: The file to write, which must not exist.
        conv: A convolution layer, as in `to_matrix`, of a dtype that `to_scipy` takes; or its weight, with a
            `Geometry` as `input_size`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes; or the `Geometry` of the weight.
        index_dtype: As in `to_matrix`.
        progress: Whether to show a progress bar on standard error, where that is a terminal. Default: True.

    Raises:
        TypeError: As `to_matrix`; or if SciPy's arrays do not have the weight's dtype.
        ValueError: As `to_matrix`; or if there is a ".part" file that this call cannot continue.
        FileExistsError: If `path` exists.
        OSError: If the disk has not enough space left.
        ImportError: If h5py or, for the progress bar, rich is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_csr(f"{folder}/conv.h5", torch.nn.Conv2d(3, 8, 3), 9)
        ...     os.listdir(folder)
        ['conv.h5']
    """
    target = target_of(path)
    weight, geometry = scipy_weight(conv, input_size, "sparse arrays", ARRAY_DTYPES)
    weight = weight.cpu()
    index_dtype = check_request(geometry, torch.sparse_csr, None, index_dtype).index_dtype
    check_rows(weight, geometry, index_dtype)
    rows, nnz = geometry.shape[0], ops.nnz(geometry, range(geometry.shape[0]))
    contents = Contents(
        source=_source(weight, geometry, index_dtype),
        rows=rows,
        datasets=csr_datasets("", rows, nnz, weight.dtype, index_dtype),
        attributes={"/": {**CSR, "shape": geometry.shape}},
    )

    def blocks(written: int) -> Iterator[Block]:
        return csr_blocks("", weight, geometry, range(written, rows), index_dtype)

    save(target, contents, blocks, progress)


def open_csr(path: str | os.PathLike[str], *, check: bool = False) -> csr_array:
    """The matrix in a file of `save_csr`, in place: SciPy reads from the disk what it needs.

        A[start:stop] == to_scipy(conv, input_size, rows=range(start, stop))

    Args:
        path: A file that `save_csr` wrote.
        check: Whether to read all of it first, and refuse a file whose bytes are not those that were written. Default:
            False.

    Returns:
        A `csr_array` over read-only memory maps of the file; `A[start:stop]` is a block of rows in memory, and `A @ x`
        goes through the file once. Element [r, c] is that of `to_matrix`. Only sizes are checked: a column out of range
        can crash SciPy, so call `check_format()` on the matrix of a file from a stranger, which reads all of it.

    Raises:
        ValueError: If the file is not finished, or not one of `save_csr`; or if a check finds it damaged.
        OSError: If there is no such file, or if it is not HDF5.
        ImportError: If h5py is not installed.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_csr(f"{folder}/conv.h5", torch.tensor([[[1, 2]]]), Geometry(1, 1, (2,), input_size=4))
        ...     open_csr(f"{folder}/conv.h5")[1:].toarray()
        array([[0, 1, 2, 0],
               [0, 0, 1, 2]])
    """
    from scipy.sparse import csr_array

    with open_hdf5(path) as file:
        found = places(file)
        if file.attrs.get("encoding-type") != CSR["encoding-type"] or not {*NAMES, COUNTER} <= {*found}:
            raise ValueError(
                f"path ({path}) must be a file of save_csr; open_network reads those of "
                "save_network, and anndata.io.read_elem may read others"
            )
        rows, written = int(file.attrs["shape"][0]), int(file[COUNTER][0])
        if written < rows:
            raise ValueError(f"path ({path}) has {written} of {rows} rows; call save_csr again to continue")
        if check:
            check_digest(file)
        return csr_array(tuple(_map(path, found[name]) for name in NAMES), shape=tuple(map(int, file.attrs["shape"])))


def _map(path: str | os.PathLike[str], place: Place) -> NDArray[Any]:
    if not prod(place.shape):  # which cannot be mapped
        return np.empty(0, place.dtype)
    if place.offset is None:
        raise ValueError(f"path ({path}) was written again by another program; read it with anndata.io.read_elem")
    return np.memmap(path, place.dtype, "r", place.offset, place.shape)


def csr_datasets(
    group: str, rows: int, nnz: int, dtype: torch.dtype, index_dtype: torch.dtype
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The datasets of a matrix in CSR."""
    kinds = {"data": (dtype, (nnz,)), "indices": (index_dtype, (nnz,)), "indptr": (index_dtype, (rows + 1,))}
    return {group + name: kind for name, kind in kinds.items()}


def csr_block(group: str, row: int, before: int, parts: tuple[Tensor, Tensor, Tensor]) -> list[tuple[str, int, Tensor]]:
    """Rows of a matrix in CSR: from `row` on, as (crow_indices, col_indices, values), with `before` entries before."""
    starts, columns, values = parts
    places = ("data", before, values), ("indices", before, columns), ("indptr", row, starts + before)
    return [(group + name, start, part) for name, start, part in places]


def csr_blocks(
    group: str, weight: Tensor, geometry: Geometry, rows: range, index_dtype: torch.dtype
) -> Iterator[Block]:
    """These rows of the matrix of a convolution, a block at a time."""
    for block in row_blocks(geometry, rows):
        before = ops.nnz(geometry, range(block.start))
        yield csr_block(group, block.start, before, csr_rows(weight, geometry, block, index_dtype)), block.stop


def _source(weight: Tensor, geometry: Geometry, index_dtype: torch.dtype) -> str:
    """All that decides the bytes of the file."""
    values = weight.contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(f"{geometry} {weight.dtype} {index_dtype}".encode() + values.tobytes()).hexdigest()
