"""conv2affine, and the floors: what the machine takes to hand out, or to overwrite, memory of the matrix's size."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.cases import Case
from benchmarks.contender import Contender, calling, result_bytes
from conv2affine import to_linear, to_matrix

DENSE, CSR = torch.strided, torch.sparse_csr
FRESH, WARM = "torch.zeros", "warm zero_()"  # the floors that every table has ratios to


def csr_matrix(conv: Any, input_size: tuple[int, int]) -> Tensor:
    """Ours, sparse."""
    return to_matrix(conv, input_size, layout=CSR, index_dtype=torch.int32)


def zeros(case: Case, layout: torch.layout) -> partial[Tensor]:
    """Allocates zeros, as many bytes as the matrix."""
    if layout is DENSE:
        return partial(torch.zeros, case.plan.rows, case.plan.cols)
    return partial(torch.zeros, case.bytes(layout), dtype=torch.uint8)


def floors(layout: torch.layout) -> list[Contender]:
    """Fresh memory, whose pages the kernel has to hand out, and memory that is there already."""
    peak = result_bytes(layout)
    return [
        Contender(FRESH, layout, "floor", lambda case: zeros(case, layout), peak),
        Contender(WARM, layout, "floor", lambda case: zeros(case, layout)().zero_, peak),
    ]


def constructor(case: Case) -> partial[nn.Linear]:
    """What `nn.Linear` takes to allocate its weights and to fill them with random numbers."""
    return partial(nn.Linear, case.plan.cols, case.plan.rows)


TINY: dict[str, Any] = {"too_slow": lambda case: case.plan.nnz > 1e4}

OURS = [
    Contender("conv2affine.to_matrix", DENSE, "ours", calling(to_matrix), result_bytes(DENSE)),
    Contender("conv2affine.to_linear", DENSE, "ours", calling(to_linear), result_bytes(DENSE)),
    Contender("conv2affine.to_matrix", CSR, "ours", calling(csr_matrix), result_bytes(CSR)),
]
FLOORS = [
    *floors(DENSE),
    Contender("nn.Linear()", DENSE, "floor", constructor, result_bytes(DENSE), **TINY),
    *floors(CSR),
]
