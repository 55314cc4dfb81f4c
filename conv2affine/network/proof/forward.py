"""Bounds of an affine map from bounds of its sources."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.sparse import csr_array

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.rounding import DOUBLE, gamma, rounding


class Interval(NamedTuple):
    """Bounds of the elements of a value."""

    low: Array
    high: Array

    @property
    def largest(self) -> Array:
        """The largest absolute value of each element."""
        return np.maximum(np.abs(self.low), np.abs(self.high))


@dataclass(frozen=True)
class Range:
    """What is known of a value.

    Args:
        interval: Its bounds, as it is computed.
        largest: The largest |x| of each element x; of one that may be carried as two, relu(x) + relu(-x).
        terms: How many numbers an element is at most: 2 where it may be carried, else 1.
    """

    interval: Interval
    largest: Array
    terms: int = 1


@dataclass(frozen=True)
class Forward:
    """What is known of an affine map y = A x + b.

    Args:
        interval: Bounds of y, as it is computed.
        rounding: How far an element of y may be from the map of the x that was computed.
        magnitudes: |A| |x| + |b|, or more.
    """

    interval: Interval
    rounding: Array
    magnitudes: Array


def sums(positive: csr_array, negative: csr_array, interval: Interval) -> tuple[Array, Array]:
    """The largest sums of the terms > 0 of each row of (positive - negative) @ x, and of those < 0, without sign."""
    up, down = np.maximum(interval.high, 0), np.maximum(-interval.low, 0)
    return positive @ up + negative @ down, positive @ down + negative @ up


def forward(matrices: Mapping[Any, csr_array], bias: Array, ranges: Mapping[Any, Range], dtype: torch.dtype) -> Forward:
    """Bounds of y = sum over sources s of A_s x_s + b, computed in a dtype."""
    least, greatest, counts, largest = bias.copy(), bias.copy(), np.zeros(len(bias)), 0.0
    rise, fall = np.maximum(bias, 0), np.maximum(-bias, 0)
    for source, matrix in matrices.items():
        known = ranges[source]
        low, high = known.interval
        positive, negative = matrix.maximum(0), -matrix.minimum(0)
        least += positive @ low - negative @ high
        greatest += positive @ high - negative @ low
        risen, fallen = sums(positive, negative, known.interval)
        rise, fall = rise + risen, fall + fallen
        counts += np.diff(matrix.indptr) * known.terms
        largest = max(largest, known.largest.max(initial=0))
    moved = rounding(counts, rise, fall, largest, dtype)
    radius = moved + gamma(counts + 8, DOUBLE) * (rise + fall)
    least, greatest = np.nextafter(least - radius, -np.inf), np.nextafter(greatest + radius, np.inf)
    # A sum of numbers >= 0 is >= 0, however it is rounded.
    least, greatest = (
        np.where(fall > 0, least, np.maximum(least, 0)),
        np.where(rise > 0, greatest, np.minimum(greatest, 0)),
    )
    return Forward(Interval(least, greatest), moved, rise + fall)
