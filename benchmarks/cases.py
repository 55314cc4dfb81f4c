"""What is measured: the layers of the tables, and those of the plot. All of it data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

import conv2affine

PLAN_NAME = {torch.strided: "strided", torch.sparse_csr: "sparse_csr, int32"}  # what `Plan.bytes` calls a layout


@dataclass(frozen=True)
class Case:
    """A float32 layer and an input size."""

    id: str
    layer: type[nn.Module]
    args: tuple[int, ...]
    options: dict[str, Any]
    input_size: tuple[int, ...]

    def conv(self, dtype: torch.dtype = torch.float32) -> Any:
        """The layer, its weights the same each time; frozen, so that nobody pays for autograd."""
        torch.manual_seed(0)
        return self.layer(*self.args, **self.options).requires_grad_(False).to(dtype)

    @property
    def plan(self) -> conv2affine.Plan:
        """Sizes of the matrix."""
        return conv2affine.plan(self.conv(), self.input_size)

    def bytes(self, layout: torch.layout) -> int:
        """Bytes of the matrix; indices have 32 bits."""
        return self.plan.bytes[PLAN_NAME[layout]]

    @property
    def needs(self) -> set[str]:
        """Options that a plain convolution lacks, as in `Contender.lacks`."""
        conv = self.conv()
        needs = {
            "transposed": conv.transposed,
            "groups": conv.groups > 1,
            "dilation": max(conv.dilation) > 1,
            "padding_mode": conv.padding_mode != "zeros",
        }
        return {name for name, needed in needs.items() if needed}

    def __str__(self) -> str:
        options = [f"{name}={value}" for name, value in self.options.items()]
        size = "x".join(map(str, self.input_size))
        return f"{self.layer.__name__}({', '.join([*map(str, self.args), *options])}) @ {size}"


def case(id: str, layer: type[nn.Module], input_size: int | tuple[int, ...], *args: int, **options: Any) -> Case:
    """A case; one int is the size of all axes."""
    dims = 1 if layer is nn.Conv1d else 2
    return Case(id, layer, args, options, (input_size,) * dims if isinstance(input_size, int) else input_size)


C, T = nn.Conv2d, nn.ConvTranspose2d

# F, G and H have dense matrices of 40 GB and more; the memory limit leaves them to the sparse layouts.
CASES = [
    case("A", C, (6, 7), 2, 5, 3, padding=1),
    case("B", C, 32, 3, 16, 3, padding=1),
    case("C", C, 32, 16, 32, 3, stride=2, padding=1),
    case("D", C, 14, 64, 64, 3, padding=1),
    case("E", C, 64, 3, 64, 7, stride=2, padding=3),
    case("F", C, 224, 3, 64, 7, stride=2, padding=3),
    case("G", C, 56, 32, 32, 3, padding=1, groups=32),
    case("H", C, 56, 64, 64, 3, padding=1),
    case("T", T, 32, 32, 16, 4, stride=2, padding=1),
]
# Kernels about as long as the input, and more padding than anything else; and many channels of such a kernel.
LONG = [
    *(case(f"n={n}", nn.Conv1d, n, 1, 1, n, padding=n // 2) for n in (6000, 12000, 16001)),
    case("padding", nn.Conv1d, 10, 1, 1, 3, padding=10**8),
    case("K", C, 40, 4, 4, 31, padding=15, groups=4),
]
BY_ID = {c.id: c for c in [*CASES, *LONG]}

# One layer, the input growing: 65 kB to 3.3 GB, a step is about a factor of 4.
SCALING = [case(f"n={n}", C, n, 8, 8, 3, padding=1) for n in (4, 6, 8, 12, 16, 24, 32, 48, 60)]
