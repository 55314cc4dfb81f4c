"""Chains for a box."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from conv2affine.network.graph import Graph, Piece
from conv2affine.network.passes.chain import Layer, to_graph
from conv2affine.network.passes.stable import stable
from conv2affine.network.proof.bounds import bounds
from conv2affine.network.proof.forward import Interval

__all__ = ["for_box", "with_bounds"]


def for_box(graph: Graph, box: Interval, dtype: torch.dtype) -> Graph:
    """A graph of one input that computes the same in a box, without the ReLUs that do nothing there."""
    [value] = graph.inputs
    return stable(graph, bounds(graph, {value: box}, dtype))


def with_bounds(layers: Sequence[Layer], box: Interval, dtype: torch.dtype) -> list[Layer]:
    """Layers with bounds of what their rows compute in a dtype, for inputs in a box."""
    graph = to_graph(layers)
    found = bounds(graph, {graph.inputs[0]: box}, dtype)
    intervals = iter([found[node.output] for node in graph.nodes if isinstance(node, Piece)])
    result = []
    for layer in layers:
        ends: list[Interval] = []
        for unit in layer.units.values():
            low, high = next(intervals)
            ends += [Interval(low, high), Interval(-high, -low)] if unit.is_pair else [Interval(low, high)]
        lows, highs = zip(*ends, strict=True)
        result.append(dataclasses.replace(layer, bounds=Interval(np.concatenate(lows), np.concatenate(highs))))
    return result
