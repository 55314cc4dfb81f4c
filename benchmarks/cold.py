"""First calls: each in a new process, in turn with `torch.zeros` of as many bytes, on memory as the system has it.

A virtual machine may give free memory back to its host, which takes some seconds: so there is a pause before each call.
"""

from __future__ import annotations

import mmap
import time
from dataclasses import dataclass, field
from statistics import median

import psutil
import torch

from benchmarks.cases import BY_ID, Case
from benchmarks.contenders import BY_KEY
from benchmarks.measure import TINY, apart, use
from benchmarks.ours import FRESH

OURS = "conv2affine.to_matrix"
DENSE, CSR = torch.strided, torch.sparse_csr
COLD = [
    (BY_ID[id], layout)
    for layout, ids in ((DENSE, ("B", "C", "D", "E", "n=12000")), (CSR, ("E", "T", "H")))
    for id in ids
]
PAUSE = 2.0  # seconds
PAGE, PAGES = 2**21, 32  # huge pages that are touched to see what they cost


@dataclass
class First:
    """A first call, and the memory that it met."""

    seconds: float
    cpu_seconds: float  # of all threads: what other work on the machine hardly changes
    page_seconds: list[float]  # of huge pages, touched before the call
    free_bytes: int


@dataclass
class Cold:
    """First calls of both, by round."""

    case: str
    layer: str
    layout: str
    bytes: int
    ours: list[First] = field(default_factory=list)
    zeros: list[First] = field(default_factory=list)

    def ratio(self, what: str) -> float:
        """Ours to `torch.zeros`, of medians."""
        ours, zeros = (median(getattr(first, what) for first in calls) for calls in (self.ours, self.zeros))
        return ours / zeros


def measure_cold(case: Case, layout: torch.layout, rounds: int, threads: int) -> Cold:
    """All rounds of one case; who comes first changes from round to round."""
    rows, cols = case.plan.rows, case.plan.cols
    size = 4 * rows * cols if layout is DENSE else case.bytes(layout)
    result = Cold(case.id, str(case), str(layout).removeprefix("torch."), size)
    turns = [(OURS, result.ours), (FRESH, result.zeros)]
    for _ in range(rounds):
        turns.reverse()
        for id, calls in turns:
            time.sleep(PAUSE)
            calls.append(apart(first_call, id, layout, case, threads))
    return result


def first_call(id: str, layout: torch.layout, case: Case, threads: int) -> First:
    """In a new process: what is loaded or set up at the first use is not timed, memory is."""
    use(threads, "cpu")
    contender = BY_KEY[id, layout]
    contender.prepare(TINY)()
    torch.zeros(10**5).add_(1)  # starts the threads
    call = contender.prepare(case)
    pages, free = page_seconds(), psutil.virtual_memory().free
    start, cpu_start = time.perf_counter(), time.process_time()
    result = call()
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - cpu_start
    del result
    return First(seconds, cpu_seconds, pages, free)


def page_seconds() -> list[float]:
    """CPU time of first touches of 2 MiB, in huge pages where the system grants them."""
    if not hasattr(mmap, "MADV_HUGEPAGE"):  # Linux only
        return []
    memory = mmap.mmap(-1, (PAGES + 1) * PAGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    memory.madvise(mmap.MADV_HUGEPAGE)
    result = []
    for page in range(PAGES):
        start = time.thread_time()
        memory[(page + 1) * PAGE] = 1
        result.append(time.thread_time() - start)
    return result
