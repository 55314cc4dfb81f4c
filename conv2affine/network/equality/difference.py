"""A bound of the difference of two networks in a box, roundings included.

With d the difference of what both compute in each unit, u that of the second, and z before the ReLU:

    d_z = A d_u + e,    |e| <= |A' - A| |u| + |b' - b| + what both round
    d_u = d_z           where the ReLU is active in both
          0             where it is inactive in both
          d_z / 2 + r   elsewhere, |r| <= |d_z| / 2, as d_u is between 0 and d_z

so that d_out is a sum over all e and r, each times the weights with which it reaches the output: the weights of a path
are multiplied with their signs, and halved at each ReLU that may bend.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_array, diags_array

from conv2affine.network.equality.forms import Form
from conv2affine.network.equality.units import Units
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.rounding import DOUBLE, UNDERFLOW, gamma

__all__ = ["largest_difference"]

# Numbers that are pushed back at a time.
CHUNK = 2**23


def largest_difference(units: Units) -> Array:
    """The largest difference of each output of two networks whose units have bounds in a box."""
    return _Differences(units).of_outputs()


class _Differences:
    def __init__(self, units: Units) -> None:
        self.units = units
        first, second = units.rows
        self.in_both = first.is_known & second.is_known
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
        self.slope = np.where(active, 1.0, np.where(inactive, 0.0, 0.5)) * self.in_both
        self.rest = np.zeros(units.width)
        self.steps: list[tuple[slice, csr_array]] = []
        for block in (block for block in units.blocks if block.stop > block.start):
            bent = np.arange(block.start, block.stop)[self.slope[block] == 0.5]
            found = self.push(self.matrix[bent], len(self.steps)) + self.error[bent]
            is_wide = found > self.total[bent]
            self.slope[bent[is_wide]] = 0
            self.rest[bent] = np.where(is_wide, self.total[bent], found / 2)
            self.steps.append((block, self.back(block)))

    def own(self, first: Form, second: Form) -> Array:
        """How far two maps may be apart for the same units, as they are computed, and what pushing rounds."""
        total = first.gap(second, self.largest) + first.error + second.error
        reach: Array = abs(first.matrix) @ self.total
        rounded: Array = (total + self.slack * reach) * (1 + 2.0**-20) + UNDERFLOW
        return rounded

    def back(self, block: slice) -> csr_array:
        """The weights of the units before a block, for those of the differences in it."""
        scaled = diags_array(self.slope[block]) @ self.matrix[block][:, : block.start]
        return csr_array(scaled.T)

    def push(self, matrix: csr_array, number: int) -> Array:
        """What rows of weights make of the differences of the units of the first blocks, at most."""
        total = np.zeros(matrix.shape[0])
        count = max(1, CHUNK // max(1, matrix.shape[1]))
        for start in range(0, matrix.shape[0], count):
            rows = slice(start, start + count)
            weights = matrix[rows].toarray().T
            for block, back in self.steps[:number][::-1]:
                part = weights[block]
                kept = self.slope[block] * self.error[block] + self.rest[block]
                total[rows] += kept @ np.abs(part)
                weights[: block.start] += back @ part
        return total * (1 + 2.0**-20)

    def of_outputs(self) -> Array:
        """The largest difference of each output."""
        first, second = self.units.outputs
        return self.push(first.matrix, len(self.steps)) + self.own(first, second)
