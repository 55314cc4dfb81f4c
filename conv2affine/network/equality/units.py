"""The units of two networks, each once: those of the second are those of the first where both compute the same.

Names, order, and the pieces between them do not matter: partners are found by the products of their entries with random
numbers, or else by their values for a few random inputs, and are then compared entry by entry. What needs no unit of
its own, and is the same however a network computes it:

    relu(v) = v                 where v has no entry < 0, and reads only units that are >= 0; or v >= 0 in a box
    relu(v) = 0                 where that holds of -v
    relu(relu(v) - c) = relu(v - c), c > 0, relu(max(v, low) - high) = relu(v - high), and so on
    relu(s v) = s relu(v), s > 0
    relu(v) = relu(-v) + v      where relu(-v) is a unit, as of a value that a chain carries, |x|, max(a, b), max(b, a)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from conv2affine.network.equality.forms import Form, Mask, Numbers, Rows, selected
from conv2affine.network.equality.kept import Known, add_kept
from conv2affine.network.equality.relu import Match, Relu, leading
from conv2affine.network.equality.side import Side
from conv2affine.network.graph import Kept, Node, Piece, Value
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval, sums
from conv2affine.network.proof.rounding import DOUBLE, gamma, rounding

# How far the values of partners may be apart, relative to their size.
NEAR = 0.05
KEYS = 8
Ranges = Sequence[Mapping[Value, Interval]] | None


class Units:
    """The units of two networks.

    Args:
        sides: Both.
        points: Random inputs.
        ranges: Bounds of the values of each side in a box; None without one.
        settled: The sides, 0 or 1, whose elements need no unit where they hardly bend in the box.
        scaled: Whether relu(s v) and relu(v) are one unit, s > 0.

    Attributes:
        width: Of all forms.
        rows: What each side computes in each unit.
        blocks: The units of each ReLU of the first side.
        sums: Of a unit u, the row of an element p + s u that reads it, such as max(a, b) = a + relu(b - a); or nothing.
        outputs: Of each side.
        apart: The first value of each side that the other does not have, up to rounding; None if there is none.
    """

    def __init__(
        self, sides: Sequence[Side], points: Array, ranges: Ranges, settled: Sequence[int] = (), *, scaled: bool = False
    ) -> None:
        self.sides, self.ranges, self.settled, self.scaled = sides, ranges, settled, scaled
        # Partners may both be NaN, such as logarithms of numbers < 0.
        values = [side.values(points) for side in sides]
        self.values = [{value: np.where(np.isfinite(x), x, 0) for value, x in each.items()} for each in values]
        self.unit = max(side.unit for side in sides)
        self.coarsest = max((side.dtype for side in sides), key=lambda dtype: torch.finfo(dtype).eps)
        nodes = [node for side in sides for node in side.graph.nodes if not isinstance(node, Piece)]
        self.count = sides[0].graph.inputs[0].size
        self.width = self.count + sum(value.size for node in nodes for value in node.outputs)
        self.rows = Rows(self.width), Rows(self.width)
        self.bends = np.zeros(self.width, bool)  # the units that are ReLUs
        self.probes = np.zeros((self.width, len(points)))  # what they are before that
        self.keys = np.zeros((2, self.width, KEYS))  # and what each side would make of random units
        self.norms = np.ones((2, self.width))  # by which that is divided
        self.random = np.random.default_rng(0).standard_normal((self.width + 1, KEYS))
        self.blocks: list[slice] = []
        self.places: dict[Value, Match] = {}  # of each ReLU of the first side
        self.sums = csr_array((self.width, self.width))
        self.kept: list[Known] = []  # of the first side
        self.read_by_kept: tuple[list[Form], ...] = [], []
        self.own: tuple[dict[Value, Numbers], ...] = {}, {}  # units of each value that a step reads, or that is kept
        self.matched = np.zeros(self.width, bool)
        first = self.read(0)
        self.known = np.flatnonzero(self.bends)
        _check_finite(self.keys[0], self.probes)
        self.trees = [cKDTree(each[self.known]) for each in (self.keys[0], self.probes)]
        second = self.read(1)
        self.outputs = first, second
        self.apart = self.first_apart(0), self.first_apart(1)

    def first_apart(self, number: int) -> Value | None:
        """The first value of a side that the other does not have; None if there is none."""
        needed = self.needed(number) & ~self.matched
        for value, units in self.own[number].items():
            if needed[units].any():
                return value
        first, second = self.outputs
        return None if first.equals(second, self.unit).all() else self.sides[number].graph.outputs[0]

    def read(self, number: int) -> Form:
        """Add the units of a side; returns the form of its output."""
        graph, places = self.sides[number].graph, iter(list(self.places.values()))
        [x], [y] = graph.inputs, graph.outputs
        forms = {x: self.identity(number, x, np.arange(x.size))}
        for node in graph.nodes:
            if isinstance(node, Piece):
                forms[node.output] = self.compose(number, node, forms)
                if number == 0:
                    self.add_sums(node, forms[node.output])
            elif isinstance(node, Kept):
                forms.update(add_kept(self, number, node, [forms[value] for value in node.inputs]))
            else:
                form = forms[node.inputs[0]]
                forms[node.outputs[0]] = self.add_relu(number, node, form, next(places, None))
        return forms[y]

    def needed(self, number: int) -> Mask:
        """The units that the output of a side needs."""
        rows = self.rows[number].all().matrix
        needed = np.zeros(self.width, bool)
        for form in (self.outputs[number], *self.read_by_kept[number]):
            needed[form.matrix.indices[form.matrix.data != 0]] = True
        count = 0
        while count < needed.sum():
            count = needed.sum()
            part = rows[np.flatnonzero(needed)]
            needed[part.indices[part.data != 0]] = True
        return needed

    def interval(self, number: int, value: Value) -> Interval:
        """Bounds of the elements of a value for the inputs in question."""
        if self.ranges is not None:
            return self.ranges[number][value]
        seen = self.values[number][value]
        return Interval(seen.min(axis=0), seen.max(axis=0))

    def identity(self, number: int, value: Value, units: Numbers) -> Form:
        """A value whose elements are units."""
        rows, largest = self.rows[number], self.interval(number, value).largest
        rows.is_known[units], rows.largest[units] = True, largest
        return Form(selected(units, self.width), np.zeros(value.size), largest, np.zeros(value.size))

    def compose(self, number: int, node: Piece, forms: Mapping[Value, Form]) -> Form:
        """The form of an affine piece."""
        side, n = self.sides[number], node.output.size
        bias, size, error = node.map.bias.copy(), np.abs(node.map.bias), np.zeros(n)
        matrix, counts, largest = csr_array((n, self.width)), np.zeros(n), 0.0
        rise, fall = np.maximum(bias, 0), np.maximum(-bias, 0)
        for source, part in side.matrices[node].items():
            form, positive, negative = forms[source], part.maximum(0), -part.minimum(0)
            matrix = csr_array(matrix + part @ form.matrix)
            bias += part @ form.bias
            size += abs(part) @ form.size
            error += abs(part) @ form.error
            interval = self.interval(number, source)
            risen, fallen = sums(positive, negative, interval)
            rise, fall, counts = rise + risen, fall + fallen, counts + np.diff(part.indptr)
            largest = max(largest, float(interval.largest.max(initial=0)))
        if self.ranges is not None:
            if not side.is_exact(node):
                error += rounding(counts, rise, fall, largest, side.dtype)
            error = (error + gamma(counts + 8, DOUBLE) * size) * (1 + 2.0**-20)
        return Form(matrix, bias, size, error)

    def add_sums(self, node: Piece, form: Form) -> None:
        """Keep the rows of the elements that read one unit of a ReLU, and that no other reads."""
        for source, part in self.sides[0].matrices[node].items():
            if source in self.places:
                unit, sign = self.places[source]
                rows = np.flatnonzero(np.diff(part.indptr) == 1)
                columns = part.indices[part.indptr[rows]]
                known = np.diff(self.sums.indptr) > 0
                is_new = (unit[columns] >= 0) & (sign[columns] == 1) & ~known[unit[columns]]
                units, at = np.unique(unit[columns[is_new]], return_index=True)
                places = np.full(self.width, -1)
                places[units] = rows[is_new][at]
                self.sums = csr_array(self.sums + selected(places, form.size.size) @ form.matrix)

    def add_relu(self, number: int, node: Node, form: Form, place: Match | None) -> Form:
        """The outputs of a ReLU; `place` has the units of the first side's ReLU at the same place."""
        [x] = node.inputs
        probes = np.ascontiguousarray(self.values[number][x].T)
        relu = Relu(self, number, form, probes, self.interval(number, x), self.sides[number].not_negative[x])
        start = self.count
        if number == 0:
            relu.assign(relu.twins())
        else:
            none = np.full(x.size, -1), np.ones(x.size)
            relu.assign(place if place is not None and len(place[0]) == x.size else none)
            relu.assign(self.nearest(relu.keys, 0) if len(relu.open) else none)
        self.matched[relu.unit[relu.unit >= 0]] |= number == 1
        if number in self.settled:
            relu.settle()
        if number:
            relu.assign(relu.twins(), own=True)
        leaders = leading(relu.keys, relu.open)
        if number and len(leaders):
            relu.pair(self.nearest(relu.probes, 1), leaders)
        relu.add(np.intersect1d(leaders, relu.open))
        relu.assign(relu.twins(), own=True)
        relu.add(relu.open)
        if number == 0:
            self.blocks.append(slice(start, self.count))
            self.places[node.outputs[0]] = relu.unit.copy(), relu.factor
        self.own[number][x] = np.unique(relu.unit[relu.unit >= 0])
        return relu.bent()

    def nearest(self, wanted: Array, tree: int) -> Match:
        """The units of the first side that have the nearest keys, or the nearest probes, up to the sign."""
        if not len(self.known):
            return np.full(len(wanted), -1), np.ones(len(wanted))
        _check_finite(wanted)
        distance, found = self.trees[tree].query(np.stack([wanted, -wanted]))
        is_negative = distance[1] < distance[0]
        unit = self.known[np.where(is_negative, found[1], found[0])]
        is_near = distance.min(axis=0) <= NEAR * np.linalg.norm(wanted, axis=1)
        return np.where(is_near, unit, -1), np.where(is_negative, -1.0, 1.0)


def _check_finite(*keys: Array) -> None:
    if not all(np.isfinite(each).all() for each in keys):
        raise OverflowError("sums of the entries of a piece must stay finite in float64")
