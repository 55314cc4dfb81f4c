"""A bound of the difference of two networks in a box, roundings included.

With d the difference of what both compute in each unit, u that of the second, and z before the ReLU:

    d_z = A d_u + e,    |e| <= |A' - A| |u| + |b' - b| + what both round
    d_u = d_z           where the ReLU is active in both
          0             where it is inactive in both
          d_z / 2 + r   elsewhere, |r| <= |d_z| / 2, as d_u is between 0 and d_z

so that d_out is a sum over all e and r, each times the weights with which it reaches the output: the weights of a path
are multiplied with their signs, and halved at each ReLU that may bend. That would be twice too much for a sum such as
max(a, b) = a + relu(b - a), where the roundings of a and b have nothing to do with each other. Where that is nearer,

    p + s u, s = -+1, stays an unknown of its own:    s d_u = -d_p + r,    |r| <= max(|d_p|, |d_p + s d_z|)
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.sparse import csr_array, diags_array

from conv2affine.network.equality.forms import Form, Numbers, selected
from conv2affine.network.equality.units import Units
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.rounding import DOUBLE, UNDERFLOW, gamma

# Numbers that are pushed back at a time.
CHUNK = 2**23
# The largest number of units of a ReLU whose differences are looked at together, and of products for that.
JOINT, WORK = 256, 2**34
# What keeps signs is taken unless it is larger than what does not by this factor.
NEARER = 0.75


def largest_difference(units: Units) -> float:
    """The largest difference of an output of two networks whose units have bounds in a box."""
    return float(_Differences(units).of_outputs().max(initial=0))


@dataclass(frozen=True)
class Joint:
    """What units of a ReLU add to the output together: the sum over units k, and j before, of w_k t_k P_jk r_j / 2.

    All t_k and r_j are unknown, between -1 and 1. With D = diag(d), E = diag(e), for any d and e > 0 the sum is at most
    |t / d| |D w P E| |r / e|, in 2-norms; d and e are such that this is the sum of all |w_k P_jk| times a number <= 1.

    Args:
        units: k, among those of the ReLU.
        error: Of each, what it adds alone.
        parts: P_jk, for the units j of each ReLU before; the sum over them is that of the bounds.
    """

    units: Numbers
    error: Array
    parts: Sequence[Array]

    def largest(self, weights: Array) -> Array:
        """The sums for weights (units, rows), at most."""
        total = np.zeros(weights.shape[1])
        for part in self.parts:
            m = min(part.shape)
            few = weights.shape[1] * m * part.size <= WORK
            for row in range(weights.shape[1]):
                terms = part * weights[:, row]
                each = np.abs(terms)
                sums = each.sum(axis=0), each.sum(axis=1)
                size = sums[0].sum()
                if few and size > 0:
                    terms = terms / np.sqrt(np.where(sums[0] > 0, sums[0], 1))
                    terms = terms / np.sqrt(np.where(sums[1] > 0, sums[1], 1))[:, None]
                    square = terms.T @ terms if part.shape[1] == m else terms @ terms.T
                    # Of a matrix whose trace is at most m, to far more digits than are left.
                    size *= min(1.0, np.sqrt(np.linalg.eigvalsh(square)[-1] + m * 2.0**-40))
                total[row] += size / 2
        return total


class _Differences:
    def __init__(self, units: Units) -> None:
        self.units = units
        first, second = units.table.rows
        in_both = first.is_known & second.is_known
        # A unit that one side lacks is taken to be the same there, with weights 0.
        self.largest = np.where(second.is_known, second.largest, first.largest)
        self.total = np.maximum(first.largest, second.largest)  # both are >= 0
        forms = first.all(), second.all()
        self.matrix = forms[0].matrix
        columns = np.bincount(self.matrix.indices, minlength=1).max() + np.diff(self.matrix.indptr).max(initial=0)
        self.slack = gamma(columns + len(units.blocks) + 8, DOUBLE)
        self.error = self.own(*forms)
        active = (first.low >= 0) & (second.low >= 0)
        inactive = (first.high <= 0) & (second.high <= 0)
        self.slope = np.where(active, 1.0, np.where(inactive, 0.0, 0.5)) * in_both
        self.rest = self.slope * self.error
        self.steps: list[tuple[slice, csr_array]] = []
        self.joint: dict[int, Joint] = {}
        for block in (block for block in units.blocks if block.stop > block.start):
            self.add(block)

    def add(self, block: slice) -> None:
        """The units of a ReLU: their differences are rows of weights of those before, and the rest."""
        bent = np.arange(block.start, block.stop)[self.slope[block] == 0.5]
        found = self.push(self.matrix[bent]) + self.error[bent]
        is_wide = found > self.total[bent]
        self.slope[bent[is_wide]] = 0
        self.rest[bent] = np.where(is_wide, self.total[bent], found / 2 + self.error[bent] / 2)
        rows = self.with_sums(block, csr_array(diags_array(self.slope[block]) @ self.matrix[block]))
        bent = bent[self.slope[bent] == 0.5]
        if 1 < len(bent) <= JOINT and len(bent) * len(self.slope) <= CHUNK:
            parts = [part * self.rest[other][:, None] for other, part in self.back(self.matrix[bent].toarray().T)]
            self.joint[block.start] = Joint(
                bent - block.start, self.error[bent], [part for part in parts if part.any()]
            )
        self.steps.append((block, csr_array(rows[:, : block.start].T)))

    def with_sums(self, block: slice, rows: csr_array) -> csr_array:
        """The rows of a block, with those that keep a sum p + s u between its ends where these are nearer."""
        sums, sign = self.units.sums[block], self.units.sums.diagonal()[block]
        p = sums - diags_array(sign, offsets=block.start, shape=sums.shape)
        later = abs(p[:, block.start :]).sum(axis=1)
        chosen = np.flatnonzero((np.abs(sign) == 1) & (later == 0) & (self.slope[block] == 0.5))
        if not len(chosen):
            return rows
        at, signs, p = chosen + block.start, diags_array(sign[chosen]), p[chosen]
        z = signs @ self.matrix[at]
        far = np.maximum(self.push(p), self.push(p + z) + self.error[at])
        far = (far + 2 * self.reach(p) + 2 * self.reach(z)) * (1 + 2.0**-20)
        near = self.push(p + signs @ rows[chosen]) + self.rest[at]
        is_nearer = far <= NEARER * near
        self.rest[at[is_nearer]] = far[is_nearer]
        self.slope[at[is_nearer]] = 0
        places = np.full(len(sign), -1)
        places[chosen[is_nearer]] = np.flatnonzero(is_nearer)
        return csr_array(diags_array(1.0 * (places < 0)) @ rows - selected(places, len(at)) @ (signs @ p))

    def own(self, first: Form, second: Form) -> Array:
        """How far two maps may be apart for the same units, as they are computed, and what pushing rounds."""
        total = first.gap(second, self.largest) + first.error + second.error
        rounded: Array = (total + self.reach(first.matrix)) * (1 + 2.0**-20) + UNDERFLOW
        return rounded

    def reach(self, matrix: csr_array) -> Array:
        """What pushing rows of weights rounds."""
        rounded: Array = self.slack * (abs(matrix) @ self.total)
        return rounded

    def push(self, matrix: csr_array) -> Array:
        """What rows of weights make of the differences of the units so far, at most."""
        total = np.zeros(matrix.shape[0])
        count = max(1, CHUNK // max(1, matrix.shape[1]))
        for start in range(0, matrix.shape[0], count):
            rows = slice(start, start + count)
            for block, part in self.back(matrix[rows].toarray().T):
                joint, rest = self.joint.get(block.start), self.rest[block].copy()
                if joint is not None:
                    rest[joint.units] = joint.error
                    total[rows] += joint.largest(part[joint.units])
                total[rows] += rest @ np.abs(part)
        return total * (1 + 2.0**-20)

    def back(self, weights: Array) -> Iterator[tuple[slice, Array]]:
        """The weights (units, rows) of each ReLU's units, the last first."""
        for block, back in self.steps[::-1]:
            part = weights[block]
            yield block, part
            weights[: block.start] += back @ part

    def of_outputs(self) -> Array:
        """The largest difference of each output."""
        first, second = self.units.outputs
        return self.push(first.matrix) + self.own(first, second)
