"""Operators that run as they are, of one of two networks, whose results become units, or are found among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from conv2affine.network.equality.forms import Form
from conv2affine.network.graph import Kept, Value, runs_on_vectors
from conv2affine.network.passes.elementary import Function
from conv2affine.network.passes.simplify import is_equal, rounded

if TYPE_CHECKING:
    from conv2affine.network.equality.units import Units


def add_kept(units: Units, number: int, node: Kept, inputs: Sequence[Form]) -> Mapping[Value, Form]:
    """The outputs of an operator of a side, for its inputs."""
    units.read_by_kept[number].extend(inputs)
    shapes, (forms, factor) = _shapes(node), _unscaled(units, node, inputs)
    orders = (forms, forms[::-1]) if node.kind == "mul" and len({*node.shapes}) == 1 else (forms,)
    for other, known, places in units.kept:  # of the first side, which may compute the same twice
        if (
            _shapes(other) == shapes
            and is_equal(*(rounded(each.call.meaning, units.coarsest) for each in (node, other)))
            and any(_are_equal(order, known, units.unit) for order in orders)
        ):
            units.matched[places] |= number == 1
            break
    else:
        places = np.arange(units.count, units.count + sum(value.size for value in node.outputs))
        units.count += len(places)
        if number == 0:
            units.kept.append((node, forms, places))
    units.own[number][node.outputs[0]] = places
    parts = np.split(places, np.cumsum([value.size for value in node.outputs])[:-1])
    pairs = zip(node.outputs, parts, strict=True)
    return {value: units.identity(number, value, part).times(factor + np.zeros(value.size)) for value, part in pairs}


def _unscaled(units: Units, node: Kept, inputs: Sequence[Form]) -> tuple[list[Form], Any]:
    """The factors of a product, without what can be taken out of them, and that: (s x) (t y) = s t (x y)."""
    call, forms = node.call, []
    factor: Any = 1.0
    if not isinstance(call, Function) or call.name not in ("mul", "matmul"):
        return list(inputs), factor
    for number, form in enumerate(inputs):
        keys = form.matrix @ units.random[:-1] + form.bias[:, None] * units.random[-1]
        keys = keys.reshape(1 if call.name == "matmul" else len(keys), -1)
        largest = np.take_along_axis(keys, np.abs(keys).argmax(axis=1)[:, None], 1)[:, 0]
        scale = np.where(largest == 0, 1, np.copysign(np.linalg.norm(keys, axis=1), largest))
        forms.append(form.times(1 / scale + np.zeros(len(form.bias))))
        factor = factor * scale ** call.places.count(number)
    return forms, factor


def _shapes(node: Kept) -> list[Any]:
    """The shapes of its inputs and outputs, as far as they matter."""
    shapes = [*node.shapes, *(value.shape for value in node.outputs)]
    is_flat = isinstance(node.call, Function) or runs_on_vectors(node)
    return [prod(shape) for shape in shapes] if is_flat else shapes


def _are_equal(first: Sequence[Form], second: Sequence[Form], unit: float) -> bool:
    return all(a.equals(b, unit).all() for a, b in zip(first, second, strict=True))
