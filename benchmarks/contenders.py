"""The field: every contender is one entry here or in `ours`."""

from __future__ import annotations

import torch

from benchmarks import peers
from benchmarks.cases import Case
from benchmarks.contender import Build, Contender, calling
from benchmarks.ours import FLOORS, OURS

DENSE, CSR = torch.strided, torch.sparse_csr
UNUSUAL = frozenset({"transposed", "groups", "padding_mode"})


def peer(
    id: str,
    layout: torch.layout,
    build: Build,
    lacks: frozenset[str] | set[str],
    most: float = float("inf"),
    **peak: float,
) -> Contender:
    """A peer whose peak is so many `copies` of the dense matrix, bytes `per_entry` that is not zero, and so on."""

    def estimate(case: Case) -> float:
        rows, cols = case.plan.rows, case.plan.cols
        units = {"copies": 4 * rows * cols, "per_entry": case.plan.nnz, "per_row2": rows**2, "per_col2": cols**2}
        return sum(units[name] * factor for name, factor in peak.items())

    return Contender(id, layout, "peer", calling(build), estimate, frozenset(lacks), most)


# The factors are measured peaks, rounded up.
PEERS = [
    peer("original script's loop", DENSE, peers.original_loop, UNUSUAL | {"dilation"}, most=5e5, copies=1),
    peer("conv(eye)", DENSE, peers.conv_of_eye, set(), copies=2, per_col2=8),
    peer("torch.func.jacrev", DENSE, peers.jacrev, set(), copies=2, per_row2=16),
    peer("unfold + scatter", DENSE, peers.unfold_scatter, UNUSUAL - {"groups"}, copies=1, per_entry=24),
    peer("slices (issue 26781)", DENSE, peers.slice_by_slice, UNUSUAL - {"groups"}, copies=1),
    peer("einconv + einsum", DENSE, peers.einconv_einsum, UNUSUAL, copies=2),
    peer("scipy.sparse.kron, toarray", DENSE, peers.kron_dense, {"padding_mode"}, copies=1, per_entry=24),
    peer("scipy.sparse.kron", CSR, peers.kron_csr, {"padding_mode"}, per_entry=24),
    peer("unfold to CSR", CSR, peers.unfold_csr, UNUSUAL - {"groups"}, per_entry=60),
    peer("conv(eye) to CSR", CSR, peers.conv_of_eye_csr, set(), copies=2, per_col2=8, per_entry=40),
    peer("COO per tap (Orion)", CSR, peers.coo_per_tap, {"padding_mode"}, per_entry=60),
]
CONTENDERS = [*OURS, *FLOORS, *PEERS]
BY_KEY = {(c.id, c.layout): c for c in CONTENDERS}
