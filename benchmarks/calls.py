"""The tables of calls: each is a function from a case to calls, of which the floors are what the others are divided by.

Only the public functions of conv2affine are called, so that an older checkout can be measured with the same calls.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import Any, Literal

import scipy.sparse as sp
import torch
from torch import nn

from benchmarks import peers
from benchmarks.cases import BY_ID, CASES, LONG, Case
from benchmarks.timing import Call, interleave
from conv2affine import Geometry, from_matrix, plan, to_linear, to_matrix

DENSE, CSR = torch.strided, torch.sparse_csr
BATCHES = (1, 32)


@dataclass(frozen=True)
class Task:
    """One call of a table.

    Args:
        name: Name in the table.
        kind: "ours", "floor" or "peer".
        peak: Estimated bytes at the peak.
        prepare: Does what is not timed, and returns the call that is.
    """

    name: str
    kind: Literal["ours", "floor", "peer"]
    peak: float
    prepare: Callable[[], Call]


@dataclass(frozen=True)
class Table:
    """Calls on each of several cases."""

    title: str
    cases: list[Case]
    tasks: Callable[[Case], Iterator[Task]]


def conversions(case: Case) -> Iterator[Task]:
    """From the layer to its matrix, and back."""
    conv, size = case.conv(), case.input_size
    for layout in (DENSE, CSR):
        name, peak = str(layout).removeprefix("torch."), case.bytes(layout)
        yield Task(
            f"to_matrix, {name}", "ours", peak, lambda layout=layout: partial(to_matrix, conv, size, layout=layout)
        )
    yield Task("to_linear", "ours", case.bytes(DENSE), lambda: partial(to_linear, conv, size))
    yield Task("from_matrix, sparse_csr", "ours", 60 * case.plan.nnz, lambda: _from_matrix(case))
    yield Task("plan", "ours", 0, lambda: partial(plan, conv, size))
    yield _zeros(case)


def training(case: Case) -> Iterator[Task]:
    """From a gradient of the matrix to one of the weights; the floor only reads as many numbers."""
    yield Task("values.sum()", "floor", 4 * case.plan.nnz, lambda: torch.randn(case.plan.nnz).sum)
    yield Task("gradient of CSR values", "ours", 3 * case.bytes(CSR), lambda: _backward(case, _csr_values))
    peak = 6 * case.bytes(DENSE)  # that a peer's graph holds at most
    yield Task("gradient of the dense matrix", "ours", peak, lambda: _backward(case, to_matrix))
    lacks = {"unfold_scatter": {"transposed"}, "einconv_einsum": {"transposed", "groups"}}
    einconv = [peers.einconv_einsum] if find_spec("einconv") else []  # optional: installed without its dependencies
    for peer in (peers.conv_of_eye, peers.unfold_scatter, *einconv):
        if not lacks.get(peer.__name__, set()) & case.needs:
            yield Task(f"the same by {peer.__name__}", "peer", peak, lambda peer=peer: _backward(case, peer))


def layer(case: Case) -> Iterator[Task]:
    """A SparseLinear, and products with its matrix; the best of them is the floor, though none adds a bias."""
    peak = 3 * case.bytes(CSR)
    for batch in BATCHES:
        for name, (kind, product) in PRODUCTS.items():
            yield Task(f"{name}, batch {batch}", kind, peak, partial(_product, case, batch, product))


def _product(case: Case, batch: int, product: Callable[..., Call]) -> Call:
    fc = to_linear(case.conv(), case.input_size, layout=CSR)
    return product(fc, torch.randn(batch, fc.in_features))


def _scipy_product(fc: Any, x: torch.Tensor) -> Call:
    weight = fc.weight
    parts = (part.numpy() for part in (weight.values(), weight.col_indices(), weight.crow_indices()))
    matrix, columns = sp.csr_array(tuple(parts), tuple(weight.shape)), x.numpy().T
    return lambda: matrix @ columns


def _gradient_to_input(fc: Any, x: torch.Tensor) -> Call:
    y = fc(x.requires_grad_())
    return partial(torch.autograd.grad, y, x, torch.randn_like(y), retain_graph=True)


def _gradient_to_values(fc: Any, x: torch.Tensor) -> Call:
    y = fc.requires_grad_()(x)
    parameter = next(fc.parameters())
    return partial(torch.autograd.grad, y, parameter, torch.randn_like(y), retain_graph=True)


PRODUCTS: dict[str, tuple[Literal["ours", "floor", "peer"], Callable[..., Call]]] = {
    "SparseLinear": ("ours", lambda fc, x: partial(fc, x)),
    "its gradient to the input": ("ours", _gradient_to_input),
    "its gradient to the weight": ("ours", _gradient_to_values),
    "A @ x.T": ("floor", lambda fc, x: partial(torch.matmul, fc.weight, x.T)),
    "torch.sparse.mm(A, x.T)": ("floor", lambda fc, x: partial(torch.sparse.mm, fc.weight, x.T)),
    "SciPy's A @ x.T": ("floor", _scipy_product),
    "F.linear(x, A, b)": ("peer", lambda fc, x: partial(nn.functional.linear, x, fc.weight, fc.bias)),
}


def long(case: Case) -> Iterator[Task]:
    """What border positions cost; the floor is the memory of the matrix."""
    conv, size = case.conv(), case.input_size
    yield _zeros(case)
    yield Task("to_matrix", "ours", _dense_bytes(case), lambda: partial(to_matrix, conv, size))
    yield Task("plan", "ours", 0, lambda: partial(plan, conv, size))


def _zeros(case: Case) -> Task:
    shape = Geometry.from_layer(case.conv(), case.input_size).shape
    return Task("torch.zeros", "floor", _dense_bytes(case), lambda: partial(torch.zeros, shape))


def _dense_bytes(case: Case) -> int:
    rows, cols = Geometry.from_layer(case.conv(), case.input_size).shape
    return 4 * rows * cols


def _csr_values(conv: Any, input_size: tuple[int, ...]) -> torch.Tensor:
    return to_matrix(conv, input_size, layout=CSR).values()


def _backward(case: Case, build: Callable[[Any, Any], torch.Tensor]) -> Call:
    conv = case.conv()
    matrix = build(conv.requires_grad_(), case.input_size)
    return partial(torch.autograd.grad, matrix, conv.weight, torch.randn_like(matrix), retain_graph=True)


def _from_matrix(case: Case) -> Call:
    conv = case.conv()
    matrix = to_matrix(conv, case.input_size, layout=CSR)
    return partial(from_matrix, matrix, Geometry.from_layer(conv, case.input_size))


TABLES = {
    "training": Table("gradients of the weights", [*CASES, BY_ID["K"]], training),
    "layer": Table("the sparse layer", [BY_ID[id] for id in "BDEH"], layer),
    "long": Table("long kernels and much padding", LONG, long),
}
# Measured against another checkout, where peers do not matter.
COMPARED = {"conversions": Table("conversions", [*CASES, BY_ID["K"]], conversions), **TABLES}


def fitting(table: Table, case: Case, limit: float) -> list[Task]:
    """The tasks that `limit` bytes are enough for."""
    return [task for task in table.tasks(case) if task.peak <= limit]


def measure_calls(tasks: list[Task], rounds: int, threads: int) -> dict[str, list[float]]:
    """Seconds of each call by round."""
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    torch.set_num_threads(threads)
    calls = {task.name: task.prepare() for task in tasks}
    return interleave(
        {name: lambda call=call: call for name, call in calls.items()}, dict.fromkeys(calls, rounds), threads
    )
