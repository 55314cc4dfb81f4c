"""The pass that leaves out the units of a chain that no layer reads, such as what a stride skips."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from conv2affine.network.graph import Value
from conv2affine.network.matrices.affine import AffineMap
from conv2affine.network.matrices.compose import compose
from conv2affine.network.matrices.matrix import Matrix, Selection, selection
from conv2affine.network.passes.chain import Layer, Units


def without_unread(layers: Sequence[Layer]) -> list[Layer]:
    """The layers without the units that no layer reads."""
    masks = _read(layers)
    result: list[Layer] = []
    before = layers[0].before
    columns: dict[Value, Matrix] = {
        value: Selection(None, unit.map.size) for value, unit in before.items()
    }  # of what is left
    for layer, read in zip(layers, masks, strict=True):
        units: dict[Value, Units] = {}
        is_empty = not any(mask.any() for mask in read.values())
        for value, unit in layer.units.items():
            if read[value].any() or is_empty:
                terms = unit.map.terms.items()
                map = AffineMap({x: compose(matrix, columns[x]) for x, matrix in terms if x in before}, unit.map.bias)
                units[value] = dataclasses.replace(unit, map=map.at(np.flatnonzero(read[value])))
        columns = {x: selection(np.where(mask, mask.cumsum() - 1, -1), mask.sum()) for x, mask in read.items()}
        result.append(Layer(units, before))
        before = units
    return result


def _read(layers: Sequence[Layer]) -> list[dict[Value, NDArray[np.bool_]]]:
    """Which elements of the values of each layer the next one reads; all of the last layer's."""
    masks = [{value: np.ones(unit.map.size, bool) for value, unit in layers[-1].units.items()}]
    for layer in reversed(layers[1:]):
        read = {value: np.zeros(unit.map.size, bool) for value, unit in layer.before.items()}
        for value, unit in layer.units.items():
            for source, matrix in unit.map.terms.items():
                read[source] |= matrix.reads(masks[0][value])
        if not any(mask.any() for mask in read.values()):  # a layer has rows
            read = {value: np.ones_like(mask) for value, mask in read.items()}
        masks.insert(0, read)
    return masks
