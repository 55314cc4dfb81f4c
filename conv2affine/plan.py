"""What a conversion would cost, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from conv2affine import ops
from conv2affine.geometry import Conv, Geometry
from conv2affine.matrix import Sizes

__all__ = ["Plan", "plan"]


@dataclass(frozen=True)
class Plan:
    """Sizes of one conversion; printed, a table.

    Args:
        geometry: The conversion.
        dtype: Of the matrix, as of the weight.
        rows: Rows of the matrix, one per output element.
        cols: Columns of the matrix, one per input element.
        nnz: Entries that a weight goes to. Entries that no weight goes to are structural zeros; an
            entry counts even if its weight is 0.
        bytes: Bytes of the matrix per layout and index type.
    """

    geometry: Geometry
    dtype: torch.dtype
    rows: int
    cols: int
    nnz: int
    bytes: dict[str, int]

    @property
    def density(self) -> float:
        """Share of the entries that a weight goes to: nnz / (rows * cols)."""
        return self.nnz / (self.rows * self.cols)

    def __str__(self) -> str:
        geometry = self.geometry
        kind = "transposed convolution" if geometry.transposed else "convolution"
        lines = [
            ("layer", f"{len(geometry.kernel_size)}-D {kind}"),
            (
                "channels",
                f"{geometry.in_channels} -> {geometry.out_channels}, groups {geometry.groups}",
            ),
            ("input size", f"{geometry.input_size} -> {geometry.output_size}"),
            ("matrix", f"{self.rows:,} x {self.cols:,}, {self.dtype}"),
            ("non-zeros", f"{self.nnz:,} ({self.density:.3%})"),
            *((layout, readable_bytes(size)) for layout, size in self.bytes.items()),
        ]
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)


def plan(conv: Conv, input_size: Sizes) -> Plan:
    """Sizes of a layer's matrix, computed in closed form: nothing of its size is allocated.

        nnz = out_channels * in_channels / groups * prod over axes of #{(o, i) that a tap joins}

    Args:
        conv: A convolution layer, as in `to_matrix`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes.

    Returns:
        A `Plan`: rows, cols, nnz, density, and the bytes of each layout.

    Raises:
        TypeError: As `to_matrix`.
        ValueError: As `to_matrix`.

    Example:
        >>> conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)
        >>> print(plan(conv, 224))
        layer              2-D convolution
        channels           3 -> 64, groups 1
        input size         (224, 224) -> (112, 112)
        matrix             802,816 x 150,528, torch.float32
        non-zeros          116,214,528 (0.096%)
        strided            483.39 GB
        sparse_csr, int32  932.93 MB
        sparse_csr, int64  1.40 GB
    """
    geometry = Geometry.from_layer(conv, input_size)
    return plan_geometry(geometry, conv.weight.dtype)


def plan_geometry(geometry: Geometry, dtype: torch.dtype) -> Plan:
    """`plan` for a geometry that is there already."""
    rows, cols = geometry.shape
    channels = geometry.out_channels * (geometry.in_channels // geometry.groups)
    nnz = channels * math.prod(ops.axis_entries(geometry))
    sizes = {"strided": rows * cols * dtype.itemsize}
    for index in (torch.int32, torch.int64):
        name = str(index).removeprefix("torch.")
        sizes[f"sparse_csr, {name}"] = nnz * (dtype.itemsize + index.itemsize) + (rows + 1) * index.itemsize
    return Plan(geometry, dtype, rows, cols, nnz, sizes)


def readable_bytes(size: float) -> str:
    """A number of bytes with three digits and a decimal unit.

    Example:
        >>> readable_bytes(70560)
        '70.56 kB'
    """
    if size < 1000:
        return f"{size:.0f} B"
    units = ("kB", "MB", "GB", "TB", "PB")
    power = min(int(math.log10(size)) // 3, len(units))
    return f"{size / 1000**power:.2f} {units[power - 1]}"
