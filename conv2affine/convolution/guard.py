"""The guard: what does not fit into memory is refused before anything is allocated."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from conv2affine.convolution.arguments import INT64_MAX
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.layouts import Request
from conv2affine.convolution.sizes import Size, layout_name, layout_sizes, readable_bytes
from conv2affine.operators import ops

# Reading how much memory is left takes as long as building a matrix of a few MB.
UNCHECKED_BYTES = 2**24
# Where torchrun, Open MPI and MPICH say how many ranks a host has.
LOCAL_RANKS = ("LOCAL_WORLD_SIZE", "OMPI_COMM_WORLD_LOCAL_SIZE", "MPI_LOCALNRANKS")
# Version 1 of control groups writes nearly 2^63 where there is no limit.
NO_LIMIT = 2**60
BIAS_ADVICE = "take the layer's own bias, which has one entry per channel"


def check_matrix_memory(geometry: Geometry, weight: Tensor, request: Request) -> None:
    """Raise MemoryError if the matrix needs more memory than is left.

    The weight has its dtype and device. Only the CPU's memory is looked at, and not while torch.compile traces, when
    nothing is allocated.

    Raises:
        MemoryError: With the bytes of every layout, and which of them would fit.
        ValueError: If 64 bits cannot count the bytes of a dense matrix, on any device.
    """
    dtype, rows = weight.dtype, request.rows
    dense = len(rows) * geometry.shape[1] * dtype.itemsize
    if request.layout is torch.strided:
        _check_countable("matrix", dense, geometry, "choose a sparse layout, or a block of rows")
    if dense <= UNCHECKED_BYTES or _is_unchecked(weight):
        return
    wanted = layout_name(request.layout, request.index_dtype)
    sizes = layout_sizes(len(rows), geometry.shape[1], ops.nnz(geometry, rows), dtype)
    # Address space and memory at the peak. Pages of a dense matrix in which no weight lies take address space only.
    mapped = {size.name: size.peak_bytes(request.drop_zeros) for size in sizes}
    if mapped[wanted] <= UNCHECKED_BYTES:
        return
    left, space = memory_left(), address_space_left()

    def resident(size: Size) -> int:
        is_dense = size.layout is torch.strided
        return ops.dense_resident_bytes(geometry, dtype, rows) if is_dense else mapped[size.name]

    fits = {size.name: mapped[size.name] <= space and resident(size) <= left for size in sizes}
    if fits[wanted]:
        return
    listed = "; ".join(
        f"{size.name}: {readable_bytes(size.bytes)}, {'fits' if fits[size.name] else 'does not fit'}" for size in sizes
    )
    raise MemoryError(
        f"layout ({request.layout}) of {len(rows)} x {geometry.shape[1]} elements of {dtype} needs "
        f"{_readable(mapped[wanted])}, and there are {readable_bytes(min(left, space))} left ({listed}); "
        "choose a layout that fits, or build a block of rows: to_matrix(..., rows=range(start, stop))"
    )


def check_bias_memory(geometry: Geometry, bias: Tensor) -> None:
    """Raise as `check_matrix_memory` if the bias of one entry per row needs more memory than is left."""
    needed = geometry.shape[0] * bias.dtype.itemsize
    _check_countable("bias", needed, geometry, BIAS_ADVICE)
    if needed <= UNCHECKED_BYTES or _is_unchecked(bias):
        return
    left = min(memory_left(), address_space_left())
    if needed > left:
        raise MemoryError(
            f"a bias of {geometry.shape[0]} entries of {bias.dtype} needs {_readable(needed)}, and there are "
            f"{readable_bytes(left)} left; {BIAS_ADVICE}"
        )


def _check_countable(name: str, size: int, geometry: Geometry, advice: str) -> None:
    if size > INT64_MAX:
        raise ValueError(
            f"the {name} would have {size} bytes, more than a signed 64-bit integer counts (input_size "
            f"{geometry.input_size}, output size {geometry.output_size}); {advice}"
        )


def _is_unchecked(tensor: Tensor) -> bool:
    return torch.compiler.is_compiling() or tensor.device.type != "cpu" or isinstance(tensor, FakeTensor)


def _readable(size: int) -> str:
    return f"{readable_bytes(size)} ({size} bytes)"


def shortage(what: str, needed: int, advice: str) -> str:
    """Why there is too little memory left for something of this many bytes; "" if there is enough."""
    left = memory_left()
    if needed <= left:
        return ""
    return f"{what} need {readable_bytes(needed)}, and there are {readable_bytes(left)} left; {advice}"


def check_left(what: str, needed: int, advice: str) -> None:
    """Raise MemoryError if something needs more memory than is left."""
    if refusal := shortage(what, needed, advice):
        raise MemoryError(refusal)


def memory_left() -> int:
    """Bytes that this process may still use: what the machine has or a control group allows, whichever is less.

    Where several ranks run on a host, each may use its share.
    """
    groups = _cgroups_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))
    ranks = next((os.environ[name] for name in LOCAL_RANKS if name in os.environ), "")
    return min([int(psutil.virtual_memory().available), *groups]) // max(1, int(ranks) if ranks.isdecimal() else 1)


def address_space_left() -> int:
    """Bytes that this process may still map; `ulimit -v` sets the limit."""
    if not hasattr(psutil, "RLIMIT_AS"):  # Linux only
        return INT64_MAX
    process = psutil.Process()
    limit = int(process.rlimit(psutil.RLIMIT_AS)[0])
    return INT64_MAX if limit == psutil.RLIM_INFINITY else limit - int(process.memory_info().vms)


def _cgroups_left(membership: Path, root: Path) -> Iterator[int]:
    """Bytes left in each control group of the process; version 2, and the memory controller of version 1.

    Source: https://docs.kernel.org/admin-guide/cgroup-v2.html, https://docs.kernel.org/admin-guide/cgroup-v1/memory.html
    """
    for line in _read(membership).splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers == "":
            top, limit, usage, cache = root, "memory.max", "memory.current", "inactive_file "
        elif controllers == "memory":
            top, limit, usage = root / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file "
        else:
            continue
        group = top / path.lstrip("/")
        # Inside a container, the path may be the host's, of which only the root exists.
        for folder in (group, *group.parents):
            allowed = _read(folder / limit).strip()
            is_limited = allowed.isdecimal() and int(allowed) < NO_LIMIT
            used = _read(folder / usage).strip() if is_limited else ""
            if used.isdecimal():
                stat = _read(folder / "memory.stat").splitlines()
                reclaimable = sum(int(entry.split()[1]) for entry in stat if entry.startswith(cache))
                yield max(0, int(allowed) - int(used) + reclaimable)
            if folder == top:
                break


def _read(path: Path) -> str:
    """Text of a system file; empty if it does not exist or cannot be read."""
    try:
        return path.read_text()
    except OSError:
        return ""
