"""The result of a conversion, and why there would be none for its size."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from html import escape

from onnx import ModelProto

from conv2affine.convolution.sizes import readable_bytes
from conv2affine.interop.notebook import html_table
from conv2affine.network.prepare import memory_refusal
from conv2affine.network.proof.forward import Interval
from conv2affine.network.report import NetworkPlan


@dataclass(frozen=True, repr=False)
class Conversion:
    """The result of a conversion.

    Args:
        load: Returns the new model.
        plan: Its layers and steps.
        kept: For each node that stays as it is, why.
        difference: The largest found between both models, relative to the largest element of the output.
        is_batched: Whether it takes any number of samples.
        static: Why it does not; "" if it does.
        input_slices: Where the elements of each input are in the vector of all, by name.
        output_slices: Likewise.
        bounds: Of a chain for a box, the smallest and largest numbers of each layer there, by the name of its output:
            a pair of float64 arrays (rows,). Roundings are included, as those of `to_mlp`.
    """

    load: Callable[[], ModelProto] = field(repr=False)
    plan: NetworkPlan
    kept: Mapping[str, str]
    difference: float
    is_batched: bool
    static: str = ""
    input_slices: Mapping[str, slice] = field(default_factory=dict)
    output_slices: Mapping[str, slice] = field(default_factory=dict)
    bounds: Mapping[str, Interval] = field(default_factory=dict, repr=False)

    @cached_property
    def model(self) -> ModelProto:
        """The new model; one with its data in a separate file is loaded on first use."""
        return self.load()

    def __repr__(self) -> str:
        return f"Conversion({self.plan!r}, kept {len(self.kept)}, {self._facts()})"

    def _repr_html_(self) -> str:
        kept = html_table(("kept", "because"), self.kept.items(), left=(0, 1)) if self.kept else ""
        return f"{self.plan._repr_html_()}{kept}<p>{escape(self._facts())}</p>"

    def _facts(self) -> str:
        samples = "any number of samples" if self.is_batched else "one sample"
        return f"{samples}, difference {self.difference:.1e}"


def size_refusal(plan: NetworkPlan, max_bytes: int) -> str:
    """Why the layers of a plan are too large; "" if they are not."""
    if plan.bytes <= max_bytes:
        return memory_refusal(plan)
    sparse = sum(dict(row.bytes)["sparse"] for row in plan.layers)
    largest = max(plan.layers, key=lambda row: dict(row.bytes)[row.layout])
    return (
        f"the layers need {readable_bytes(plan.bytes)}, more than max_bytes ({readable_bytes(max_bytes)}); the largest "
        f"is that of {largest.name} ({largest.rows} x {largest.cols}); choose a smaller input, or raise max_bytes "
        f"(--max-gib). ONNX has no sparse layers: as CSR they need {readable_bytes(sparse)}, and to_linear_network has "
        "that"
    )
