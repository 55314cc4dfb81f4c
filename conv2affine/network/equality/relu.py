"""A ReLU of one of two networks, whose elements become units, or are found among them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from scipy.sparse import csr_array, diags_array

from conv2affine.network.equality.forms import Form, Mask, Numbers, selected
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval

if TYPE_CHECKING:
    from conv2affine.network.equality.units import Units

__all__ = ["SAME", "Match", "Relu", "leading"]

# How far the keys of elements with the same entries may be apart, relative to their size.
SAME = 1e-9
# The share of its range in a box in which an element may bend, and still need no unit.
HARDLY = 2.0**-10
Match = tuple[Numbers, Array]  # the unit of each element, or -1, and its sign


class Relu:
    """A ReLU whose elements become units, or are found among them."""

    def __init__(self, units: Units, number: int, form: Form, probes: Array, interval: Interval) -> None:
        self.units, self.number, self.rows, self.first = units, number, units.rows[number], units.rows[0]
        self.form = form = self.flattened(form)
        self.probes, self.interval = probes, interval
        self.unit, self.sign = np.full(len(probes), -1), np.ones(len(probes))
        self.leads = np.zeros(len(probes), bool)  # the elements that are the first of their unit on this side
        self.moved = np.zeros(len(probes))  # what is left out of relu(v)
        matrix = form.matrix
        self.keys = matrix @ units.random[:-1] + form.bias[:, None] * units.random[-1]
        wrong = (matrix.data < 0) | ((matrix.data != 0) & ~units.bends[matrix.indices])
        count = np.concatenate([[0], np.cumsum(wrong)])
        has_wrong = count[matrix.indptr[1:]] > count[matrix.indptr[:-1]]
        self.steady: Mask = ~has_wrong & ((form.bias >= 0) | (np.diff(matrix.indptr) == 0))
        self.zero: Mask = self.steady & (np.diff(matrix.indptr) == 0) & (form.bias < 0)

    def flattened(self, form: Form) -> Form:
        """The form, with s v - c in place of s u - c where u = relu(v), s > 0, c > error: both have the same ReLU."""
        matrix, size = form.matrix, len(form.bias)
        rows = np.flatnonzero((np.diff(matrix.indptr) == 1) & (form.bias < -form.error))
        unit, scale = matrix.indices[matrix.indptr[rows]], matrix.data[matrix.indptr[rows]]
        is_bent = self.units.bends[unit] & self.rows.is_known[unit] & (scale > 0)
        rows, unit, scale = rows[is_bent], unit[is_bent], scale[is_bent]
        if not len(rows):
            return form
        inner, places = self.rows.all()[unit], np.full(size, -1)
        places[rows] = np.arange(len(rows))
        others = diags_array(1.0 * (places < 0)) @ matrix
        added = selected(places, len(rows)) @ (diags_array(scale) @ inner.matrix)
        bias, total, error = form.bias.copy(), form.size.copy(), form.error.copy()
        bias[rows] += scale * inner.bias
        total[rows] += scale * inner.size
        error[rows] += scale * inner.error
        return Form(csr_array(others + added), bias, total, error)

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

    def assign(self, match: Match, *, own: bool = False) -> None:
        """Take the units that are found, where the first side, or this one, has the same entries for them."""
        rows = self.open
        rows = rows[match[0][rows] >= 0]
        if len(rows):
            unit, sign = match[0][rows], match[1][rows]
            known = (self.rows if own else self.first).all()[unit]
            good = self.form[rows].times(sign).equals(known, self.units.unit)
            self.take(rows[good], unit[good], sign[good])

    def twins(self) -> Match:
        """The units of this side, so far, that have the same entries up to the sign."""
        keys, all_keys = self.keys, self.units.keys[self.number]
        units = np.flatnonzero(self.units.bends & self.rows.is_known)
        if not len(units):
            return np.full(len(keys), -1), np.ones(len(keys))
        known = all_keys[units, 0]
        order = np.argsort(np.abs(known))
        near = SAME * np.abs(keys).max(axis=1)
        at = np.searchsorted(np.abs(known)[order], np.abs(keys[:, 0]) - near).clip(max=len(units) - 1)
        found = order[at]
        sign = np.where(np.sign(known[found]) == np.sign(keys[:, 0]), 1.0, -1.0)
        is_twin = np.abs(all_keys[units[found]] * sign[:, None] - keys).max(axis=1) <= near
        return np.where(is_twin, units[found], -1), sign

    def pair(self, match: Match, rows: Numbers) -> None:
        """Take the units that are found for these elements, and that this side does not have yet, each once."""
        rows = rows[match[0][rows] >= 0]
        rows = rows[np.unique(match[0][rows], return_index=True)[1]]
        rows = rows[~self.rows.is_known[match[0][rows]]]
        self.take(rows, match[0][rows], match[1][rows])

    def add(self, rows: Numbers) -> None:
        """Make new units."""
        units = self.units
        unit = np.arange(units.count, units.count + len(rows))
        units.count += len(rows)
        units.bends[unit] = True
        units.probes[unit] = self.probes[rows]
        self.take(rows, unit, np.ones(len(rows)))

    def take(self, rows: Numbers, unit: Numbers, sign: Array) -> None:
        self.unit[rows], self.sign[rows] = unit, sign
        at = np.unique(unit, return_index=True)[1]
        at = at[~self.rows.is_known[unit[at]]]
        rows, unit, sign = rows[at], unit[at], sign[at]
        self.leads[rows] = True
        self.units.keys[self.number, unit] = self.keys[rows] * sign[:, None]
        ends = [sign * bound[rows] for bound in self.interval]
        self.rows.add(unit, self.form[rows].times(sign), np.minimum(*ends), np.maximum(*ends))

    def bent(self) -> Form:
        """The outputs: v where it is steady, u where it is a unit u, u + v where v is that of u times -1."""
        form = self.form
        stays = ((self.steady & ~self.zero) | (self.sign < 0)).astype(float)
        matrix = csr_array(diags_array(stays) @ form.matrix + selected(self.unit, self.units.width))
        matrix.eliminate_zeros()
        bias, size = stays * form.bias, stays * form.size
        size += np.where(self.unit >= 0, self.rows.largest[self.unit], 0)
        error: Array = stays * form.error + self.moved
        again = np.flatnonzero((self.unit >= 0) & ~self.leads)
        if len(again) and self.units.ranges is not None:
            own, known = self.form[again].times(self.sign[again]), self.rows.all()[self.unit[again]]
            error[again] += own.gap(known, self.rows.largest) + own.error + known.error
        return Form(matrix, bias, size, error)


def leading(keys: Array, rows: Numbers) -> Numbers:
    """The first element of each group of elements that have the same entries up to the sign."""
    if not len(rows):
        return rows
    sizes = np.abs(keys[rows, 0])
    order = np.argsort(sizes, kind="stable")
    near = SAME * np.abs(keys[rows]).max(axis=1)[order]
    starts = np.flatnonzero(np.diff(sizes[order], prepend=-np.inf) > near)
    return np.sort(np.minimum.reduceat(rows[order], starts))
