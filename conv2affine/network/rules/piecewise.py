"""Functions of one number that are linear between knots, one for each element: what masks and steps make of a value."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.rules.operands import NoRuleError

# Sums of a few numbers that cancel leave this part of the largest.
EPS = 1e-13


@dataclass(frozen=True)
class Piecewise:
    """For each element, x -> slopes[j] * x + offsets[j] between knots j - 1 and j, and `at` on the knots.

    Args:
        knots: (knots, elements), ascending. Not all need be bends: other elements may have these.
        slopes: (knots + 1, elements), before, between and after the knots.
        offsets: Likewise.
        at: (knots, elements).
    """

    knots: Array
    slopes: Array
    offsets: Array
    at: Array

    @classmethod
    def line(cls, slope: Any, offset: Any) -> Piecewise:
        """The function slope * x + offset."""
        slopes, offsets = np.broadcast_arrays(np.atleast_2d(slope), np.atleast_2d(offset))
        none = np.zeros((0, slopes.shape[1]))
        return cls(none, slopes.astype(np.float64), offsets.astype(np.float64), none)

    @property
    def is_constant(self) -> bool:
        """Whether it is constant between all knots."""
        return not self.slopes.any()

    def refined(self, knots: Array) -> Piecewise:
        """The same with more knots."""
        joined = np.sort(np.concatenate([self.knots, knots]), axis=0)
        below = (self.knots[:, None] < joined).sum(0)
        up_to = (self.knots[:, None] <= joined).sum(0)
        number = np.concatenate([np.zeros((1, joined.shape[1]), int), up_to])
        slopes, offsets = (np.take_along_axis(lines, number, 0) for lines in (self.slopes, self.offsets))
        at = _values(slopes[1:], offsets[1:], joined)
        if len(self.at):
            own = np.take_along_axis(self.at, below.clip(max=len(self.at) - 1), 0)
            at = np.where(up_to > below, own, at)
        return Piecewise(joined, slopes, offsets, at)

    def __add__(self, other: Piecewise) -> Piecewise:
        a, b = self.refined(other.knots), other.refined(self.knots)
        return Piecewise(a.knots, _sum(a.slopes, b.slopes), _sum(a.offsets, b.offsets), _sum(a.at, b.at)).simpler()

    def __mul__(self, other: Any) -> Piecewise:
        """The product with a constant, or with a function that is constant between its knots."""
        if not isinstance(other, Piecewise):
            return Piecewise(self.knots, other * self.slopes, other * self.offsets, other * self.at)
        a, b = self.refined(other.knots), other.refined(self.knots)
        if (a.slopes * b.slopes).any():
            raise NoRuleError("it multiplies values")
        slopes = a.slopes * b.offsets + a.offsets * b.slopes
        return Piecewise(a.knots, slopes, a.offsets * b.offsets, a.at * b.at).simpler()

    def __sub__(self, other: Piecewise) -> Piecewise:
        return self + other * -1

    def signs(self, where: Callable[[Array], Any] = np.sign) -> Piecewise:
        """What a function makes of the signs -1, 0, 1 of the values."""
        with np.errstate(all="ignore"):
            zeros = np.where(self.slopes != 0, -self.offsets / self.slopes, np.nan)
        low, high = (np.full((1, zeros.shape[1]), end) for end in (-np.inf, np.inf))
        inside = (np.concatenate([low, self.knots]) < zeros) & (zeros < np.concatenate([self.knots, high]))
        crossed = inside.any(1)
        fine = self.refined(np.where(inside, zeros, 0)[crossed])
        first, last = fine.knots[:1], fine.knots[-1:]
        middles = (fine.knots[1:] + fine.knots[:-1]) / 2
        ends = [first - np.maximum(abs(first), 1), middles, last + np.maximum(abs(last), 1)]
        points = np.concatenate(ends) if len(first) else 0
        between, at = (np.asarray(where(np.sign(x)), float) for x in (fine.slopes * points + fine.offsets, fine.at))
        return Piecewise(fine.knots, np.zeros_like(between), between, at).simpler()

    def simpler(self) -> Piecewise:
        """The same without knots at which no element bends or jumps."""
        slopes, offsets = self.slopes.copy(), self.offsets.copy()
        for number in range(len(self.knots) - 1, 0, -1):  # nothing is between equal knots: as after them
            same = self.knots[number] == self.knots[number - 1]
            slopes[number] = np.where(same, slopes[number + 1], slopes[number])
            offsets[number] = np.where(same, offsets[number + 1], offsets[number])
        result = Piecewise(self.knots, slopes, offsets, self.at)
        bends = (abs(_sum(slopes[1:], -slopes[:-1])) > 0) | (result.jumps() > 0)
        kept = bends.any(1)
        lines = np.concatenate([[True], kept])
        return Piecewise(self.knots[kept], slopes[lines], offsets[lines], self.at[kept])

    def jumps(self) -> Array:
        """By how much it jumps at each knot: from one side to the other, or on the knot itself."""
        before, after = (_values(self.slopes[part], self.offsets[part], self.knots) for part in (np.s_[:-1], np.s_[1:]))
        scale = EPS * (abs(self.slopes[1:] * self.knots) + abs(self.offsets[1:]))
        pairs = (before, after), (before, self.at), (after, self.at)
        largest = np.fmax.reduce([abs(_sum(x, -y)) for x, y in pairs])  # NaN where both are the same infinity
        return np.where((largest > scale) | np.isinf(largest), largest, 0)


def _sum(first: Array, second: Array) -> Array:
    """The sum; 0 where only rounding is left of it."""
    total = first + second
    return np.where(np.isfinite(total) & (abs(total) <= EPS * np.maximum(abs(first), abs(second))), 0, total)


def _values(slopes: Array, offsets: Array, x: Array) -> Array:
    return _sum(slopes * x, offsets)
