"""Chains for a box."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch

from conv2affine.network.graph import Graph, Piece
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.expressions import Product, Sum
from conv2affine.network.matrices.matrix import Sparse
from conv2affine.network.passes.chain import Layer, chain, to_graph
from conv2affine.network.passes.stable import stable
from conv2affine.network.passes.unread import without_unread
from conv2affine.network.proof.bounds import bounds
from conv2affine.network.proof.forward import Interval


def chain_for_box(graph: Graph, box: Interval, dtype: torch.dtype) -> list[Layer]:
    """The layers of a chain that computes the same as a graph in a box, with the bounds of their rows there.

    Args:
        graph: Of one input and one output, pieces and ReLUs only.
        box: Bounds of the input.
        dtype: In which the chain computes: no number that it computes is outside of the bounds.
    """
    [value] = graph.inputs
    layers = without_unread([_with_sums(layer) for layer in chain(stable(graph, bounds(graph, {value: box}, dtype)))])
    written = to_graph(layers)
    found = bounds(written, {written.inputs[0]: box}, dtype)
    intervals = iter([found[node.output] for node in written.nodes if isinstance(node, Piece)])
    result = []
    for layer in layers:
        ends: list[Interval] = []
        for unit in layer.units.values():
            low, high = next(intervals)
            pair = [(low, high), (-high, -low)] if unit.is_pair else [(low, high)]
            if layer.is_carried(unit):  # these rows read relu(v) and relu(-v), and not v
                pair = [(np.maximum(low, 0), np.maximum(high, 0)) for low, high in pair]
            ends += [Interval(*row) for row in pair]
        lows, highs = zip(*ends, strict=True)
        result.append(dataclasses.replace(layer, bounds=Interval(np.concatenate(lows), np.concatenate(highs))))
    return result


def _with_sums(layer: Layer) -> Layer:
    """The layer with its sums written out: in a box a maximum is often one of its elements, and the others cancel."""
    units = {}
    for value, unit in layer.units.items():
        terms = {
            x: Sparse(part.csr()) if isinstance(part, Sum | Product) else part for x, part in unit.map.terms.items()
        }
        units[value] = dataclasses.replace(unit, map=AffineMap(terms, unit.map.bias))
    return dataclasses.replace(layer, units=units)
