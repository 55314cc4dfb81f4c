"""The comparison of two networks: a search for a difference, a match of their pieces, and a bound in a box."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from conv2affine.network.equality.difference import largest_difference
from conv2affine.network.equality.origin import Names, origin
from conv2affine.network.equality.search import Found, as_given, between, search
from conv2affine.network.equality.side import NotExactError, Side
from conv2affine.network.equality.units import Units
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.box import Box, box_in_words
from conv2affine.network.proof.forward import Interval

ASSUMPTION = "for sums of products in any order; not for Winograd, FFT or TF32 kernels"
PROBES = 8
SCALES = np.tile([[1.0], [0.25]], (PROBES // 2, 1))  # of the probes, relative to the largest element of the example
Verdict = Literal["different", "equal", "within", "undecided"]


@dataclass(frozen=True, eq=False)
class Comparison:
    """Whether two networks, a and b, are equal.

    Args:
        verdict: "different": there is an input where they differ by more than rounding, `witness`. "equal": all their
            affine pieces have the same entries, but for their roundings, and all their steps are the same. "within":
            neither is known, and for inputs in the box they differ by `bound` at most. "undecided": nothing is known
            but that no difference was found.
        difference: The largest difference of one output element that was found, as both compute it; infinite where the
            outputs have other shapes, or other infinities.
        witness: The inputs where, one array for each, as a batch of one sample; in a box, if there is one.
        origin: Names of the first pieces where they part, those of a and those of b; both empty where they do not.
        bound: The most by which an element of their outputs differs, as both compute it in their dtypes, for all inputs
            in the box; infinite without one, or if they have steps that are not piecewise linear. It holds for sums of
            products in any order, with each matrix, bias and offset rounded to the dtype; not for Winograd, FFT or TF32
            kernels.
        note: Where they are not known to be equal, which of them is a chain for another box than the one here, or has
            an operator that does not run in float64 on the inputs tried; or "".
    """

    verdict: Verdict
    difference: float
    witness: tuple[Array, ...]
    origin: tuple[Names, Names]
    bound: float
    note: str = ""

    def is_within(self, tolerance: float | None = None) -> bool | None:
        """Whether they are equal, or no output element differs by more than `tolerance`; None if not decided.

        Raises:
            ValueError: If `tolerance` is less than 0 or NaN.
        """
        if tolerance is not None and not tolerance >= 0:
            raise ValueError(f"tolerance must be at least 0, got {tolerance}")
        if self.verdict == "equal" or (tolerance is not None and self.bound <= tolerance):
            return True
        if self.verdict == "different" if tolerance is None else self.difference > tolerance:
            return False
        return None

    def verdict_for(self, tolerance: float | None) -> tuple[Verdict, str]:
        """The verdict where differences up to `tolerance` are allowed, and why; without one, whether they are equal."""
        is_within = self.is_within(tolerance)
        if tolerance is None or self.verdict == "equal":
            return self.verdict, "" if is_within is not None else "whether they are equal is not decided"
        if is_within is None:
            bound = f"the bound, {self.bound:.6g}, is above" if np.isfinite(self.bound) else "there is no bound to meet"
            return "undecided", f"{bound} the tolerance, {tolerance:g}, and no difference above it was found"
        if is_within:
            return "within", f"the bound, {self.bound:.6g}, is not above the tolerance, {tolerance:g}"
        return "different", f"a difference, {self.difference:.6g}, is above the tolerance, {tolerance:g}"

    def summary(self, tolerance: float | None = None) -> dict[str, object]:
        """What `str` says, and the witness, for JSON: lists for arrays, None for what is infinite."""
        verdict, reason = self.verdict_for(tolerance)
        numbers = {name: getattr(self, name) for name in ("difference", "bound")}
        return {
            "verdict": verdict,
            "reason": reason or None,
            **{name: number if np.isfinite(number) else None for name, number in numbers.items()},
            "tolerance": tolerance,
            "assumption": ASSUMPTION if np.isfinite(self.bound) else None,
            "origin": [list(names) for names in self.origin],
            "note": self.note or None,
            "witness": [array.tolist() for array in self.witness],
        }

    def text(self, tolerance: float | None = None) -> str:
        """The verdict for a tolerance in words."""
        verdict, reason = self.verdict_for(tolerance)
        found = f"the largest difference found is {self.difference:.3g}"
        if np.isinf(self.difference):
            found = "their outputs have other sizes, or other infinities or NaN"
        lines = [f"{verdict}: {found}", reason]
        if any(self.origin):
            lines.append("they part at " + " and ".join(", ".join(names) or "nothing" for names in self.origin))
        if np.isfinite(self.bound):
            lines.append(f"in the box they differ by {self.bound:.3g} at most, {ASSUMPTION}")
        lines.append(self.note)
        return "\n".join(filter(None, lines))

    def __str__(self) -> str:
        return self.text()

    __repr__ = __str__


def compare(sides: tuple[Side, Side], box: Box | None, shapes: Sequence[Sequence[int]], examples: Array) -> Comparison:
    """Compare two networks.

    Args:
        sides: Those of a and b.
        box: Of inputs; None for all.
        shapes: Of the inputs, for a batch of one sample.
        examples: Inputs (examples, elements) to begin with.

    Raises:
        ValueError: If they take inputs with other numbers of elements.
        MemoryError: If their matrices need more memory than is left.
    """
    sizes = [side.graph.inputs[0].size for side in sides]
    if sizes[0] != sizes[1]:
        raise ValueError(f"a and b must take the same inputs, and have {sizes[0]} and {sizes[1]} elements of them")
    limits = None if box is None else box.rounded(*(dtype for side in sides for dtype in side.dtypes))
    ends = [side.graph.outputs[0].size for side in sides]
    probes, problem = _probes(sides, examples, limits)
    units = _matched(sides, probes, limits) if not problem and ends[0] == ends[1] else None
    apart = (None, None) if units is None else units.apart
    if ends[0] != ends[1]:
        found = Found(np.inf, probes[0], True)
    else:
        inside = None if box is None else Interval(box.low, box.high)
        found = search(sides, inside, examples, is_exact=not problem, apart=apart[1])
    bound = np.inf if units is None or units.ranges is None else _bound(probes, units)
    bound = np.inf if found.difference > bound else bound  # kernels for which the bound does not hold
    verdict: Verdict = "within" if np.isfinite(bound) else "undecided"
    if units is not None and not any(apart):
        verdict = "equal"
    names: tuple[Names, Names] = ((), ())
    if not problem and verdict != "equal":
        names = origin(sides, np.concatenate([probes, found.point[None]]), apart)
    verdict = "different" if found.is_more else verdict
    parts = np.split(found.point, np.cumsum([int(np.prod(shape)) for shape in shapes])[:-1])
    witness = tuple(part.reshape(shape) for part, shape in zip(parts, shapes, strict=True))
    return Comparison(verdict, found.difference, witness, names, bound, problem or _note(sides, box, verdict))


def _probes(sides: Sequence[Side], examples: Array, limits: Interval | None) -> tuple[Array, str]:
    """Random inputs, and why the sides do not run on them in float64, or ""."""
    random = np.random.default_rng(0)
    size = PROBES, sides[0].graph.inputs[0].size
    reach = examples if limits is None else np.stack(limits)
    anywhere = max(1.0, float(np.abs(reach).max(initial=0))) * random.standard_normal(size) * SCALES
    for probes in (as_given(each, sides, None) for each in (anywhere, *between(limits, examples, PROBES))):
        try:
            for side in sides:
                side.values(probes)
        except NotExactError as error:
            problem = str(error)
        else:
            return probes, ""
    return probes, problem


def _note(sides: Sequence[Side], box: Box | None, verdict: Verdict) -> str:
    """Which sides are for another box than this one, if that may be why they are not equal."""
    own = "" if box is None else box.json()
    found = [f"{name} is for {box_in_words(side.box)}" for name, side in zip("ab", sides, strict=True) if side.box]
    if verdict in ("equal", "within") or all(side.box in ("", own) for side in sides):
        return ""
    return f"{', '.join(found)}, and another network elsewhere; pass that box, as box or spec (--box or --spec)"


def _bound(probes: Array, units: Units) -> float:
    """The bound of the difference of two networks that have units.

    One may be what the other is in the box, without the ReLUs that do not bend there: then it has fewer of them, though
    it may carry values by others.
    """
    least = largest_difference(units)
    fewer, more = sorted(zip(units.sides, units.ranges or (), strict=True), key=lambda pair: pair[0].relus)
    if fewer[0].relus == more[0].relus:
        return least
    for pairs, settled in (((fewer, more), (1,)), ((more, fewer), (0, 1))):
        if any(units.apart):
            units = Units([side for side, _ in pairs], probes, [ranges for _, ranges in pairs], settled)
            least = min(least, largest_difference(units))
    return least


@np.errstate(over="ignore", invalid="ignore")
def _matched(sides: Sequence[Side], probes: Array, limits: Interval | None) -> Units | None:
    """The units of both, with their bounds if there is a box, and they have any; None if they overflow."""
    ranges = None
    if limits is not None and all(side.has_bounds for side in sides):
        with contextlib.suppress(ValueError):  # numbers may overflow
            ranges = [side.ranges(limits) for side in sides]
    try:
        units = Units(sides, probes, ranges)
        if any(units.apart):
            scaled = Units(sides, probes, ranges, scaled=True)
            return units if any(scaled.apart) else scaled
    except OverflowError:
        return None
    return units
