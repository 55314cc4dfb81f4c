"""The guard: a matrix for which there is no memory is refused before anything is allocated."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch._subclasses import FakeTensor

from conv2affine import ops
from conv2affine.geometry import Geometry
from conv2affine.layouts import Request
from conv2affine.plan import layout_bytes, layout_name, readable_bytes

__all__ = ["address_space_left", "check_memory", "memory_left"]

# To read what is left takes as long as to build a matrix of a few MB.
UNCHECKED_BYTES = 2**24


def check_memory(geometry: Geometry, weight: Tensor, request: Request) -> None:
    """Raise MemoryError if the matrix needs more memory than is left.

    Args:
        geometry: The conversion.
        weight: Of the matrix's dtype and device. Only the CPU's memory is looked at, and not while
            torch.compile traces, when nothing is allocated.
        request: The layout, and which rows.

    Raises:
        MemoryError: With the bytes of every layout, and which of them would fit.
    """
    if torch.compiler.is_compiling() or weight.device.type != "cpu" or isinstance(weight, FakeTensor):
        return
    dtype = weight.dtype
    if len(request.rows) * geometry.shape[1] * dtype.itemsize <= UNCHECKED_BYTES:
        return
    wanted = layout_name(request.layout, request.index_dtype)
    sizes = layout_bytes(geometry, dtype, request.rows)
    if sizes[wanted] <= UNCHECKED_BYTES:
        return
    # Address space and memory at the peak. Pages of a strided matrix in which no weight lies take address space only;
    # to drop zeros takes the entries twice, and for each of them a flag and a count.
    mapped, entries = dict(sizes), ops.entries(geometry, request.rows)
    if request.drop_zeros:
        mapped = {name: size if name == "strided" else 2 * size + 9 * entries for name, size in sizes.items()}
    resident = {**mapped, "strided": ops.dense_resident_bytes(geometry, dtype, request.rows)}
    left, space = memory_left(), address_space_left()
    fits = {name: mapped[name] <= space and resident[name] <= left for name in sizes}
    if fits[wanted]:
        return
    needed = mapped[wanted]
    listed = "; ".join(
        f"{name}: {readable_bytes(size)}, {'fits' if fits[name] else 'does not fit'}" for name, size in sizes.items()
    )
    raise MemoryError(
        f"layout ({request.layout}) of {len(request.rows)} x {geometry.shape[1]} elements of {dtype} needs "
        f"{readable_bytes(needed)} ({needed} bytes), and there are {readable_bytes(min(left, space))} left ({listed}); "
        "choose a layout that fits, or build a block of rows with rows=range(start, stop)"
    )


def memory_left() -> int:
    """Bytes that this process may still use: what the machine has, or a control group allows, whichever is less."""
    return min(
        [int(psutil.virtual_memory().available), *_cgroups_left(Path("/proc/self/cgroup"), Path("/sys/fs/cgroup"))]
    )


def address_space_left() -> int:
    """Bytes that this process may still map, as `ulimit -v` has it."""
    if not hasattr(psutil, "RLIMIT_AS"):  # only Linux tells
        return 2**63 - 1
    process = psutil.Process()
    limit = int(process.rlimit(psutil.RLIMIT_AS)[0])
    return 2**63 - 1 if limit == psutil.RLIM_INFINITY else limit - int(process.memory_info().vms)


def _cgroups_left(membership: Path, root: Path) -> Iterator[int]:
    """What each control group that the process is in leaves; version 2, and the memory controller of version 1.

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
        # Inside of a container the path may be that of the host, of which only the root is there.
        for folder in (group, *group.parents):
            allowed, used = _read(folder / limit).strip(), _read(folder / usage).strip()
            if allowed.isdecimal() and used.isdecimal():
                stat = _read(folder / "memory.stat").splitlines()
                reclaimable = sum(int(entry.split()[1]) for entry in stat if entry.startswith(cache))
                yield max(0, int(allowed) - int(used) + reclaimable)
            if folder == top:
                break


def _read(path: Path) -> str:
    """Text of a system file; nothing where it is not there or not ours to read."""
    try:
        return path.read_text()
    except OSError:
        return ""
