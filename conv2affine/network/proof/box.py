"""A box of inputs, as users give it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.proof.forward import Interval

# Each bound is a number, what broadcasts to an input, or one of these for each input.
Bound = float | Tensor | Array | Sequence["Bound"] | Mapping[str, "Bound"]
BoxBounds = tuple[Bound, Bound]
# What is written out number by number where a box is described.
MAX_NUMBERS = 64
# The points where a chain is compared with the model: both ends, and random corners and inner points.
CORNERS, INNER = 3, 3


@dataclass(frozen=True, eq=False)
class Box:
    """low <= x <= high, for each element x of the inputs.

    Args:
        low: float64, the elements of all inputs one after the other.
        high: Likewise.
        shapes: Of the inputs, for one sample.
    """

    low: Array
    high: Array
    shapes: tuple[tuple[int, ...], ...]

    def __str__(self) -> str:
        low, high, width = float(self.low.min()), float(self.high.max()), float((self.high - self.low).max())
        return f"{len(self.low):,} inputs from {low:.6g} to {high:.6g}, each within {width:.6g}"

    def rounded(self, *dtypes: torch.dtype) -> Interval:
        """The bounds of the numbers in the box and of what they are rounded to in these dtypes, all finite."""
        ends = [(self.low, self.high)]
        for dtype in filter(lambda dtype: dtype.is_floating_point, dtypes):
            low, high = (torch.from_numpy(end).to(dtype).double().numpy() for end in (self.low, self.high))
            if not (np.isfinite(low).all() and np.isfinite(high).all()):
                raise ValueError(
                    f"box must be finite in {dtype}, and is from {self.low.min():.6g} to {self.high.max():.6g}; "
                    "choose a smaller one, or another dtype"
                )
            ends.append((low, high))
        lows, highs = zip(*ends, strict=True)
        return Interval(np.minimum.reduce(lows), np.maximum.reduce(highs))

    def points(self, dtypes: Sequence[torch.dtype]) -> list[Tensor]:
        """A few points of each input, (points, *shape); of whole numbers, where the dtype is one of those."""
        generator = np.random.default_rng(0)
        size = len(self.low)
        corners = np.where(generator.random((CORNERS, size)) < 0.5, self.low, self.high)
        inner = np.minimum(self.low + (self.high - self.low) * generator.random((INNER, size)), self.high)
        ends = np.cumsum([prod(shape) for shape in self.shapes])[:-1]
        result = []
        for points, shape, dtype in zip(
            np.split(np.stack([self.low, self.high, *corners, *inner]), ends, axis=1), self.shapes, dtypes, strict=True
        ):
            if not (dtype.is_floating_point or dtype is torch.bool):
                points = _whole(points, dtype)
            result.append(torch.from_numpy(points).to(dtype).view(len(points), *shape))
        return result

    def json(self) -> str:
        """What a file says of it: all numbers; where they are many, a hash of low and high as float64."""
        if len(self.low) <= MAX_NUMBERS:
            return json.dumps({"low": self.low.tolist(), "high": self.high.tolist()})
        ends = np.stack([self.low, self.high]).astype("<f8")
        return json.dumps({"box": str(self), "sha256": hashlib.sha256(ends.tobytes()).hexdigest()})


def box_in_words(text: str) -> str:
    """What `Box.json` wrote, for people; or the text itself, of which the first words, if something else wrote it."""
    try:
        found = json.loads(text)
        return str(found.get("box") or Box(np.array(found["low"], float), np.array(found["high"], float), ()))
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return " ".join(text[:100].split())


def read_box(box: Any, shapes: Mapping[str, Sequence[int]]) -> Box:
    """The box that a user gives.

    Args:
        box: A pair of bounds. Each is a number, an array or tensor that broadcasts to one sample, or, of several
            inputs, a tuple of these or a dict by name; or the vector of all elements, in order.
        shapes: Of the inputs by name, for a batch of one sample.

    Raises:
        TypeError: If it is no pair, or a bound holds something else than real numbers.
        ValueError: If a bound does not fit its input, is not finite, or is larger below than above.
    """
    if not isinstance(box, tuple | list) or len(box) != 2:
        raise TypeError(f"box must be a pair of bounds, (low, high), got {type(box).__name__}; as in box=(0, 1)")
    low, high = (_flat(f"box[{number}]", bound, shapes) for number, bound in enumerate(box))
    is_empty = low > high
    if is_empty.any():
        element = int(is_empty.argmax())
        raise ValueError(
            f"box must have low <= high, and {is_empty.sum()} of {len(low)} elements have not, the first of them "
            f"element {element}: {low[element]} > {high[element]}"
        )
    return Box(low, high, tuple(tuple(shape) for shape in shapes.values()))


def _flat(name: str, bound: Any, shapes: Mapping[str, Sequence[int]]) -> Array:
    """The elements of a bound for all inputs, one after the other."""
    ends = np.cumsum([prod(shape) for shape in shapes.values()])
    if len(ends) > 1 and isinstance(bound, Tensor | np.ndarray) and tuple(bound.shape) == (ends[-1],):
        bound = tuple(np.split(_numbers(name, bound), ends[:-1]))
    if isinstance(bound, Mapping):
        if bound.keys() != shapes.keys():
            raise ValueError(f"{name} must have the names of the inputs ({', '.join(shapes)}), got {', '.join(bound)}")
        bound = tuple(bound[key] for key in shapes)
    elif not (isinstance(bound, tuple | list) and len(shapes) > 1):
        bound = (bound,) * len(shapes)
    if len(bound) != len(shapes):
        raise ValueError(f"{name} must have a bound for each of {len(shapes)} inputs, got {len(bound)}")
    parts = []
    for (key, shape), part in zip(shapes.items(), bound, strict=True):
        array = _numbers(name, part)
        try:
            parts.append(array if array.shape == (prod(shape),) else np.broadcast_to(array, shape).ravel())
        except ValueError as error:
            raise ValueError(
                f"{name} must be a number, or broadcast to {tuple(shape)}, one sample of {key!r}, or be the vector of "
                f"its elements, or of the {ends[-1]} of all inputs, got shape {array.shape}"
            ) from error
    flat = np.concatenate(parts)
    if not np.isfinite(flat).all():
        raise ValueError(f"{name} must be finite, got {flat[~np.isfinite(flat)][0]}; bound every element of the inputs")
    return flat


def _numbers(name: str, given: Any) -> Array:
    """A bound as float64."""
    if isinstance(given, Tensor):
        if given.is_complex() or given.is_meta or given.layout is not torch.strided:
            raise TypeError(
                f"{name} must hold real numbers, got a tensor of {given.dtype}, {given.layout}, on {given.device}"
            )
        return given.detach().cpu().double().numpy()
    try:
        array = np.asarray(given)
    except ValueError as error:  # lists of several lengths
        raise ValueError(f"{name} must be a number or an array, got {type(given).__name__}: {error}") from error
    if not np.can_cast(array.dtype, np.float64):
        of = f" of {array.dtype}" if array.ndim else ""
        raise TypeError(f"{name} must hold real numbers, got {type(given).__name__}{of}")
    return array.astype(np.float64)


def _whole(points: Array, dtype: torch.dtype) -> Array:
    """The nearest whole numbers in a box whose ends come first."""
    limits = torch.iinfo(dtype)
    low, high = np.maximum(np.ceil(points[0]), limits.min), np.minimum(np.floor(points[1]), limits.max)
    if (low > high).any():
        element = int((low > high).argmax())
        raise ValueError(
            f"box must hold a number of {dtype} for each element, and has none from {points[0, element]} to "
            f"{points[1, element]}"
        )
    return np.clip(np.rint(points), low, high)
