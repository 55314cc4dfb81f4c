"""What comes between an imported network and its layers: passes, limits, and what cannot be a chain."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.convolution.guard import memory_left
from conv2affine.convolution.sizes import readable_bytes
from conv2affine.network.graph import Graph, Kept, Step
from conv2affine.network.passes.chain import Layer, chain
from conv2affine.network.passes.ends import join_ends, slices
from conv2affine.network.passes.merge import MERGE, Merge
from conv2affine.network.passes.merge import merge as merge_pieces
from conv2affine.network.passes.simplify import simplify
from conv2affine.network.passes.to_relu import to_relu
from conv2affine.network.report import NetworkPlan
from conv2affine.network.rules.bends import MASKS
from conv2affine.network.torch.importing.importer import TorchNetwork, import_torch
from conv2affine.network.torch.layers import LAYOUTS, Layout

__all__ = [
    "DTYPES",
    "check_floats",
    "check_memory",
    "in_mode_of",
    "memory_refusal",
    "one_of",
    "prepare",
    "prepare_chain",
    "reason_of",
    "to_layers",
    "with_slices",
    "with_vectors",
]

DTYPES = (None, torch.float64, torch.float32, torch.float16, torch.bfloat16)
Module = TypeVar("Module", bound=nn.Module)


def prepare(
    model: nn.Module, inputs: Sequence[Tensor], layout: Layout, mode: Merge, max_pool: str, dtype: torch.dtype | None
) -> tuple[TorchNetwork, torch.dtype]:
    """The network after all passes, and the dtype of its layers."""
    one_of("layout", layout, LAYOUTS)
    one_of("merge", mode, MERGE)
    one_of("max_pool", max_pool, ("max", "relu"))
    one_of("dtype", dtype, DTYPES)
    network = import_torch(model, inputs)
    graph = simplify(network.graph)
    if max_pool == "relu":
        graph = simplify(to_relu(graph, dtype or network.dtype, ("window_max",)))
    graph = merge_pieces(graph, mode)
    return dataclasses.replace(network, graph=simplify(graph)), dtype or network.dtype


def prepare_chain(
    model: nn.Module, inputs: Sequence[Tensor], layout: Layout, dtype: torch.dtype | None
) -> tuple[TorchNetwork, TorchNetwork, list[Layer], torch.dtype]:
    """The network as it is and with one vector at each end, the layers of its chain, and their dtype."""
    one_of("layout", layout, LAYOUTS)
    one_of("dtype", dtype, DTYPES)
    original = import_torch(model, inputs, floats=True)
    network = with_vectors(original, "a chain")
    dtype = dtype or network.dtype
    layers = to_layers(simplify(network.graph), dtype)
    check_floats(network, "a chain")
    return original, network, layers, dtype


def to_layers(graph: Graph, dtype: torch.dtype) -> list[Layer]:
    """The chain of a graph whose steps are piecewise linear, computed in `dtype`; see `join_ends`."""
    graph = simplify(to_relu(graph, dtype))
    kept = [node for node in graph.nodes if isinstance(node, Kept)]
    for node in sorted(kept, key=lambda node: node.kind in MASKS):  # what becomes of a comparison says more than that
        raise NotImplementedError(
            f"{', '.join(node.origin)}: {node.kind} must be affine or piecewise linear to become linear layers and "
            f"ReLUs, and is not{reason_of(node)}; to_linear_network, or form graph, keeps it as it is"
        )
    return chain(simplify(merge_pieces(graph)))


def memory_refusal(plan: NetworkPlan) -> str:
    """Why there is too little memory for the layers of a plan; "" if there is enough."""
    left = memory_left()
    if plan.peak_bytes <= left:
        return ""
    return (
        f"the layers need {readable_bytes(plan.peak_bytes)}, and there are {readable_bytes(left)} left; choose a "
        "smaller input or another layout"
    )


def check_memory(plan: NetworkPlan) -> None:
    """Raise MemoryError if the layers of a plan need more memory than is left."""
    if refusal := memory_refusal(plan):
        raise MemoryError(f"{refusal}\n{plan}")


def reason_of(step: Step | Kept) -> str:
    """Why a step is kept, if that is known."""
    reason = getattr(step.call, "reason", "")
    return reason and f": {reason}"


def in_mode_of(model: nn.Module, result: Module) -> Module:
    """The result in the mode of the model."""
    requires_grad = any(parameter.requires_grad for parameter in model.parameters())
    return result.train(model.training).requires_grad_(requires_grad)


def with_vectors(network: TorchNetwork, result: str) -> TorchNetwork:
    """The network of one vector each as input and output; refuses what cannot be a part of them."""
    for constant in network.constants:
        raise ValueError(
            f"{result} has outputs of one dtype, {network.dtype}, and the model has a constant one of "
            f"{constant.dtype}; to_linear_network keeps it"
        )
    inputs = network.graph.inputs
    if len(inputs) == 1 and len(inputs[0].shape) == 1:
        raise ValueError(f"{result} takes vectors, and the model takes numbers; let it take x of shape (batch, 1)")
    graph = join_ends(network.graph)
    leaf = graph.outputs[0]
    return dataclasses.replace(network, graph=graph, leaves=[leaf], structure=pytree.tree_structure(leaf))


def with_slices(result: Module, graph: Graph) -> Module:
    """The result, which knows where the inputs and outputs of the model are in its vectors."""
    result.input_slices = slices(graph.inputs)  # type: ignore[assignment]
    result.output_slices = slices(graph.outputs)  # type: ignore[assignment]
    return result


def check_floats(network: TorchNetwork, result: str) -> None:
    """Refuse inputs of whole numbers that are not cast."""
    for dtype in network.input_dtypes:
        if not dtype.is_floating_point:
            raise ValueError(
                f"{result} takes floating-point numbers, and the model takes {dtype}, of which it computes more than a "
                "cast; let it begin with x.float()"
            )


def one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuse any other value of an argument."""
    if value not in allowed:
        raise ValueError(f"{name} ({value!r}) must be one of {allowed}")
