"""The table of a network's layers and steps, with the bytes that they take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

import torch
from torch import fx
from torch.fx.graph_module import _USER_PRESERVED_ATTRIBUTES_KEY

from conv2affine.convolution.sizes import readable_bytes
from conv2affine.interop.notebook import html_table
from conv2affine.network.graph import Graph, Kept, Piece
from conv2affine.network.passes.chain import Layer
from conv2affine.network.torch.layers import NetworkLayout, choose_layout, layout_bytes

HEADING = ("from", "is", "matrix", "entries", "dense", "sparse", "layout")
LEFT = (0, 1, 6)  # columns that are aligned to the left


@dataclass(frozen=True)
class Row:
    """One layer, or one nonlinear step.

    Args:
        name: The modules whose work it does.
        kind: "copied" where each entry is a parameter of the model, "computed" where entries were computed in float64;
            for a step its kind, "kept: ..." for an operator that stays as it is.
        rows: Outputs.
        cols: Inputs.
        nnz: Number of entries; an upper bound where a product is not written out yet. 0 for a step.
        bytes: Bytes of each layout, "dense" and "sparse", "gather" where that is possible, and "sharded" where several
            ranks share it, of each of them; empty for a step.
        layout: The layout chosen; "" for a step.
        ranks: Number of ranks that share it.
        reason: Why an operator stays as it is; "" for all else.
    """

    name: str
    kind: str
    rows: int
    cols: int
    nnz: int = 0
    bytes: tuple[tuple[str, int], ...] = ()
    layout: str = ""
    ranks: int = 1
    reason: str = ""


@dataclass(frozen=True, repr=False)
class NetworkPlan:
    """The layers and steps of a network; printed or in a notebook, a table.

    Args:
        rows: In the order of computation.
        dtype: Of the layers.
        box: The inputs that it is for; "" for all. Default: "".
        refusal: Why the conversion would be refused for its size; "" if it would not.
    """

    rows: tuple[Row, ...]
    dtype: torch.dtype
    box: str = ""
    refusal: str = ""

    @property
    def layers(self) -> tuple[Row, ...]:
        """The linear layers."""
        return tuple(row for row in self.rows if row.layout)

    @property
    def kept(self) -> tuple[Row, ...]:
        """The steps that stay as they are because no rule covers them."""
        return tuple(row for row in self.rows if row.kind.startswith("kept"))

    @property
    def nnz(self) -> int:
        """Entries of all layers."""
        return sum(row.nnz for row in self.layers)

    @property
    def bytes(self) -> int:
        """Bytes of all layers in the layouts chosen; of several ranks, those of each."""
        return sum(dict(row.bytes)[row.layout] for row in self.layers)

    @property
    def peak_bytes(self) -> int:
        """Bytes while it is made: all layers, and the largest of them in float64."""
        return self.bytes + max((12 * row.nnz // row.ranks for row in self.layers if row.kind == "computed"), default=0)

    def _lines(self) -> list[tuple[str, ...]]:
        """The heading, a line for each row, and the totals."""
        totals = (readable_bytes(sum(dict(row.bytes)[layout] for row in self.layers)) for layout in ("dense", "sparse"))
        last = ("total", "", "", f"{self.nnz:,}", *totals, readable_bytes(self.bytes))
        return [HEADING, *(_cells(row) for row in self.rows), last]

    def __repr__(self) -> str:
        steps = len(self.rows) - len(self.layers)
        shown = f"{len(self.layers)} layers, {steps} steps, {self.nnz:,} entries, {self.dtype}"
        return f"NetworkPlan({shown}, for {self.box})" if self.box else f"NetworkPlan({shown})"

    def _repr_html_(self) -> str:
        heading, *lines = self._lines()
        return html_table(heading, lines, LEFT) + "".join(f"<p>{escape(note)}</p>" for note in self._notes())

    def __str__(self) -> str:
        lines = self._lines()
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        table = "\n".join(
            "  ".join(
                cell.ljust(w) if n in LEFT else cell.rjust(w)
                for n, (cell, w) in enumerate(zip(line, widths, strict=True))
            ).rstrip()
            for line in lines
        )
        return "\n".join([table, *self._notes()])

    def _notes(self) -> list[str]:
        notes = self.box and f"for {self.box}", self.refusal and f"refused: {self.refusal}"
        return [*filter(None, notes)]


def with_plan(net: fx.GraphModule, plan: NetworkPlan) -> fx.GraphModule:
    """The module with its plan as an attribute, which copies have too."""
    net.plan = plan  # type: ignore[assignment]
    net.meta[_USER_PRESERVED_ATTRIBUTES_KEY] = {"plan": plan}
    return net


def describe(
    graph: Graph, dtype: torch.dtype, layout: NetworkLayout, *, gather: bool = False, ranks: int = 1
) -> NetworkPlan:
    """The plan of a graph, before any of its matrices is written out; with `gather`, selections need no matrix."""
    rows = []
    for node in graph.nodes:
        if isinstance(node, Piece):
            selected = node.without_layer(gathers=gather)
            for source, matrix in node.map.terms.items():
                if source in selected and selected[source].is_identity:
                    continue  # only added
                name = _names(node.origins[source] or node.origin)
                kind = "copied" if matrix.copied else "computed"
                sizes, chosen = layout_bytes(matrix, dtype), choose_layout(matrix, dtype, layout, ranks)
                sharing = ranks if chosen == "sharded" else 1
                if sharing > 1:
                    sizes["sharded"] = -(-sizes["sparse"] // ranks)
                if source in selected:
                    sizes["gather"], chosen = matrix.shape[0] * (8 + dtype.itemsize), "gather"
                rows.append(Row(name, kind, *matrix.shape, matrix.nnz, tuple(sizes.items()), chosen, sharing))
        else:
            kind, reason = node.kind, ""
            if isinstance(node, Kept):
                kind, reason = f"kept: {kind}", node.call.reason or "no rule covers the operator"
            rows.append(Row(_names(node.origin), kind, node.outputs[0].size, node.inputs[0].size, reason=reason))
    return NetworkPlan(tuple(rows), dtype)


def describe_layers(layers: Sequence[Layer], dtype: torch.dtype, layout: NetworkLayout) -> NetworkPlan:
    """The plan of a chain, before its matrices are written out; its ReLUs are left out."""
    rows = []
    for layer in layers:
        sizes, chosen = tuple(layout_bytes(layer, dtype).items()), choose_layout(layer, dtype, layout)
        rows.append(Row(_names(layer.origin) or "carried", "computed", *layer.shape, layer.nnz, sizes, chosen))
    return NetworkPlan(tuple(rows), dtype)


def _names(origin: Sequence[str]) -> str:
    """Names of modules, shortened where there are many."""
    return ", ".join(origin) if len(origin) <= 3 else f"{origin[0]}, {origin[1]}, ... {origin[-1]}"


def _cells(row: Row) -> tuple[str, ...]:
    if not row.layout:
        return (row.name, row.kind, f"{row.rows:,}", "", "", "", row.reason)
    sizes = [readable_bytes(size) for name, size in row.bytes if name in HEADING]
    return (row.name, row.kind, f"{row.rows:,} x {row.cols:,}", f"{row.nnz:,}", *sizes, row.layout)
