"""What a conversion would cost, before anything is allocated."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from conv2affine import ops
from conv2affine.dispatch import is_network
from conv2affine.geometry import Conv, Geometry, Sizes
from conv2affine.layouts import INDEX_DTYPES, INT32_MAX

__all__ = ["Plan", "plan"]

# What two threads write at least, whatever the layout; see benchmarks/.
BYTES_PER_SECOND = 10e9


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
        bytes: Bytes of the matrix per layout and index type; only those that can count its entries.
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

    @property
    def recommended(self) -> str:
        """The layout to choose: CSR, which most programs take; but `strided` if it is small, or hardly larger.

        Products with a sparse matrix take longer for each byte, and more before the first one.
        """
        csr = next(layout for layout in self.bytes if layout.startswith("sparse_csr"))
        strided = self.bytes["strided"]
        return "strided" if strided <= 2**20 or strided <= 2 * self.bytes[csr] else csr

    def time_class(self, layout: str) -> str:
        """How long it takes to build, to a power of ten, on two threads: "< 1 ms" to "< 1000 s"."""
        seconds = self.bytes[layout] / BYTES_PER_SECOND
        for limit in ("1 ms", "10 ms", "100 ms", "1 s", "10 s", "100 s", "1000 s"):
            number, unit = limit.split()
            if seconds < float(number) * (0.001 if unit == "ms" else 1):
                return f"< {limit}"
        return "longer"

    def __str__(self) -> str:
        geometry = self.geometry
        kind = "transposed convolution" if geometry.transposed else "convolution"
        recommended = self.recommended
        lines = [
            ("layer", f"{len(geometry.kernel_size)}-D {kind}"),
            (
                "channels",
                f"{geometry.in_channels} -> {geometry.out_channels}, groups {geometry.groups}",
            ),
            ("input size", f"{geometry.input_size} -> {geometry.output_size}"),
            ("matrix", f"{self.rows:,} x {self.cols:,}, {self.dtype}"),
            ("non-zeros", f"{self.nnz:,} ({self.density:.3%})"),
            *(
                (
                    layout,
                    f"{readable_bytes(size):>10}  {self.time_class(layout):>8}"
                    + "  recommended" * (layout == recommended),
                )
                for layout, size in self.bytes.items()
            ),
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
        strided             483.39 GB   < 100 s
        sparse_csr, int32   932.93 MB  < 100 ms  recommended
        sparse_csr, int64     1.40 GB     < 1 s
        sparse_csc, int32   930.32 MB  < 100 ms
        sparse_csc, int64     1.40 GB     < 1 s
        sparse_coo, int64     2.32 GB     < 1 s
    """
    if is_network(conv, input_size):
        from conv2affine.network.convert import plan_network

        return plan_network(conv, input_size)  # type: ignore[return-value]  # a plan of many
    geometry = Geometry.from_layer(conv, input_size)
    return plan_geometry(geometry, conv.weight.dtype)


def plan_geometry(geometry: Geometry, dtype: torch.dtype) -> Plan:
    """`plan` for a geometry that is there already."""
    rows, cols = geometry.shape
    every = range(rows)
    return Plan(geometry, dtype, rows, cols, ops.entries(geometry, every), layout_bytes(geometry, dtype, every))


def layout_name(layout: torch.layout, index_dtype: torch.dtype) -> str:
    """The key of a layout in `Plan.bytes`.

    Example:
        >>> layout_name(torch.sparse_csr, torch.int32)
        'sparse_csr, int32'
    """
    name = str(layout).removeprefix("torch.")
    return name if layout is torch.strided else f"{name}, {str(index_dtype).removeprefix('torch.')}"


def layout_bytes(geometry: Geometry, dtype: torch.dtype, rows: range) -> dict[str, int]:
    """Bytes of a block of rows per layout and index type; only those that can count its entries."""
    cols, nnz, value = geometry.shape[1], ops.entries(geometry, rows), dtype.itemsize
    sizes = {"strided": len(rows) * cols * value}
    for layout, starts in ((torch.sparse_csr, len(rows)), (torch.sparse_csc, cols)):
        for index_dtype in INDEX_DTYPES:
            if index_dtype is torch.int64 or max(nnz, len(rows), cols) <= INT32_MAX:
                index = index_dtype.itemsize
                sizes[layout_name(layout, index_dtype)] = nnz * (value + index) + (starts + 1) * index
    sizes[layout_name(torch.sparse_coo, torch.int64)] = nnz * (value + 2 * torch.int64.itemsize)
    return sizes


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
