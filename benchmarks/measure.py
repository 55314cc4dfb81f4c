"""One measurement: first in a process of its own for memory and correctness, then side by side for time."""

from __future__ import annotations

import resource
import sys
import time
import warnings
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass, field
from functools import partial
from multiprocessing import get_context
from statistics import median
from typing import TypeVar

import torch
from torch import nn

from benchmarks.cases import Case, case
from benchmarks.check import is_right
from benchmarks.contender import Contender
from benchmarks.contenders import BY_KEY
from benchmarks.timing import interleave, patient_rounds

Seen = TypeVar("Seen")
TINY = case("tiny", nn.Conv2d, 3, 1, 1, 2)
UNITS = 1 if sys.platform == "darwin" else 1024  # bytes, and kilobytes, of ru_maxrss


@dataclass
class Result:
    """What is known of one contender on one case."""

    series: str
    case: str
    layer: str
    layout: str
    contender: str
    kind: str
    threads: int
    rows: int
    cols: int
    nnz: int
    bytes: int
    status: str = ""  # "ok", or why there are no times
    peak_bytes: int | None = None  # beyond what the process held before
    first_call: float | None = None  # seconds, in a fresh process
    seconds: list[float] = field(default_factory=list)  # one call, by round

    @property
    def median(self) -> float | None:
        """Seconds."""
        return median(self.seconds) if self.seconds else None


def resident() -> int:
    """The most bytes that this process ever had in memory."""
    return UNITS * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


PEAK_BYTES: dict[str, Callable[[], int]] = {"cpu": resident, "cuda": torch.cuda.max_memory_allocated}


@dataclass
class Probe:
    """One call, looked at closely."""

    status: str
    peak_bytes: int | None = None
    seconds: float | None = None


def probe(id: str, layout: torch.layout, case: Case, threads: int, device: str) -> Probe:
    """Call a contender once: does it work, is it right, how long does it take, how much memory?"""
    use(threads, device)
    peak_bytes = PEAK_BYTES[torch.device(device).type]
    contender = BY_KEY[id, layout]
    try:
        contender.prepare(TINY)()  # what is loaded or set up at the first use is nobody's memory
        call = contender.prepare(case)
        before, start = peak_bytes(), time.perf_counter()
        result = call()
        seconds, peak = time.perf_counter() - start, peak_bytes() - before
        right = contender.kind == "floor" or is_right(result, case)
    except (ImportError, NotImplementedError, TypeError) as error:
        return Probe(f"not available: {error}")
    except (MemoryError, RuntimeError) as error:
        return Probe(f"failed: {error}")
    return Probe("ok" if right else "wrong", peak, seconds)


def probe_apart(*arguments: object) -> Probe:
    """`probe` in a new process."""
    try:
        return apart(probe, *arguments)
    except BrokenProcessPool:
        return Probe("killed, out of memory perhaps")


def apart(function: Callable[..., Seen], *arguments: object) -> Seen:
    """A call in a new process, forked from a server that has imported everything and computed nothing."""
    context = get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.measure"])
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(function, *arguments).result()


def use(threads: int, device: str) -> None:
    """Threads, and the device on which new tensors are made; the CPU needs no say, which would cost time."""
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    torch.set_num_threads(threads)
    if device != "cpu":
        torch.set_default_device(device)


def time_rounds(running: list[tuple[Contender, Result]], case: Case, rounds: int, threads: int) -> None:
    """Time everyone side by side; of a slow peer, its first call may be all that there is."""
    seconds = interleave(
        {contender.id: partial(contender.prepare, case) for contender, _ in running},
        {contender.id: planned_rounds(result, rounds) for contender, result in running},
        threads,
    )
    for contender, result in running:
        result.seconds = seconds[contender.id] or [result.first_call or 0.0]


def planned_rounds(result: Result, rounds: int) -> int:
    """All rounds, or for a slow peer as many as there is patience for."""
    if result.kind != "peer" or not result.first_call:
        return rounds
    return patient_rounds(rounds, result.first_call)
