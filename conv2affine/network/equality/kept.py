"""Operators that run as they are, of one of two networks, whose results become units, or are found among them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
from torch.utils import _pytree as pytree

from conv2affine.network.equality.forms import Form, Numbers
from conv2affine.network.graph import Kept, Slot, Value, runs_on_vectors
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.elementary import Function
from conv2affine.network.passes.simplify import is_equal, rounded

if TYPE_CHECKING:
    from conv2affine.network.equality.units import Units


@dataclass(frozen=True, eq=False)
class Known:
    """An operator of the first side.

    Args:
        what: All that determines its results, except for its arguments.
        arguments: Their forms.
        keys: The elements of each argument for random units.
        places: Its units.
    """

    what: Any
    arguments: list[Form]
    keys: list[Array]
    places: Numbers


def add_kept(units: Units, number: int, node: Kept, inputs: Sequence[Form]) -> Mapping[Value, Form]:
    """The outputs of an operator of a side, for its inputs."""
    units.read_by_kept[number].extend(inputs)
    unscaled, factor = _unscaled(units, node, inputs)
    meaning, order = _by_argument(rounded(node.call.meaning, units.coarsest))
    arguments = [unscaled[place] for place in order]
    new = np.arange(units.count, units.count + sum(value.size for value in node.outputs))
    known = Known((meaning, _shapes(node, order)), arguments, [form.keys(units.random) for form in arguments], new)
    # The first side may compute the same twice.
    places = _partner(units, known, node.kind == "mul" and len({*node.shapes}) == 1, None if number else 1)
    if places is None:
        places = new
        units.count += len(new)
        if number == 0:
            units.kept.append(known)
    else:
        units.matched[places] |= number == 1
    units.own[number][node.outputs[0]] = places
    parts = np.split(places, np.cumsum([value.size for value in node.outputs])[:-1])
    pairs = zip(node.outputs, parts, strict=True)
    return {value: units.identity(number, value, part).times(factor + np.zeros(value.size)) for value, part in pairs}


def _partner(units: Units, own: Known, is_commutative: bool, max_tries: int | None) -> Numbers | None:
    """The units of the same operator of the first side; at most `max_tries` are compared, the most likely first."""
    same = [other for other in units.kept if is_equal(own.what, other.what)]
    tries = [(other, step) for other in same for step in ((1, -1) if is_commutative else (1,))]

    def distance(pair: tuple[Known, int]) -> float:
        other, step = pair
        return sum(float(np.linalg.norm(a - b)) for a, b in zip(own.keys[::step], other.keys, strict=True))

    for other, step in sorted(tries, key=distance)[:max_tries]:
        pairs = zip(own.arguments[::step], other.arguments, strict=True)
        if all(a.equals(b, units.unit).all() for a, b in pairs):
            return other.places
    return None


def _by_argument(meaning: Any) -> tuple[Any, list[int]]:
    """What an operator does, with its arguments numbered in order, and which input each of them is.

    So `f(h, h)` is equal to `f(h, g)` where g is computed as h is.
    """
    order: list[int] = []

    def numbered(leaf: Any) -> Any:
        if not isinstance(leaf, Slot):
            return leaf
        order.append(leaf.number)
        return Slot(len(order) - 1)

    return pytree.tree_map(numbered, meaning), order


def _unscaled(units: Units, node: Kept, inputs: Sequence[Form]) -> tuple[list[Form], Any]:
    """The factors of a product, without what can be taken out of them, and that: (s x) (t y) = s t (x y)."""
    call, forms = node.call, []
    factor: Any = 1.0
    if not isinstance(call, Function) or call.name not in ("mul", "matmul"):
        return list(inputs), factor
    for number, form in enumerate(inputs):
        keys = form.keys(units.random).reshape(1 if call.name == "matmul" else len(form.bias), -1)
        largest = np.take_along_axis(keys, np.abs(keys).argmax(axis=1)[:, None], 1)[:, 0]
        scale = np.where(largest == 0, 1, np.copysign(np.linalg.norm(keys, axis=1), largest))
        forms.append(form.times(1 / scale + np.zeros(len(form.bias))))
        factor = factor * scale ** call.places.count(number)
    return forms, factor


def _shapes(node: Kept, order: Sequence[int]) -> list[Any]:
    """The shapes of its arguments and outputs, as far as they matter."""
    shapes = [*(node.shapes[place] for place in order), *(value.shape for value in node.outputs)]
    is_flat = isinstance(node.call, Function) or runs_on_vectors(node)
    return [prod(shape) for shape in shapes] if is_flat else shapes
