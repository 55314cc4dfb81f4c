"""The table of the units of two networks: what each network computes in them, and how they are found again."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.sparse import csr_array, vstack
from scipy.spatial import cKDTree

from conv2affine.network.equality.forms import Form, Mask, Numbers, selected
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval

KEYS = 8
# How far the keys of elements with the same entries may be apart, relative to their size.
SAME = 1e-9
# How far the values of partners may be apart, relative to their size.
NEAR = 0.05
Match = tuple[Numbers, Array]  # the unit of each element, or -1, and its sign


class Rows:
    """What one network computes in each unit, before the ReLU.

    Attributes:
        is_known: The units that it computes.
        low: Of their values before the ReLU, for the inputs in question.
        high: Likewise.
        largest: The largest absolute values of the units.
        rank: 1, 2, ... of the ReLUs among them, in their order; 0 of others.
        entries: How many their rows have.
        keys: What their rows are for random units, divided by `norms`.
        norms: Those of the keys, or 1.
    """

    def __init__(self, width: int) -> None:
        self.is_known = np.zeros(width, bool)
        self.low, self.high, self.largest = np.zeros(width), np.zeros(width), np.zeros(width)
        self.rank, self.entries = np.zeros(width, np.int64), np.zeros(width, np.int64)
        self.keys, self.norms = np.zeros((width, KEYS)), np.ones(width)
        self._forms = [Form(csr_array((1, width)), *[np.zeros(1)] * 3)]
        self._form, self._row = np.zeros(width, np.int64), np.zeros(width, np.int64)  # where each unit's row is

    @property
    def by_rank(self) -> Numbers:
        """The unit of each rank."""
        units = np.flatnonzero(self.rank)
        result = np.full(len(units) + 1, -1)
        result[self.rank[units]] = units
        return result

    def identity(self, units: Numbers, largest: Array) -> Form:
        """A value whose elements are units, inputs or results of operators."""
        self.is_known[units], self.largest[units] = True, largest
        return Form(selected(units, len(self.rank)), np.zeros(len(units)), largest, np.zeros(len(units)))

    def add(self, units: Numbers, form: Form, ends: Interval, keys: Array, norms: Array) -> None:
        """More units, which are the ReLUs of a form."""
        self._form[units], self._row[units] = len(self._forms), np.arange(len(units))
        self._forms.append(form)
        self.entries[units] = np.diff(form.matrix.indptr)
        self.rank[units] = self.rank.max(initial=0) + 1 + np.arange(len(units))
        self.is_known[units] = True
        self.low[units], self.high[units], self.largest[units] = *ends, np.maximum(ends.high, 0)
        self.keys[units], self.norms[units] = keys, norms

    def twins(self, keys: Array) -> Match:
        """The ReLUs, so far, that have the same entries as elements with these keys, up to the sign."""
        units = np.flatnonzero(self.rank)
        if not len(units):
            return np.full(len(keys), -1), np.ones(len(keys))
        known = self.keys[units, 0]
        order = np.argsort(np.abs(known))
        near = SAME * np.abs(keys).max(axis=1)
        at = np.searchsorted(np.abs(known)[order], np.abs(keys[:, 0]) - near).clip(max=len(units) - 1)
        found = order[at]
        sign = np.where(np.sign(known[found]) == np.sign(keys[:, 0]), 1.0, -1.0)
        is_twin = np.abs(self.keys[units[found]] * sign[:, None] - keys).max(axis=1) <= near
        return np.where(is_twin, units[found], -1), sign

    def needed(self, forms: Sequence[Form]) -> Mask:
        """The units that some forms read, and those that these read in turn."""
        rows = self.all().matrix
        needed = np.zeros(len(self.rank), bool)
        for form in forms:
            needed[form.matrix.indices[form.matrix.data != 0]] = True
        count = 0
        while count < needed.sum():
            count = needed.sum()
            part = rows[np.flatnonzero(needed)]
            needed[part.indices[part.data != 0]] = True
        return needed

    def __getitem__(self, units: Numbers) -> Form:
        """The rows of some units: zeros for inputs, and for units that this network does not compute."""
        order = np.argsort(self._form[units], kind="stable")
        numbers, starts = np.unique(self._form[units[order]], return_index=True)
        if len(numbers) < 2:
            return self._forms[int(numbers.max(initial=0))][self._row[units]]
        groups = zip(numbers, np.split(order, starts[1:]), strict=True)
        forms = [self._forms[number][self._row[units[group]]] for number, group in groups]
        matrix = csr_array(vstack([form.matrix for form in forms], "csr"))
        vectors = ([getattr(form, name) for form in forms] for name in ("bias", "size", "error"))
        return Form(matrix, *map(np.concatenate, vectors))[np.argsort(order)]

    def all(self) -> Form:
        """A row for each unit."""
        return self[np.arange(len(self.rank))]


class Table:
    """The units of two networks.

    Args:
        count: How many there are, first the inputs.
        width: How many there may be.
        points: For how many inputs their values are kept.
        unit: Relative size of one rounding of the entries of rows.
        scaled: Whether relu(s v) and relu(v) are one unit, s > 0.
        has_bounds: Whether errors matter.

    Attributes:
        rows: Those of each network.
        probes: (units, points), values of ReLUs before the ReLU.
        matched: The units of the first network that the second computes too.
    """

    def __init__(self, count: int, width: int, points: int, unit: float, *, scaled: bool, has_bounds: bool) -> None:
        self.count, self.width, self.unit, self.scaled, self.has_bounds = count, width, unit, scaled, has_bounds
        self.rows = Rows(width), Rows(width)
        self.probes = np.zeros((width, points))
        self.matched = np.zeros(width, bool)
        self.random = np.random.default_rng(0).standard_normal((width + 1, KEYS))

    def new(self, count: int) -> Numbers:
        """More units."""
        self.count += count
        return np.arange(self.count - count, self.count)

    def keys(self, form: Form) -> tuple[Array, Array]:
        """The keys of elements, and their norms."""
        keys = form.keys(self.random)
        norms = np.linalg.norm(keys, axis=1) if self.scaled else np.ones(len(keys))
        return keys / np.where(norms > 0, norms, 1)[:, None], norms

    def index(self) -> None:
        """Prepare to find the ReLUs of the first network, once all are known."""
        first = self.rows[0]
        _check_finite(first.keys, self.probes)
        self.known = np.flatnonzero(first.rank)
        self.by_keys, self.by_probes = (cKDTree(each[self.known]) for each in (first.keys, self.probes))

    def nearest(self, wanted: Array, tree: cKDTree) -> Match:
        """The ReLUs of the first network with the nearest keys, or the nearest probes, up to the sign."""
        if not len(self.known):
            return np.full(len(wanted), -1), np.ones(len(wanted))
        _check_finite(wanted)
        distance, found = tree.query(np.stack([wanted, -wanted]))
        is_negative = distance[1] < distance[0]
        unit = self.known[np.where(is_negative, found[1], found[0])]
        is_near = distance.min(axis=0) <= NEAR * np.linalg.norm(wanted, axis=1)
        return np.where(is_near, unit, -1), np.where(is_negative, -1.0, 1.0)


def leading(keys: Array, rows: Numbers) -> Numbers:
    """The first element of each group of elements that have the same entries up to the sign."""
    if not len(rows):
        return rows
    sizes = np.abs(keys[rows, 0])
    order = np.argsort(sizes, kind="stable")
    near = SAME * np.abs(keys[rows]).max(axis=1)[order]
    starts = np.flatnonzero(np.diff(sizes[order], prepend=-np.inf) > near)
    return np.sort(np.minimum.reduceat(rows[order], starts))


def _check_finite(*keys: Array) -> None:
    if not all(np.isfinite(each).all() for each in keys):
        raise OverflowError("sums of the entries of a piece must stay finite in float64")
