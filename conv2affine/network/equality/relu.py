"""A ReLU of one of two networks, whose elements become units, or are found among them."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, diags_array

from conv2affine.network.equality.forms import Form, Mask, Numbers, selected
from conv2affine.network.equality.table import Match, Table
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval

# What is left of entries that cancel, relative to their size.
CANCELLED = 2.0**-48
# How far the norms of keys may be apart, relative to each other, for a factor of 1.
UNSCALED = 2.0**-12
# The share of its range in a box in which an element may bend, and still need no unit.
HARDLY = 2.0**-10


class Relu:
    """A ReLU whose elements become units, or are found among them."""

    def __init__(
        self, table: Table, number: int, form: Form, probes: Array, interval: Interval, positive: Mask
    ) -> None:
        self.table, self.number, self.rows = table, number, table.rows[number]
        self.given = form
        flat, flipped = self.flattened(form)
        self.form, self.flipped = form.where(positive, flat), flipped & ~positive
        self.probes, self.interval = probes * np.where(self.flipped, -1, 1)[:, None], interval
        self.unit, self.factor = np.full(len(probes), -1), np.ones(len(probes))
        self.leads = np.zeros(len(probes), bool)  # the elements that are the first of their unit on this side
        self.keys, self.norms = table.keys(self.form)
        is_relu = self.rows.rank > 0
        self.zero = self.form.is_sum(is_relu, -1)
        self.steady: Mask = self.zero | self.form.is_sum(is_relu) | positive
        self.moved = np.where(self.zero, self.form.error, 0)  # what is left out of relu(v)

    def flattened(self, form: Form) -> tuple[Form, Mask]:
        """A form w with relu(w) = relu(v) or, where it is flipped, relu(w) = relu(-v) = relu(v) - v.

        With u = relu(z), the last unit that v reads, s > 0, and a constant c < 0:

        v or -v = s u + c              w = s z + c
        v or -v = p + s u,             w = p         where p + s z = c
        """
        matrix, rank = form.matrix, self.rows.rank[form.matrix.indices]
        rows = np.flatnonzero(np.diff(matrix.indptr))
        last = np.maximum.reduceat(rank, matrix.indptr[rows]) if len(rows) else rank
        rows, last = rows[last > 0], last[last > 0]
        # Most rows have too many entries, or too few, for those of p + s z to cancel.
        entries = np.diff(matrix.indptr)[rows] - 1
        maybe = (entries == 0) | (entries == self.rows.entries[self.rows.by_rank[last]])
        rows, last = rows[maybe], last[maybe]
        part = form[rows]
        is_last = self.rows.rank[part.matrix.indices] == np.repeat(last, np.diff(part.matrix.indptr))
        unit, sign = part.matrix.indices[is_last], np.sign(part.matrix.data[is_last])
        inner = self.rows[unit].times(np.abs(part.matrix.data[is_last]))
        part = part.times(sign)
        part.matrix.data[is_last] = 0
        part.matrix.eliminate_zeros()
        joined, size = part.plus(inner), abs(part.matrix) + abs(inner.matrix)
        is_bent = (np.diff(part.matrix.indptr) == 0) & (part.bias < -part.error)
        # Entries of z may be divided by a factor, and rounded.
        left = (abs(joined.matrix) - CANCELLED * size).max(axis=1).toarray().ravel() if len(rows) else np.zeros(0)
        error = joined.error + np.where(np.diff(joined.matrix.indptr) > 0, 2 * CANCELLED * joined.size, 0)
        is_lost = (left <= 0) & (joined.bias <= -error) & ~is_bent
        places, chosen = np.full(len(form.bias), -1), np.flatnonzero(is_bent | is_lost)
        places[rows[chosen]] = np.arange(len(chosen))
        if not len(chosen):
            return form, np.zeros(len(form.bias), bool)
        new = joined.where(is_bent, part)[chosen]
        flipped = np.zeros(len(form.bias), bool)
        flipped[rows[chosen]] = sign[chosen] < 0
        return new.at(places).where(places >= 0, form), flipped

    @property
    def open(self) -> Numbers:
        """The elements that have no unit yet, and need one."""
        return np.flatnonzero(~self.steady & (self.unit < 0))

    def settle(self) -> None:
        """Need no units for elements that do not bend in the box, and on the second side for those that hardly do.

        relu(v) = v + r, 0 <= r <= -low, or 0 + r, 0 <= r <= high
        """
        rows = self.open
        low, high = (bound[rows] for bound in self.interval)
        bends = np.maximum(np.minimum(-low, high), 0)
        is_steady = bends <= (HARDLY * (high - low) if self.number else 0)
        self.zero[rows] = is_steady & (high <= -low)
        self.steady[rows] = is_steady
        self.moved[rows] = np.where(is_steady, bends, 0)
        settled = np.zeros(len(self.unit), bool)
        settled[rows] = is_steady
        self.form, self.flipped = self.given.where(settled, self.form), self.flipped & ~settled

    def assign(self, match: Match, *, own: bool = False) -> None:
        """Take the units that are found, where the first side, or this one, has the same entries for them."""
        rows = self.open
        rows = rows[match[0][rows] >= 0]
        if len(rows):
            unit, known = match[0][rows], self.rows if own else self.table.rows[0]
            factor = self.norms[rows] / known.norms[unit]
            factor = np.sign(match[1][rows]) * np.where(np.abs(factor - 1) < UNSCALED, 1, factor)
            good = self.form[rows].times(1 / factor).equals(known[unit], self.table.unit)
            self.take(rows[good], unit[good], factor[good])

    def pair(self, match: Match, rows: Numbers) -> None:
        """Take the units that are found for these elements, and that this side does not have yet, each once."""
        rows = rows[match[0][rows] >= 0]
        rows = rows[np.unique(match[0][rows], return_index=True)[1]]
        rows = rows[~self.rows.is_known[match[0][rows]]]
        self.take(rows, match[0][rows], match[1][rows])

    def add(self, rows: Numbers) -> None:
        """Make new units."""
        unit = self.table.new(len(rows))
        self.table.probes[unit] = self.probes[rows]
        self.take(rows, unit, np.ones(len(rows)))

    def take(self, rows: Numbers, unit: Numbers, factor: Array) -> None:
        self.unit[rows], self.factor[rows] = unit, factor
        at = np.unique(unit, return_index=True)[1]
        at = at[~self.rows.is_known[unit[at]]]
        rows, unit, factor = rows[at], unit[at], factor[at]
        self.leads[rows] = True
        sign = np.where(self.flipped[rows], -1, 1) / factor
        bounds = [sign * bound[rows] for bound in self.interval]
        ends = Interval(np.minimum(*bounds), np.maximum(*bounds))
        keys, norms = self.keys[rows] * np.sign(factor)[:, None], self.norms[rows] / np.abs(factor)
        self.rows.add(unit, self.form[rows].times(1 / factor), ends, keys, norms)

    def bent(self) -> Form:
        """The outputs: w where it is steady; |f| u where w is f times that of u, + w if f < 0; + v where flipped."""
        form, factor = self.form, np.abs(self.factor)
        stays = ((self.steady & ~self.zero) | (self.factor < 0)).astype(float)
        units = diags_array(factor) @ selected(self.unit, self.table.width)
        size = stays * form.size + np.where(self.unit >= 0, factor * self.rows.largest[self.unit], 0)
        error: Array = stays * form.error + self.moved
        again = np.flatnonzero((self.unit >= 0) & ~self.leads)
        if len(again) and self.table.has_bounds:
            own, known = self.form[again].times(1 / self.factor[again]), self.rows[self.unit[again]]
            error[again] += factor[again] * (own.gap(known, self.rows.largest) + own.error + known.error)
        bent = Form(csr_array(diags_array(stays) @ form.matrix + units), stays * form.bias, size, error)
        if self.flipped.any():
            bent = bent.plus(self.given.times(1.0 * self.flipped))
        bent.matrix.eliminate_zeros()
        return bent
