"""The search for an input where two networks differ: random inputs, corners, and steps along the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch

from conv2affine.network.comparison import RUNS, distance, tolerance_of
from conv2affine.network.equality.forms import Mask
from conv2affine.network.equality.side import NotExactError, NotTakenError, Side
from conv2affine.network.graph import Value
from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval

# Random inputs without a box, in units of the largest element of the example; and in a box, its corners and the rest.
SCALES = (1 / 64, 1 / 2, 1, 4)
EACH = 3
INSIDE = 16  # more of each kind, where a network does not run on all of these
# What is known exactly may differ by this many roundings of everything that is added up.
EXACT_ROUNDINGS = 8
STARTS, STEPS = 4, 24
FAR = 4  # how much farther out, without a box, inputs are looked for that make a value large


@dataclass(frozen=True)
class Found:
    """The largest difference that was found.

    Args:
        difference: Of one element of the outputs, as both compute them.
        point: The inputs where.
        is_more: Whether it is more than rounding explains.
    """

    difference: float
    point: Array
    is_more: bool


def inputs(size: int, box: Interval | None, examples: Array) -> Array:
    """Random inputs, the same in every call, after the examples."""
    random = np.random.default_rng(0)
    if box is None:
        largest = max(1.0, float(np.abs(examples).max(initial=0)))
        noise = random.standard_normal((EACH * len(SCALES), size)) * np.repeat(SCALES, EACH)[:, None] * largest
        return np.concatenate([examples, noise])
    low, high = box
    corners = np.where(random.random((2 * EACH, size)) < 0.5, low, high)
    inner = np.clip(low + (high - low) * random.random((2 * EACH, size)), low, high)
    inside = examples[((examples >= low) & (examples <= high)).all(axis=1)]
    return np.concatenate([inside, [low, high, low / 2 + high / 2], corners, inner])


def between(box: Interval | None, examples: Array, count: int) -> list[Array]:
    """Random inputs in a box, or between 0 and the examples, for networks that take some numbers only.

    These first, and then some where all elements of an input have the same part of them, which leaves matrices positive
    definite.
    """
    random = np.random.default_rng(0)
    low, high = box or (0.0, examples[random.integers(len(examples), size=count)])
    return [low + random.random((count, parts)) * (high - low) for parts in (examples.shape[1], 1)]


def as_given(points: Array, sides: Sequence[Side], box: Interval | None) -> Array:
    """Points in the dtypes of all inputs: both networks are given the same numbers."""
    for dtype in sorted({dtype for side in sides for dtype in side.dtypes}, key=lambda each: -torch.finfo(each).eps):
        rounded = torch.from_numpy(points).to(dtype)
        if box is not None and dtype is not torch.bfloat16:  # which NumPy lacks
            numbers = rounded.numpy()
            up, down = numbers.astype(np.float64) < box.low, numbers.astype(np.float64) > box.high
            numbers = np.where(
                up, np.nextafter(numbers, np.inf), np.where(down, np.nextafter(numbers, -np.inf), numbers)
            )
            rounded = torch.from_numpy(numbers)
        points = rounded.double().numpy()
    return points


@np.errstate(invalid="ignore")  # a network may compute infinities or NaN
def search(
    sides: Sequence[Side], box: Interval | None, examples: Array, *, is_exact: bool, apart: Value | None
) -> Found:
    """Look for the input where two networks differ most.

    Args:
        sides: Both, whose outputs have as many elements.
        box: Where to look; None for everywhere.
        examples: Inputs (examples, elements) to begin with.
        is_exact: Whether both can be computed in float64.
        apart: A value of the second that the first does not have: inputs are looked for where it is large.
    """
    graph = sides[0].graph
    points = as_given(inputs(graph.inputs[0].size, box, examples), sides, box)
    if not graph.outputs[0].size:
        return Found(0.0, points[0], False)
    try:
        return _farthest(sides, _climb(sides, points, box, apart) if is_exact else points, is_exact)
    except (NotExactError, NotTakenError) as error:  # lookups and factorisations take some numbers only
        points = np.concatenate([points, *(as_given(each, sides, box) for each in between(box, examples, INSIDE))])
        found = [each for point in points if (each := _found_at(sides, point, is_exact))]
        if not found:
            raise ValueError(
                f"no input was found on which a and b both run; pass a box, or a spec, of such inputs: {error}"
            ) from error
        return max(found, key=lambda each: (each.is_more, each.difference))


def _found_at(sides: Sequence[Side], point: Array, is_exact: bool) -> Found | None:
    """The difference at a point, if both networks run on it."""
    with suppress(NotExactError, NotTakenError):
        return _farthest(sides, point[None], is_exact)
    return None


def _climb(sides: Sequence[Side], points: Array, box: Interval | None, apart: Value | None) -> Array:
    """More points, where what the second has alone is large, and where the outputs differ most."""
    if apart is not None:
        points = np.concatenate([points, _enlarge(sides[1], points, box, apart)])
    return np.concatenate([points, as_given(_ascend(sides, points, box), sides, box)])


def _farthest(sides: Sequence[Side], points: Array, is_exact: bool) -> Found:
    """The point where the outputs differ most."""
    own = [side.run(points) for side in sides]
    off = distance(*map(torch.from_numpy, own)).nan_to_num(torch.inf, torch.inf).numpy()  # infinite where one is
    is_more = _is_more(sides, points, own, off, is_exact)
    ranked = np.where(is_more, off, -1) if is_more.any() else off
    where = int(ranked.max(axis=1).argmax())
    return Found(float(off[where].max()), points[where], bool(is_more.any()))


def _is_more(sides: Sequence[Side], points: Array, own: Sequence[Array], off: Array, is_exact: bool) -> Mask:
    """Which differences rounding does not explain."""
    eps = max(2 * side.unit for side in sides)
    tolerance = tolerance_of(eps)
    if not is_exact:
        largest = np.nan_to_num(np.abs(own[0]), posinf=0).max(axis=1, keepdims=True)
        result: Mask = off > tolerance * largest
        return result
    moved = np.zeros_like(off)
    exact, is_finite = [], []
    for side in sides:
        exact.append(side.output(side.values(points)))
        runs = [side.output(side.values(points, side.unit, seed)) for seed in range(1, RUNS + 1)]
        moved += np.max([np.abs(run - exact[-1]) for run in runs], axis=0) + side.unit * np.abs(exact[-1])
        is_finite.append(np.isfinite([exact[-1], *runs]))
    gap = np.abs(exact[1] - exact[0])
    more = (gap > EXACT_ROUNDINGS * moved) & (off > 0)
    floor = max(torch.finfo(side.dtype).tiny for side in sides)
    more |= off > tolerance * (np.abs(exact[0]) + moved / (eps / 2)) + floor
    for one, other in (is_finite, is_finite[::-1]):
        more |= one.all(axis=0) & ~other.any(axis=0)  # whatever the roundings are, the one is finite, and the other not
    return more


def _reach(x: Array, box: Interval | None) -> Interval:
    """Where points may be moved: in the box, or no farther from 0 than they are."""
    if box is not None:
        return Interval(*(bound + 0 * x for bound in box))
    largest = np.abs(x).max(axis=1, keepdims=True) + 0 * x
    return Interval(-largest, largest)


def _moved(x: Array, slope: Array, step: int, low: Array, high: Array) -> Array:
    """Points after a step along the sign of a gradient; each step is shorter than the one before."""
    moved: Array = np.clip(x + (high - low) / 2 * 0.5 ** (step / 4) * np.sign(slope), low, high)
    return moved


def _enlarge(side: Side, points: Array, box: Interval | None, value: Value) -> Array:
    """Points where elements of a value are large: what only comes into play there is seen."""
    random = np.random.default_rng(0)
    x: Array = points[np.abs(points).max(axis=1).argsort()[::-1][:STARTS]].repeat(EACH, axis=0)
    low, high = _reach(FAR * x, box)
    weights = np.zeros((len(x), value.size))
    seen = np.abs(side.values(x)[value])
    elements = np.where(random.random(len(x)) < 0.5, seen.argmax(axis=1), random.integers(value.size, size=len(x)))
    weights[np.arange(len(x)), elements] = np.where(random.random(len(x)) < 0.5, -1.0, 1.0)
    for step in range(STEPS // 2):
        x = _moved(x, side.gradient(side.values(x), weights, value), step, low, high)
    return x


def _ascend(sides: Sequence[Side], points: Array, box: Interval | None) -> Array:
    """Points where the difference of one output is large, by steps along the sign of its gradient."""
    values = [side.values(points) for side in sides]
    gap = np.nan_to_num(sides[1].output(values[1]) - sides[0].output(values[0]))
    at = np.abs(gap).max(axis=1).argsort()[::-1][:STARTS]
    x, output = points[at], np.abs(gap[at]).argmax(axis=1)
    low, high = _reach(x, box)
    best: Array = x.copy()
    largest = np.abs(gap[at, output])
    for step in range(STEPS):
        values = [side.values(x) for side in sides]
        gap = sides[1].output(values[1]) - sides[0].output(values[0])
        here = gap[np.arange(len(x)), output]
        better = np.abs(here) > largest
        best[better], largest[better] = x[better], np.abs(here)[better]
        weights = np.zeros_like(gap)
        weights[np.arange(len(x)), output] = np.where(here < 0, -1.0, 1.0)
        slope = sides[1].gradient(values[1], weights) - sides[0].gradient(values[0], weights)
        x = _moved(x, slope, step, low, high)
    return best
