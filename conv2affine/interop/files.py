"""Matrices in files: CSR in HDF5, written by blocks of rows, in the encoding of anndata.

Nothing is compressed or split into chunks, so the place of every row in the file is known before it is written. A
writer that is killed leaves a file that is sound as far as its `rows_written` goes.

Source: https://anndata.readthedocs.io/en/stable/fileformat-prose.html
"""

from __future__ import annotations

import errno
import hashlib
import importlib
import os
import shutil
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from io import FileIO
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize
from conv2affine.convolution.blocks import check_rows, csr_rows, row_blocks
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import check_request
from conv2affine.convolution.sizes import readable_bytes
from conv2affine.interop.scipy import ARRAY_DTYPES, scipy_weight
from conv2affine.operators import ops

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from scipy.sparse import csr_array

__all__ = ["open_csr", "save_csr"]

ENCODING = {"encoding-type": "csr_matrix", "encoding-version": "0.1.0"}
# Bytes that are written again after a kill, at most.
SYNC_BYTES = 2**26
PAGE_BYTES = 4096


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
    path = Path(path)
    weight, geometry = scipy_weight(conv, input_size, "sparse arrays", ARRAY_DTYPES)
    weight = weight.cpu()
    if path.exists():
        raise FileExistsError(f"path ({path}) must not exist; delete the file, or choose another name")
    index_dtype = check_request(geometry, torch.sparse_csr, None, index_dtype).index_dtype
    check_rows(weight, geometry, index_dtype)
    part = path.with_name(path.name + ".part")
    if not part.exists():
        _create(part, weight, geometry, index_dtype)
    offsets, rows = _resume(part, weight, geometry, index_dtype)
    blocks = row_blocks(geometry, rows)
    # A thread waits for the disk while the next rows are made and written.
    with open(part, "r+b", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        unsynced, synced = 0, thread.submit(os.fdatasync, file)
        for block in _shown(blocks, rows) if progress and sys.stderr.isatty() else blocks:
            unsynced += _append(file, offsets, block, weight, geometry, index_dtype)
            if unsynced >= SYNC_BYTES or block.stop == rows.stop:
                synced.result()
                synced = thread.submit(_sync, file, offsets["rows_written"], block.stop)
                unsynced = 0
        synced.result()
        os.fsync(file)
    part.rename(path)


def open_csr(path: str | os.PathLike[str]) -> csr_array:
    """The matrix in a file of `save_csr`, in place: SciPy reads from the disk what it needs.

        A[start:stop] == to_scipy(conv, input_size, rows=range(start, stop))

    Args:
        path: A file that `save_csr` wrote.

    Returns:
        A `csr_array` over read-only memory maps of the file; `A[start:stop]` is a block of rows in memory, and `A @ x`
        goes through the file once. Element [r, c] is that of `to_matrix`. Only sizes are checked: a column out of range
        can crash SciPy, so call `check_format()` on the matrix of a file from a stranger, which reads all of it.

    Raises:
        ValueError: If the file is not finished, or not one of `save_csr`.
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

    with _import("h5py").File(path, "r") as file:
        if file.attrs.get("encoding-type") != ENCODING["encoding-type"] or "rows_written" not in file:
            raise ValueError(f"path ({path}) must be a file of save_csr; anndata.io.read_elem may read it")
        rows, written = int(file.attrs["shape"][0]), int(file["rows_written"][0])
        if written < rows:
            raise ValueError(f"path ({path}) has {written} of {rows} rows; call save_csr again to continue")
        parts = [_map(path, file[name]) for name in ("data", "indices", "indptr")]
        return csr_array(tuple(parts), shape=tuple(map(int, file.attrs["shape"])))


def _map(path: str | os.PathLike[str], dataset: Any) -> NDArray[Any]:
    if dataset.size == 0:  # which cannot be mapped
        return np.empty(0, dataset.dtype)
    if dataset.id.get_offset() is None:
        raise ValueError(f"path ({path}) was written again by another program; read it with anndata.io.read_elem")
    return np.memmap(path, dataset.dtype, "r", dataset.id.get_offset(), dataset.shape)


def _create(part: Path, weight: Tensor, geometry: Geometry, index_dtype: torch.dtype) -> None:
    """A file of the final size without any rows; under another name until it is one, in case of a kill."""
    h5py = _import("h5py")
    nnz, rows = ops.nnz(geometry, range(geometry.shape[0])), geometry.shape[0]
    dtypes = {"data": weight.dtype, "indices": index_dtype, "indptr": index_dtype, "rows_written": torch.int64}
    sizes = {"data": nnz, "indices": nnz, "indptr": rows + 1, "rows_written": 1}
    needed = sum(sizes[name] * dtypes[name].itemsize for name in sizes)
    free = shutil.disk_usage(part.absolute().parent).free
    if needed > free:
        raise OSError(
            errno.ENOSPC,
            f"the file needs {readable_bytes(needed)} ({needed} bytes), and there are {readable_bytes(free)} left",
            str(part),
        )
    # Storage is set aside now, without writing it, so that its place is known.
    create = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    create.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    create.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    new = part.with_name(part.name + ".new")
    with h5py.File(new, "w", alignment_threshold=1, alignment_interval=PAGE_BYTES) as file:
        for name, size in sizes.items():
            kind = h5py.h5t.py_create(np.dtype(str(dtypes[name]).removeprefix("torch.")), logical=True)
            h5py.h5d.create(file.id, name.encode(), kind, h5py.h5s.create_simple((size,)), dcpl=create)
        file["rows_written"][0] = 0
        file.attrs.update({**ENCODING, "shape": geometry.shape, "source": _source(weight, geometry, index_dtype)})
    new.rename(part)


def _resume(part: Path, weight: Tensor, geometry: Geometry, index_dtype: torch.dtype) -> tuple[dict[str, int], range]:
    """Where the file has its datasets, and the rows that it still lacks."""
    advice = "delete it to start anew, or choose another name"
    try:
        with _import("h5py").File(part, "r") as file:
            if file.attrs.get("source") != _source(weight, geometry, index_dtype):
                raise ValueError(f"{part} must be a part of this matrix to be continued, and is not; {advice}")
            offsets = {name: dataset.id.get_offset() or 0 for name, dataset in file.items()}
            return offsets, range(int(file["rows_written"][0]), geometry.shape[0])
    except OSError as error:
        raise ValueError(f"{part} must be a part of this matrix, and is not HDF5 ({error}); {advice}") from error


def _source(weight: Tensor, geometry: Geometry, index_dtype: torch.dtype) -> str:
    """All that decides the bytes of the file."""
    values = weight.contiguous().flatten().view(torch.uint8).numpy()
    return hashlib.sha256(f"{geometry} {weight.dtype} {index_dtype}".encode() + values.tobytes()).hexdigest()


def _append(
    file: FileIO, offsets: dict[str, int], rows: range, weight: Tensor, geometry: Geometry, index_dtype: torch.dtype
) -> int:
    """Write these rows; gives the number of their bytes."""
    starts, indices, values = csr_rows(weight, geometry, rows, index_dtype)
    before = ops.nnz(geometry, range(rows.start))
    _write(file, offsets["data"], before, values)
    _write(file, offsets["indices"], before, indices)
    _write(file, offsets["indptr"], rows.start, starts + before)
    return starts.nbytes + indices.nbytes + values.nbytes


def _write(file: FileIO, offset: int, start: int, values: Tensor) -> None:
    """Elements [start, start + len(values)) of the dataset at this offset."""
    offset += start * values.itemsize
    left = memoryview(values.view(torch.uint8).numpy().data)
    while left:  # one call writes at most 2 GB
        written = os.pwrite(file.fileno(), left, offset)
        left, offset = left[written:], offset + written


def _sync(file: FileIO, offset: int, rows: int) -> None:
    """Count these rows once they are on the disk: otherwise a power failure could leave holes among them."""
    os.fdatasync(file)
    _write(file, offset, 0, torch.tensor([rows]))


def _shown(blocks: Iterator[range], rows: range) -> Iterator[range]:
    """The blocks, with a progress bar."""
    progress = _import("rich.progress")
    console = _import("rich.console").Console(stderr=True)
    with progress.Progress(console=console) as bar:
        task = bar.add_task("Rows", total=rows.stop, completed=rows.start)
        for block in blocks:
            yield block
            bar.update(task, completed=block.stop)


def _import(name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ImportError(
            f"save_csr and open_csr need {name.partition('.')[0]}; install it with: pip install 'conv2affine[files]'"
        ) from error
