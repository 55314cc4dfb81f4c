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

from conv2affine.network.equality.forms import Form, Numbers, selected
from conv2affine.network.equality.kept import Operators
from conv2affine.network.equality.relu import Relu
from conv2affine.network.equality.side import Side
from conv2affine.network.equality.table import Match, Table, leading
from conv2affine.network.graph import Kept, Node, Piece, Value
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval, sums
from conv2affine.network.proof.rounding import DOUBLE, gamma, rounding

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
        table: What each side computes in each unit.
        blocks: The units of each ReLU of the first side.
        sums: Of a unit u, the row of an element p + s u that reads it, such as max(a, b) = a + relu(b - a); or nothing.
        outputs: Of each side.
        apart: The first value of each side that the other does not have, up to rounding; None if there is none.
    """

    def __init__(
        self, sides: Sequence[Side], points: Array, ranges: Ranges, settled: Sequence[int] = (), *, scaled: bool = False
    ) -> None:
        self.sides, self.ranges, self.settled = sides, ranges, settled
        # Partners may both be NaN, such as logarithms of numbers < 0.
        values = [side.values(points) for side in sides]
        self.values = [{value: np.where(np.isfinite(x), x, 0) for value, x in each.items()} for each in values]
        nodes = [node for side in sides for node in side.graph.nodes if not isinstance(node, Piece)]
        count = sides[0].graph.inputs[0].size
        width = count + sum(value.size for node in nodes for value in node.outputs)
        unit, has_bounds = max(side.unit for side in sides), ranges is not None
        self.table = Table(count, width, len(points), unit, scaled=scaled, has_bounds=has_bounds)
        self.operators = Operators(self.table, max((s.dtype for s in sides), key=lambda dtype: torch.finfo(dtype).eps))
        self.blocks: list[slice] = []
        self.places: dict[Value, Match] = {}  # of each ReLU of the first side
        self.sums = csr_array((width, width))
        self.read_by_kept: tuple[list[Form], ...] = [], []
        self.own: tuple[dict[Value, Numbers], ...] = {}, {}  # units of each value that a step reads, or that is kept
        first = self.read(0)
        self.table.index()
        second = self.read(1)
        self.outputs = first, second
        self.apart = self.first_apart(0), self.first_apart(1)

    def first_apart(self, number: int) -> Value | None:
        """The first value of a side that the other does not have; None if there is none."""
        forms = [self.outputs[number], *self.read_by_kept[number]]
        needed = self.table.rows[number].needed(forms) & ~self.table.matched
        for value, units in self.own[number].items():
            if needed[units].any():
                return value
        first, second = self.outputs
        return None if first.equals(second, self.table.unit).all() else self.sides[number].graph.outputs[0]

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
                forms.update(self.add_kept(number, node, [forms[value] for value in node.inputs]))
            else:
                form = forms[node.inputs[0]]
                forms[node.outputs[0]] = self.add_relu(number, node, form, next(places, None))
        return forms[y]

    def interval(self, number: int, value: Value) -> Interval:
        """Bounds of the elements of a value for the inputs in question."""
        if self.ranges is not None:
            return self.ranges[number][value]
        seen = self.values[number][value]
        return Interval(seen.min(axis=0), seen.max(axis=0))

    def identity(self, number: int, value: Value, units: Numbers) -> Form:
        """A value whose elements are units."""
        return self.table.rows[number].identity(units, self.interval(number, value).largest)

    def compose(self, number: int, node: Piece, forms: Mapping[Value, Form]) -> Form:
        """The form of an affine piece."""
        side, n = self.sides[number], node.output.size
        bias, size, error = node.map.bias.copy(), np.abs(node.map.bias), np.zeros(n)
        matrix, counts, largest = csr_array((n, self.table.width)), np.zeros(n), 0.0
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
                places = np.full(self.table.width, -1)
                places[units] = rows[is_new][at]
                self.sums = csr_array(self.sums + selected(places, form.size.size) @ form.matrix)

    def add_kept(self, number: int, node: Kept, inputs: Sequence[Form]) -> Mapping[Value, Form]:
        """The outputs of an operator, for its inputs."""
        self.read_by_kept[number].extend(inputs)
        units, factor = self.operators.add(number, node, inputs)
        self.own[number][node.outputs[0]] = units
        parts = np.split(units, np.cumsum([value.size for value in node.outputs])[:-1])
        pairs = zip(node.outputs, parts, strict=True)
        return {value: self.identity(number, value, part).times(factor + np.zeros(value.size)) for value, part in pairs}

    def add_relu(self, number: int, node: Node, form: Form, place: Match | None) -> Form:
        """The outputs of a ReLU; `place` has the units of the first side's ReLU at the same place."""
        [x], table = node.inputs, self.table
        rows = table.rows[number]
        probes = np.ascontiguousarray(self.values[number][x].T)
        relu = Relu(table, number, form, probes, self.interval(number, x), self.sides[number].not_negative[x])
        start = table.count
        if number == 0:
            relu.assign(rows.twins(relu.keys))
        else:
            if place is not None and len(place[0]) == x.size:
                relu.assign(place)
            if len(relu.open):
                relu.assign(table.nearest(relu.keys, table.by_keys))
            table.matched[relu.unit[relu.unit >= 0]] = True
        if number in self.settled:
            relu.settle()
        if number:
            relu.assign(rows.twins(relu.keys), own=True)
        leaders = leading(relu.keys, relu.open)
        if number and len(leaders):
            relu.pair(table.nearest(relu.probes, table.by_probes), leaders)
        relu.add(np.intersect1d(leaders, relu.open))
        relu.assign(rows.twins(relu.keys), own=True)
        relu.add(relu.open)
        if number == 0:
            self.blocks.append(slice(start, table.count))
            self.places[node.outputs[0]] = relu.unit.copy(), relu.factor
        self.own[number][x] = np.unique(relu.unit[relu.unit >= 0])
        return relu.bent()
