"""The way from an imported network to its layers: passes, limits, and the refusal of what cannot be a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn

from conv2affine.convolution.guard import shortage
from conv2affine.network.graph import Graph, Kept, Step
from conv2affine.network.passes.chain import Layer, chain
from conv2affine.network.passes.merge import MERGE, Merge
from conv2affine.network.passes.merge import merge as merge_pieces
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.passes.to_relu import to_relu
from conv2affine.network.passes.unread import without_unread
from conv2affine.network.proof.chains import chain_for_box
from conv2affine.network.proof.forward import Interval
from conv2affine.network.report import NetworkPlan
from conv2affine.network.rules.bends import MASKS
from conv2affine.network.torch.importing.importer import TorchNetwork, import_torch
from conv2affine.network.torch.layers import LAYOUTS, NetworkLayout

DTYPES = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)
Module = TypeVar("Module", bound=nn.Module)


def prepare(
    model: nn.Module,
    inputs: Sequence[Tensor],
    layout: NetworkLayout,
    mode: Merge,
    max_pool: str,
    dtype: torch.dtype | None,
) -> tuple[TorchNetwork, torch.dtype]:
    """The network after all passes, and the dtype of its layers."""
    one_of("layout", layout, LAYOUTS)
    check_choices("graph", mode, max_pool)
    one_of("dtype", dtype, DTYPES)
    network = import_torch(model, inputs)
    dtype = dtype or network.dtype
    return dataclasses.replace(network, graph=to_pieces(network.graph, mode, max_pool, dtype)), dtype


def to_pieces(graph: Graph, mode: Merge, max_pool: str, dtype: torch.dtype) -> Graph:
    """The graph of the affine pieces of a network, and of the steps between them."""
    graph = simplify(graph)
    if max_pool == "relu":
        graph = simplify(to_relu(graph, dtype, ("window_max",)))
    return simplify(merge_pieces(graph, mode))


def to_layers(graph: Graph, dtype: torch.dtype, box: Interval | None) -> list[Layer]:
    """The chain of a graph whose steps are piecewise linear, computed in `dtype`; see `join_ends`."""
    graph = simplify(to_relu(graph, dtype))
    check_kept(graph, "to become linear layers and ReLUs", "to_linear_network, or form graph, keeps it as it is")
    graph = simplify(merge_pieces(graph))
    return without_unread(chain(graph)) if box is None else chain_for_box(graph, box, dtype)


def check_kept(graph: Graph, purpose: str, advice: str) -> None:
    """Refuse a graph with a step that is neither affine nor piecewise linear."""
    kept = [node for node in graph.nodes if isinstance(node, Kept)]
    # What becomes of a comparison, or of complex numbers, says more than that they are made.
    for node in sorted(kept, key=lambda node: node.kind in MASKS or node.kind == "complex"):
        raise NotImplementedError(
            f"{', '.join(node.origin)}: {node.kind} must be affine or piecewise linear {purpose}, and is not"
            f"{reason_of(node)}; {advice}"
        )


def memory_refusal(plan: NetworkPlan) -> str:
    """Why there is too little memory for the layers of a plan; "" if there is enough."""
    return shortage("the layers", plan.peak_bytes, "choose a smaller input or another layout")


def check_memory(plan: NetworkPlan) -> None:
    """Raise MemoryError if the layers of a plan need more memory than is left."""
    if refusal := memory_refusal(plan):
        raise MemoryError(f"{refusal}\n{plan}")


def reason_of(step: Step | Kept) -> str:
    """Why a step is kept, if that is known."""
    reason = getattr(step.call, "reason", "")
    return reason and f": {reason}"


def in_mode_of(model: nn.Module, result: Module) -> Module:
    """The result in the training mode of the model; it requires gradients if the model does."""
    requires_grad = any(parameter.requires_grad for parameter in model.parameters())
    return result.train(model.training).requires_grad_(requires_grad)


def check_choices(form: str, mode: Merge, max_pool: str) -> None:
    """Refuse what is no choice, or none in this form: a chain has one way to be merged."""
    one_of("form", form, ("graph", "mlp"))
    one_of("merge", mode, MERGE)
    one_of("max_pool", max_pool, ("max", "relu"))
    if form == "mlp" and mode != "auto":
        raise ValueError(
            f"merge ({mode!r}) must be left out in form 'mlp': a chain is merged where that saves entries; form "
            "'graph' takes it"
        )


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse any other value of an argument."""
    if value not in allowed:
        raise ValueError(f"{name} ({value!r}) must be one of {allowed}")
