"""Operators that run as they are, of one of two networks, whose results become units, or are found among them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch.utils import _pytree as pytree

from conv2affine.network.equality.forms import Form, Numbers
from conv2affine.network.equality.table import Table
from conv2affine.network.graph import Kept, Slot, runs_on_vectors
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.passes.elementary import Function
from conv2affine.network.passes.simplify import is_equal, rounded


@dataclass(frozen=True, eq=False)
class Known:
    """An operator of the first side.

    Args:
        what: All that determines its results, except for its arguments.
        arguments: Their forms.
        keys: The elements of each argument for random units.
        units: Its results.
    """

    what: Any
    arguments: list[Form]
    keys: list[Array]
    units: Numbers


class Operators:
    """The operators of two networks: those of the second are found among those of the first.

    Args:
        table: Of the units.
        dtype: The coarsest of the dtypes in which the networks compute.
    """

    def __init__(self, table: Table, dtype: torch.dtype) -> None:
        self.table, self.dtype = table, dtype
        self.first: list[Known] = []

    def add(self, number: int, node: Kept, inputs: Sequence[Form]) -> tuple[Numbers, Any]:
        """The units of an operator of a side, for its inputs, and by what they are multiplied."""
        unscaled, factor = self.unscaled(node, inputs)
        meaning, order = _by_argument(rounded(node.call.meaning, self.dtype))
        what, arguments = (meaning, _shapes(node, order)), [unscaled[place] for place in order]
        keys = [form.keys(self.table.random) for form in arguments]
        is_commutative = node.kind == "mul" and len({*node.shapes}) == 1
        # The first side may compute the same twice; there, only the most likely is compared.
        units = self.partner(what, arguments, keys, is_commutative, None if number else 1)
        if units is not None:
            self.table.matched[units] |= number == 1
            return units, factor
        units = self.table.new(sum(value.size for value in node.outputs))
        if number == 0:
            self.first.append(Known(what, arguments, keys, units))
        return units, factor

    def partner(
        self, what: Any, arguments: list[Form], keys: list[Array], is_commutative: bool, max_tries: int | None
    ) -> Numbers | None:
        """The units of the same operator of the first side; at most `max_tries` are compared, the most likely first."""
        same = [other for other in self.first if is_equal(what, other.what)]
        tries = [(other, step) for other in same for step in ((1, -1) if is_commutative else (1,))]

        def distance(pair: tuple[Known, int]) -> float:
            other, step = pair
            return sum(float(np.linalg.norm(a - b)) for a, b in zip(keys[::step], other.keys, strict=True))

        for other, step in sorted(tries, key=distance)[:max_tries]:
            pairs = zip(arguments[::step], other.arguments, strict=True)
            if all(a.equals(b, self.table.unit).all() for a, b in pairs):
                return other.units
        return None

    def unscaled(self, node: Kept, inputs: Sequence[Form]) -> tuple[list[Form], Any]:
        """The factors of a product, without what can be taken out of them, and that: (s x) (t y) = s t (x y)."""
        call, forms = node.call, []
        factor: Any = 1.0
        if not isinstance(call, Function) or call.name not in ("mul", "matmul"):
            return list(inputs), factor
        for number, form in enumerate(inputs):
            keys = form.keys(self.table.random).reshape(1 if call.name == "matmul" else len(form.bias), -1)
            largest = np.take_along_axis(keys, np.abs(keys).argmax(axis=1)[:, None], 1)[:, 0]
            scale = np.where(largest == 0, 1, np.copysign(np.linalg.norm(keys, axis=1), largest))
            forms.append(form.times(1 / scale + np.zeros(len(form.bias))))
            factor = factor * scale ** call.places.count(number)
        return forms, factor


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


def _shapes(node: Kept, order: Sequence[int]) -> list[Any]:
    """The shapes of its arguments and outputs, as far as they matter."""
    shapes = [*(node.shapes[place] for place in order), *(value.shape for value in node.outputs)]
    is_flat = isinstance(node.call, Function) or runs_on_vectors(node)
    return [prod(shape) for shape in shapes] if is_flat else shapes
