"""Where a conversion spends its time, for a network of 22 layers and one of 201.

The processor time of each stage in milliseconds, the least of several rounds:

    export    torch.export
    import    runs of the model, and an affine map or a step for each operator
    passes    simplify and merge
    matrices  the weights of the layers
    module    the torch.fx module around them
    check     the result against the model
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from contextlib import ExitStack

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import conv2affine
from benchmarks.networks import DenseNet, ResNet, timed
from conv2affine.network import convert, prepare
from conv2affine.network.torch.importing import importer

CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "ResNet-18, half of its channels, @ 32x32": (ResNet, (3, 32, 32)),
    "DenseNet, 201 convolutions, growth 4, @ 8x8": (lambda: DenseNet(4, 66), (3, 8, 8)),
}
MEASURED = (
    (importer, "export"),
    (prepare, "import_torch"),
    (convert, "prepare"),
    (convert, "finite_layer"),
    (convert, "export_torch"),
    (convert, "verify"),
)


def stages(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Milliseconds of each stage of one conversion."""
    seconds: dict[str, float] = {}
    with ExitStack() as stack:
        for module, name in MEASURED:
            stack.enter_context(timed(module, name, seconds, time.process_time))
        conv2affine.to_linear_network(model, x)
    result = {
        "export": seconds["export"],
        "import": seconds["import_torch"] - seconds["export"],
        "passes": seconds["prepare"] - seconds["import_torch"],
        "matrices": seconds["finite_layer"],
        "module": seconds["export_torch"] - seconds["finite_layer"],
        "check": seconds["verify"],
    }
    return {name: 1000 * each for name, each in result.items()}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.network_stages", description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    table = Table("network", title="Milliseconds of processor time", box=SIMPLE_HEAD)
    for case, (make, shape) in CASES.items():
        torch.manual_seed(0)
        model, x = make().eval().requires_grad_(False), torch.randn(1, *shape)
        measured = [stages(model, x) for _ in range(rounds)]
        if not table.rows:
            for name in measured[0]:
                table.add_column(name, justify="right")
        table.add_row(case, *(f"{min(each[name] for each in measured):.0f}" for name in measured[0]))
    Console(width=120, highlight=False).print(table)


if __name__ == "__main__":
    main()
