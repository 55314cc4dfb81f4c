"""Whole networks: what a conversion takes next to the sum of its convolutions, and next to relucent.

The floor is what must be done anyway: the CSR matrix of each convolution, and a copy of the result. All is float32. A
conversion is timed without `torch.export`, and without the check of its result, which have their own columns. The floor
follows an export of its own, as free memory costs more after a pause, and Python collects no garbage while the clock
runs, as in `timeit`: an export leaves much. The best of several rounds counts. A forward pass is one of the model and
one of the result, with the samples of the check. Peak memory is that of a fresh process, beyond what it held after
`torch.export`.
"""

from __future__ import annotations

import argparse
import gc
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import conv2affine
from conv2affine.network import convert
from conv2affine.network.torch.importing import importer as torch_importer
from conv2affine.network.torch.models import program as torch_program
from conv2affine.network.torch.verifying.runs import samples

CONVOLUTIONS = nn.Conv2d, nn.ConvTranspose2d
DENSE_BYTES = 2**31  # of what is compared as a dense network too


class ResNet(nn.Module):
    """ResNet-18 for 32 x 32, with half of its channels."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.stem = conv_bn(3, width, 3)
        blocks, inputs = [], width
        for stage in range(4):
            for number in range(2):
                outputs, stride = width << stage, 2 if stage and not number else 1
                blocks.append(Block(inputs, outputs, stride))
                inputs = outputs
        self.blocks, self.fc = nn.Sequential(*blocks), nn.Linear(inputs, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.blocks(F.relu(self.stem(x))).mean((2, 3)))


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = conv_bn(inputs, outputs, 3, stride), conv_bn(outputs, outputs, 3)
        self.shortcut = conv_bn(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv2(F.relu(self.conv1(x))) + self.shortcut(x))


class DenseNet(nn.Module):
    """Three blocks of layers, with transitions between them."""

    def __init__(self, growth: int = 12, depth: int = 6) -> None:
        super().__init__()
        self.stem, channels, layers = nn.Conv2d(3, 24, 3, padding=1, bias=False), 24, []
        for stage in range(3):
            for _ in range(depth):
                layers.append(
                    nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, growth, 3, padding=1))
                )
                channels += growth
            if stage < 2:
                pool = nn.Conv2d(channels, channels // 2, 1), nn.AvgPool2d(2)
                layers.append(nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(), *pool))
                channels //= 2
        self.layers, self.fc = nn.ModuleList(layers), nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for layer in self.layers:
            x = layer(x) if len(layer) == 4 else torch.cat([x, layer(x)], 1)
        return self.fc(F.relu(x).mean((2, 3)))


class UNet(nn.Module):
    """Three levels, with transposed convolutions on the way up."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        sizes = [width << level for level in range(3)]
        double = lambda a, b: nn.Sequential(conv_bn(a, b, 3), nn.ReLU(), conv_bn(b, b, 3), nn.ReLU())  # noqa: E731
        self.down = nn.ModuleList(double(a, b) for a, b in zip([3, *sizes], sizes, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(2 * b, b, 2, 2) for b in sizes[-2::-1])
        self.join = nn.ModuleList(double(2 * b, b) for b in sizes[-2::-1])
        self.last = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        skipped = []
        for level, layer in enumerate(self.down):
            x = layer(x if not level else F.max_pool2d(x, 2))
            skipped.append(x)
        for up, join, skip in zip(self.up, self.join, skipped[-2::-1], strict=True):
            x = join(torch.cat([up(x), skip], 1))
        return self.last(x)


def conv_bn(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False), nn.BatchNorm2d(outputs))


def lenet() -> nn.Sequential:
    features = (
        nn.Conv2d(1, 6, 5, padding=2),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Conv2d(6, 16, 5),
        nn.ReLU(),
        nn.AvgPool2d(2),
    )
    head = nn.Flatten(), nn.Linear(400, 120), nn.ReLU(), nn.Linear(120, 84), nn.ReLU(), nn.Linear(84, 10)
    return nn.Sequential(*features, *head)


CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "lenet": (lenet, (1, 28, 28)),
    "resnet": (ResNet, (3, 32, 32)),
    "densenet": (DenseNet, (3, 32, 32)),
    "unet": (UNet, (3, 64, 64)),
}


def build(case: str) -> tuple[nn.Module, Tensor]:
    torch.manual_seed(0)
    make, shape = CASES[case]
    return make().eval().requires_grad_(False), torch.randn(1, *shape)


@contextmanager
def timed(
    module: Any, name: str, seconds: dict[str, float], now: Callable[[], float] = time.perf_counter
) -> Iterator[None]:
    """Add up the time that a function of a module takes."""
    function = getattr(module, name)

    def measured(*args: Any, **kwargs: Any) -> Any:
        start = now()
        result = function(*args, **kwargs)
        seconds[name] = seconds.get(name, 0) + now() - start
        return result

    setattr(module, name, measured)
    try:
        yield
    finally:
        setattr(module, name, function)


@contextmanager
def no_collection() -> Iterator[None]:
    """Collect garbage first, and none meanwhile."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def clock(function: Callable[[], Any]) -> float:
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def conversion(model: nn.Module, x: Tensor) -> dict[str, float]:
    """Seconds of `torch.export`, of the check and of all else."""
    seconds: dict[str, float] = {}
    with timed(torch_importer, "export", seconds), timed(convert, "verify", seconds):
        total = clock(lambda: conv2affine.to_linear_network(model, x))
    rest = total - seconds["export"] - seconds["verify"]
    return {"export": seconds["export"], "conversion": rest, "check": seconds["verify"]}


def builds(model: nn.Module, x: Tensor) -> Callable[[], None]:
    """Makes the CSR matrix of each convolution by itself."""
    sizes: dict[nn.Module, Tensor] = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, inputs: sizes.update({module: inputs[0].shape[2:]}))
        for module in model.modules()
        if isinstance(module, CONVOLUTIONS)
    ]
    model(x)
    for hook in hooks:
        hook.remove()

    def make() -> None:
        for conv, size in sizes.items():
            conv2affine.to_matrix(conv, size, layout=torch.sparse_csr)

    return make


def tensors(net: nn.Module) -> list[Tensor]:
    """All tensors of the layers' weights."""
    result = []
    for tensor in net.state_dict().values():
        is_csr = tensor.layout is torch.sparse_csr
        result += [tensor.values(), tensor.col_indices(), tensor.crow_indices()] if is_csr else [tensor]
    return result


def peak(case: str) -> tuple[int, int]:
    """Bytes of the result, and the most that a conversion takes beyond what `torch.export` took."""
    model, x = build(case)
    torch_program.export(model, (x,))  # so that what PyTorch loads for it is there already
    Path("/proc/self/clear_refs").write_text("5")  # the peak starts from here
    before = high_water()
    net = conv2affine.to_linear_network(model, x)
    return sum(tensor.nbytes for tensor in tensors(net)), high_water() - before


def high_water() -> int:
    """The most bytes that this process had in memory; `getrusage` would count what its parent had, too."""
    status = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))


def relucent_seconds(model: nn.Module, x: Tensor, expected: Tensor) -> float | None:
    """Seconds of the same conversion by relucent, if it is installed; its result is checked."""
    try:
        import relucent
    except ImportError:
        return None
    result: list[Any] = []
    seconds = clock(lambda: result.append(relucent.convert(model, tuple(x.shape[1:]))))
    got = torch.as_tensor(result[0](x.numpy())).float().reshape(expected.shape)
    torch.testing.assert_close(got, expected, atol=1e-4, rtol=1e-4)
    return seconds


def _ratio(seconds: dict[str, float]) -> float:
    """A conversion to its floor."""
    return seconds["conversion"] / (seconds["builds"] + seconds["copy"])


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser("python -m benchmarks.networks", description=__doc__)
    parser.add_argument("--cases", nargs="+", default=list(CASES), choices=CASES)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    console = Console(width=None if sys.stdout.isatty() else 160, highlight=False)
    table = Table("network", title="Seconds, float32", box=SIMPLE_HEAD)
    for heading in (
        "entries",
        "export",
        "conversion",
        "its convolutions",
        "one copy",
        "ratio",
        "of each round",
        "check",
        "check / forward",
        "peak / result",
    ):
        table.add_column(heading, justify="right")
    forward = Table("network", title="Forward, milliseconds, one sample", box=SIMPLE_HEAD)
    for heading in ("model", "auto", "sparse", "dense"):
        forward.add_column(heading, justify="right")
    for case in arguments.cases:
        model, x = build(case)
        net = conv2affine.to_linear_network(model, x)
        make, [few] = builds(model, x), samples([x])
        rounds = []
        for _ in range(arguments.rounds):
            with no_collection():
                seconds = conversion(model, x)
                torch_program.export(model, (x,))
                seconds["builds"] = clock(make)
                seconds["copy"] = clock(lambda n=net: [t.clone() for t in tensors(n)])
                seconds["forward"] = clock(lambda m=model, n=net, x=few: (m(x), n(x)))
            rounds.append(seconds)
        best = {name: min(round[name] for round in rounds) for name in rounds[0]}
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            size, most = pool.submit(peak, case).result()
        ratios = [_ratio(each) for each in rounds]
        numbers = (best[name] for name in ("export", "conversion", "builds", "copy"))
        table.add_row(
            case,
            f"{net.plan.nnz:,}",
            *(f"{number:.3f}" for number in numbers),
            f"{_ratio(best):.2f}",
            f"{min(ratios):.2f} to {max(ratios):.2f}",
            f"{best['check']:.3f}",
            f"{best['check'] / best['forward']:.1f}",
            f"{most / size:.2f}",
        )
        nets = {"model": model, "auto": net, "sparse": conv2affine.to_linear_network(model, x, layout="sparse")}
        if sum(dict(row.bytes)["dense"] for row in net.plan.layers) <= DENSE_BYTES:
            nets["dense"] = conv2affine.to_linear_network(model, x, layout="dense")
        times = {name: min(clock(partial(module, x)) for _ in range(10)) for name, module in nets.items()}
        forward.add_row(
            case,
            *(f"{1000 * times[name]:.2f}" if name in times else "-" for name in ("model", "auto", "sparse", "dense")),
        )
        if case == "lenet":
            seconds = relucent_seconds(model, x, model(x))
            console.print("relucent is not installed" if seconds is None else f"lenet by relucent: {seconds:.3f} s")
    console.print(table)
    console.print(forward)


if __name__ == "__main__":
    main()
