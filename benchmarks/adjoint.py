"""Speed of the adjoint, from a matrix back to weights, next to a plain sum and to backward passes through peers.

For each layer, in interleaved rounds: `sparse_adjoint` of the values of a CSR matrix, and its operator alone as a
backward pass calls it, beside `values.sum()`, which reads as many numbers and does nothing with them; `dense_adjoint`
of a strided matrix beside what PyTorch takes to go back from such a matrix to the weights where a peer has built it.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median
from typing import Any

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.utils.benchmark import Timer

from benchmarks import peers
from benchmarks.cases import CASES, Case, case
from benchmarks.report import digits
from conv2affine import Geometry, derivatives, ops

Call = Callable[[], Any]
PEERS = (peers.conv_of_eye, peers.unfold_scatter, peers.einconv_einsum)
LACKS = {"unfold_scatter": {"transposed"}, "einconv_einsum": {"transposed", "groups"}}
LARGE_KERNEL = case("K", nn.Conv2d, 40, 4, 4, 31, padding=15, groups=4)  # hardly two rows have the same weights
LAYERS = {layer.id: layer for layer in [*CASES, LARGE_KERNEL]}
COPIES = 6  # of the dense matrix, that a peer's graph holds at most


def main() -> None:
    """One table row a layer and contender."""
    parser = argparse.ArgumentParser("python -m benchmarks.adjoint", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(LAYERS), choices=list(LAYERS), metavar="ID")
    parser.add_argument("--rounds", type=int, default=7, metavar="N", help="default: %(default)s")
    parser.add_argument("--threads", type=int, default=2, metavar="N", help="default: %(default)s")
    parser.add_argument("--limit-gb", type=float, default=11, metavar="X", help="default: %(default)s")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", "Sparse CSR tensor support is in beta")
    table = Table("case", "call", "ms, median", "/ values.sum()", box=SIMPLE_HEAD)
    for layer in (LAYERS[id] for id in arguments.cases):
        calls = dict(contenders(layer, 1e9 * arguments.limit_gb))
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(arguments.rounds):
            for name, call in calls.items():
                timer = Timer("call()", globals={"call": call}, num_threads=arguments.threads)
                seconds[name].append(timer.blocked_autorange(min_run_time=0.02).median)
        floor = median(seconds["values.sum()"])
        for name, rounds in seconds.items():
            table.add_row(layer.id, name, digits(1e3 * median(rounds)), digits(median(rounds) / floor))
        table.add_section()
    Console(width=100, highlight=False).print(table)


def contenders(case: Case, limit: float) -> Iterator[tuple[str, Call]]:
    """Who takes part, everything but the adjoint itself done; checked against each other."""
    conv, geometry = case.conv(), Geometry.from_layer(case.conv(), case.input_size)
    values = torch.randn(case.plan.nnz)
    expected = ops.sparse_adjoint(values, geometry)
    yield "values.sum()", values.sum
    yield "sparse_adjoint", partial(ops.sparse_adjoint, values, geometry)
    arguments = (geometry.grouped_size, *geometry.operator_arguments(), 0, geometry.shape[0], False)
    yield "its operator", partial(derivatives.call, "sparse_adjoint", values, *arguments)
    if COPIES * case.bytes(torch.strided) > limit:
        return
    starts, columns, _ = ops.csr(conv.weight, geometry, 0, geometry.shape[0], torch.int32, transpose=False)
    matrix = torch.sparse_csr_tensor(starts, columns, values, geometry.shape, check_invariants=False).to_dense()
    yield "dense_adjoint", partial(ops.dense_adjoint, matrix, geometry)
    weight = conv.weight.requires_grad_()
    for build in PEERS:
        if not LACKS.get(build.__name__, set()) & case.needs:
            built = build(conv, case.input_size)
            backward = partial(torch.autograd.grad, built, weight, matrix, retain_graph=True)
            torch.testing.assert_close(backward()[0], expected, rtol=1e-3, atol=1e-3)
            yield f"backward of {build.__name__}", backward


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
