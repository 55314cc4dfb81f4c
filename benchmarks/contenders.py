"""The field: every contender is one entry here or in `ours`."""

from __future__ import annotations

from collections.abc import Callable
from math import prod

import torch

from benchmarks import peers
from benchmarks.cases import Case
from benchmarks.contender import Build, Contender, calling
from benchmarks.ours import FLOORS, OURS

DENSE, CSR = torch.strided, torch.sparse_csr


def peer(
    id: str,
    layout: torch.layout,
    build: Build,
    lacks: frozenset[str] = frozenset(),
    too_slow: Callable[[Case], bool] = lambda case: False,
    **peak: float,
) -> Contender:
    """A peer whose peak is `copies` times the dense matrix, plus `per_entry` bytes for each entry, and so on."""

    def estimate(case: Case) -> float:
        return sum(factor * unit(case, name) for name, factor in peak.items())

    return Contender(id, layout, "peer", calling(build), estimate, lacks, too_slow)


def unit(case: Case, name: str) -> int:
    """What a peer's memory grows with."""
    rows, cols, conv = case.plan.rows, case.plan.cols, case.conv()
    return {
        "copies": case.bytes(DENSE),
        "per_entry": case.plan.nnz,
        "per_tap": rows * prod(conv.weight.shape[1:]),  # with those that fall into the padding
        "per_row2": rows**2,
        "per_col2": cols**2,
    }[name]


def long_loop(case: Case) -> bool:
    """At several microseconds an entry."""
    return case.plan.nnz > 5e5


def many_sums(case: Case) -> bool:
    """Every tap copies the sum of those before."""
    return case.plan.nnz * prod(case.conv().kernel_size) > 1e10


UNUSUAL = frozenset({"transposed", "groups", "padding_mode"})
MODES = frozenset({"padding_mode"})
# The factors are measured peaks, rounded up.
PEERS = [
    peer("original script's loop", DENSE, peers.original_loop, UNUSUAL | {"dilation"}, long_loop, copies=1),
    peer("conv(eye)", DENSE, peers.conv_of_eye, copies=2, per_col2=8),
    peer("torch.func.jacrev", DENSE, peers.jacrev, copies=3, per_row2=12),
    peer("unfold + scatter", DENSE, peers.unfold_scatter, MODES | {"transposed"}, copies=1, per_tap=18),
    peer("slices (issue 26781)", DENSE, peers.slice_by_slice, MODES | {"transposed"}, copies=1),
    peer("einconv + einsum", DENSE, peers.einconv_einsum, UNUSUAL, copies=2),
    peer("scipy.sparse.kron, toarray", DENSE, peers.kron_dense, MODES, many_sums, copies=1, per_entry=32),
    peer("scipy.sparse.kron", CSR, peers.kron_csr, MODES, many_sums, per_entry=32),
    peer("unfold to CSR", CSR, peers.unfold_csr, MODES | {"transposed"}, per_tap=34),
    peer("conv(eye) to CSR", CSR, peers.conv_of_eye_csr, copies=2, per_col2=8, per_entry=24),
    peer("COO per tap (Orion)", CSR, peers.coo_per_tap, MODES, per_entry=54),
]
CONTENDERS = [*OURS, *FLOORS, *PEERS]
BY_KEY = {(c.id, c.layout): c for c in CONTENDERS}
