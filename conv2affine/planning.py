"""What a conversion would cost, before anything is allocated."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from torch import Tensor

from conv2affine.convolution.arguments import Conv, InputSize, is_network
from conv2affine.convolution.geometry import Geometry
from conv2affine.convolution.parameters import read
from conv2affine.convolution.sizes import layout_sizes, prefers_dense, readable_bytes
from conv2affine.interop.notebook import html_table
from conv2affine.operators import ops

if TYPE_CHECKING:
    from conv2affine.network.passes.merge import Merge
    from conv2affine.network.report import NetworkPlan
    from conv2affine.network.torch.models.intake import ExampleInputs, Model

__all__ = ["Plan", "plan"]

OPTIONS = ("form", "layout", "merge", "max_pool", "dtype")  # for a module


@dataclass(frozen=True, repr=False)
class Plan:
    """Sizes of one conversion; `print` shows them as a table, and so does a notebook.

    Args:
        geometry: The conversion.
        dtype: The matrix's, which is the weight's.
        rows: Rows of the matrix, one per output element.
        cols: Columns of the matrix, one per input element.
        nnz: Number of entries, the elements that a weight goes to, even if the weight is 0. All other elements are
            structural zeros.
        bytes: Bytes of the matrix per layout and index dtype that can count its entries.
    """

    geometry: Geometry
    dtype: torch.dtype
    rows: int
    cols: int
    nnz: int
    bytes: dict[str, int]

    @property
    def density(self) -> float:
        """Share of the elements that a weight goes to, nnz / (rows * cols)."""
        return self.nnz / (self.rows * self.cols)

    @property
    def recommended(self) -> str:
        """CSR, which most programs take, or `strided` if it is small or hardly larger.

        Products with a sparse matrix take longer per byte, and longer to start.
        """
        csr = next(layout for layout in self.bytes if layout.startswith("sparse_csr"))
        return "strided" if prefers_dense(self.bytes["strided"], self.bytes[csr]) else csr

    def __repr__(self) -> str:
        return f"Plan({self.rows:,} x {self.cols:,}, {self.nnz:,} non-zeros, {self.dtype})"

    def __str__(self) -> str:
        lines = self._lines()
        width = max(len(name) for name, _ in lines)
        return "\n".join(f"{name:<{width}}  {value}" for name, value in lines)

    def _repr_html_(self) -> str:
        return html_table((), self._lines(), left=(0, 1))

    def _lines(self) -> list[tuple[str, str]]:
        geometry = self.geometry
        kind = "transposed convolution" if geometry.transposed else "convolution"
        recommended = self.recommended
        return [
            ("layer", f"{len(geometry.kernel_size)}-D {kind}"),
            (
                "channels",
                f"{geometry.in_channels} -> {geometry.out_channels}, groups {geometry.groups}",
            ),
            ("input size", f"{geometry.input_size} -> {geometry.output_size}"),
            ("matrix", f"{self.rows:,} x {self.cols:,}, {self.dtype}"),
            ("non-zeros", f"{self.nnz:,} ({self.density:.3%})"),
            *(
                (layout, f"{readable_bytes(size):>10}" + "  recommended" * (layout == recommended))
                for layout, size in self.bytes.items()
            ),
        ]


@overload
def plan(  # type: ignore[overload-overlap]  # a convolution layer is a module too
    conv: Conv | Tensor, input_size: InputSize | Geometry
) -> Plan: ...
@overload
def plan(
    conv: Model,
    input_size: ExampleInputs,
    *,
    form: Literal["graph", "mlp"] = "graph",
    layout: Literal["auto", "dense", "sparse"] | torch.layout = "auto",
    merge: Merge = "auto",
    max_pool: Literal["max", "relu"] = "max",
    dtype: torch.dtype | None = None,
) -> NetworkPlan: ...
def plan(conv: Any, input_size: Any, **options: Any) -> Plan | NetworkPlan:
    """Sizes of a layer's matrix, computed in closed form: nothing of its size is allocated.

        nnz = out_channels * in_channels / groups * prod over axes of #{(o, i) with a tap}

    Args:
        conv: A convolution layer, or the weight of one, as in `to_matrix`; or any other module, as in
            `to_linear_network`.
        input_size: (I_1, ..., I_D), as in `x.shape[-D:]`, or one int for all axes, or an example input; with a weight,
            a `Geometry`; for a module, its example inputs.
        options: For a module: `form`, "graph" for what `to_linear_network` makes, which is the default, or "mlp" for
            what `to_mlp` makes; and `layout`, `merge`, `max_pool` and `dtype`, as in `to_linear_network`. Form "mlp"
            takes no `merge`, and has no max pooling.

    Returns:
        A `Plan`: rows, cols, nnz, density, and the bytes of each layout. For a module a `NetworkPlan`, a table of its
        layers and steps; its `refusal` says why the conversion would be refused for its size.

    Raises:
        TypeError: As `to_matrix`; or if options of modules are given for a convolution layer.
        ValueError: As `to_matrix`.
        NotImplementedError: As `to_mlp`, in form "mlp".

    Example:
        >>> conv = torch.nn.Conv2d(3, 64, 7, stride=2, padding=3)
        >>> print(plan(conv, 224))
        layer              2-D convolution
        channels           3 -> 64, groups 1
        input size         (224, 224) -> (112, 112)
        matrix             802,816 x 150,528, torch.float32
        non-zeros          116,214,528 (0.096%)
        strided             483.39 GB
        sparse_csr, int32   932.93 MB  recommended
        sparse_csr, int64     1.40 GB
        sparse_csc, int32   930.32 MB
        sparse_csc, int64     1.40 GB
        sparse_coo, int64     2.32 GB
    """
    if is_network(conv, input_size):
        if unknown := options.keys() - OPTIONS:
            raise TypeError(f"{', '.join(unknown)} must be left out: plan takes {', '.join(OPTIONS)} for a module")
        from conv2affine.network.convert import plan_network

        return plan_network(conv, input_size, **options)
    if options:
        raise TypeError(f"{', '.join(options)} must be left out for a convolution layer: only other modules have them")
    with torch.no_grad():
        weight, _, geometry = read(conv, input_size)
    rows, cols = geometry.shape
    nnz = ops.nnz(geometry, range(rows))
    sizes = layout_sizes(rows, cols, nnz, weight.dtype)
    return Plan(geometry, weight.dtype, rows, cols, nnz, {size.name: size.bytes for size in sizes})
