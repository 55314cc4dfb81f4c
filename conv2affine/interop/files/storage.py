"""HDF5 files that are written by blocks, and go on after a kill.

Nothing is compressed or split into chunks, so every block has its place in the file before it is written. A writer that
is killed leaves a file that is sound as far as its `rows_written` goes.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import FileIO
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.convolution.sizes import readable_bytes
from conv2affine.interop.files.datasets import (
    DIGEST,
    DIGEST_BYTES,
    byte_offset,
    digest_of,
    mark,
    numpy_dtype,
    places,
)
from conv2affine.interop.files.paths import PART, check_absent, extra, h5py_module

if TYPE_CHECKING:
    from numpy.typing import NDArray

COUNTER = "rows_written"
# Bytes that are written again after a kill, at most.
SYNC_BYTES = 2**26
PAGE_BYTES = 4096
HEADER_BYTES = 4 * PAGE_BYTES  # of a dataset and its group, at most

# What is written of some rows, as (dataset, its first element, elements); and how many rows are written then.
Block = tuple[list[tuple[str, int, Tensor]], int]


@dataclass(frozen=True)
class Contents:
    """What a file has besides its blocks.

    Args:
        source: Names all that decides the bytes of the file.
        rows: Number of rows of all matrices in it.
        datasets: (dtype, shape) of what is written by blocks.
        attributes: Of the groups, which "/" is one of.
        arrays: Datasets that are written when the file is made.
    """

    source: str
    rows: int
    datasets: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]
    attributes: Mapping[str, Mapping[str, Any]]
    arrays: Mapping[str, NDArray[Any]] = field(default_factory=dict)


def save(
    path: Path,
    contents: Contents,
    blocks: Callable[[int], Iterator[Block]],
    progress: bool,
    check: Callable[[Path], None] = lambda path: None,
) -> None:
    """Write a file, or go on with it: under another name until all of it is on the disk.

    Args:
        path: The file to write, which must not exist.
        contents: What is in it.
        blocks: The blocks that are left once a number of rows is written.
        progress: Whether to show a progress bar on standard error, where that is a terminal.
        check: Is called with the file when it is complete, before it gets its name.
    """
    check_absent(path)
    part = Path(f"{path}{PART}")
    if not part.exists():
        _create(part, contents)
    offsets, written = _resume(part, contents)
    left = blocks(written)
    if progress and sys.stderr.isatty():
        left = _shown(left, written, contents.rows)
    try:
        _write_blocks(part, left, offsets, contents.rows)
    except OSError as error:
        if error.filename is not None:
            raise
        advice = "the rows that were written are kept: save it again to continue, or delete the file"
        raise OSError(error.errno, f"{error.strerror or error}; {advice}", str(part)) from error
    check(part)
    _write_digest(part, offsets[DIGEST])
    check_absent(path)  # again: hours may have passed
    part.rename(path)


def _write_blocks(part: Path, left: Iterator[Block], offsets: Mapping[str, int], all_rows: int) -> None:
    """Write the blocks that are left, until all of them are on the disk."""
    # A thread waits for the disk while the next rows are made and written.
    with open(part, "r+b", buffering=0) as file, ThreadPoolExecutor(1) as thread:
        _lock(file, part)
        unsynced, synced = 0, thread.submit(os.fdatasync, file)
        for pieces, rows in left:
            for name, start, values in pieces:
                if len(values):  # rows may have no entries
                    _write(file, offsets[name], start, values)
                    unsynced += values.nbytes
            if unsynced >= SYNC_BYTES or rows == all_rows:
                synced.result()
                synced = thread.submit(_sync, file, offsets[COUNTER], rows)
                unsynced = 0
        synced.result()
        os.fsync(file)


def _create(part: Path, contents: Contents) -> None:
    """A file of the final size without any rows; under another name until it is one, in case of a kill."""
    h5py = h5py_module()
    datasets = {name: (numpy_dtype(dtype), shape) for name, (dtype, shape) in contents.datasets.items()}
    datasets |= {name: (array.dtype, array.shape) for name, array in contents.arrays.items()}
    datasets |= {COUNTER: (np.dtype(np.int64), (1,)), DIGEST: (np.dtype(np.uint8), (DIGEST_BYTES,))}
    needed = sum(dtype.itemsize * prod(shape) for dtype, shape in datasets.values())
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
    create.set_obj_track_times(False)  # so that the same call writes the same bytes
    new = part.with_name(part.name + ".new")
    try:
        with tempfile.TemporaryFile(dir=part.absolute().parent) as trial:  # HDF5 does not survive a limit of sizes
            trial.truncate(needed + HEADER_BYTES * len(datasets))
        with h5py.File(new, "w", alignment_threshold=1, alignment_interval=PAGE_BYTES) as file:
            for group, attributes in contents.attributes.items():
                file.require_group(group).attrs.update(attributes)
            for name, (dtype, shape) in datasets.items():
                group, _, last = name.rpartition("/")
                kind = h5py.h5t.py_create(dtype, logical=True)
                place = file.require_group(group or "/").id
                h5py.h5d.create(place, last.encode(), kind, h5py.h5s.create_simple(shape), dcpl=create)
                mark(file[name], name)
            for name, array in contents.arrays.items():
                if array.size:
                    file[name][...] = array
            file[COUNTER][0] = 0
            file.attrs["source"] = contents.source
    except BlockingIOError as error:
        raise _is_written(part, error) from error
    except BaseException as error:
        new.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            raise OSError(
                error.errno, f"the file needs {readable_bytes(needed)}: {error.strerror}", str(part)
            ) from error
        raise
    new.rename(part)


def _resume(part: Path, contents: Contents) -> tuple[dict[str, int], int]:
    """Where the file has its datasets, and how many rows it has."""
    rule = f"{part} must be a part of this matrix or network to be continued, and is not"
    advice = "delete it to start anew, or choose another name"
    try:
        with h5py_module().File(part, "r") as file:
            if file.attrs.get("source") != contents.source:
                raise ValueError(f"{rule}; {advice}")
            found, written = places(file), int(file[COUNTER][0])
            if DIGEST not in found:
                raise ValueError(f"{rule}, as an earlier version wrote it; {advice}")
            own = {COUNTER: (torch.int64, (1,)), DIGEST: (torch.uint8, (DIGEST_BYTES,))}
            kinds = {**own, **contents.datasets}
            return {name: byte_offset(found, name, *kind) for name, kind in kinds.items()}, written
    except OSError as error:
        raise ValueError(f"{rule} HDF5 ({error}); {advice}") from error
    except KeyError as error:
        raise ValueError(f"{rule} whole ({error}); {advice}") from error


def _lock(file: FileIO, part: Path) -> None:
    """Refuse to write together with another process."""
    try:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError) as error:
        raise _is_written(part, error) from error
    except OSError:  # the file system has no locks
        pass


def _is_written(part: Path, error: OSError) -> BlockingIOError:
    """The error of a file that another process has locked."""
    return BlockingIOError(error.errno, "another process is writing this file; wait for it", str(part))


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


def _write_digest(part: Path, offset: int) -> None:
    with h5py_module().File(part, "r") as opened:
        digest = digest_of(opened)
    with open(part, "r+b", buffering=0) as file:
        _write(file, offset, 0, torch.tensor([*digest], dtype=torch.uint8))
        os.fsync(file)


def _shown(blocks: Iterator[Block], written: int, rows: int) -> Iterator[Block]:
    """The blocks, with a progress bar."""
    console = extra("rich.console").Console(stderr=True)
    with extra("rich.progress").Progress(console=console) as bar:
        task = bar.add_task("Rows", total=rows, completed=written)
        for pieces, count in blocks:
            yield pieces, count
            bar.update(task, completed=count)
