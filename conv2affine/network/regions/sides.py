"""A piecewise-linear step around points: for each element the affine side that it is on, and the walls of that side.

Arrays have the axes (point, sample, element). A point has any number of samples: itself, others to compare with it, or
directions, for which constants do not count. A wall is a function that is <= 0 within the region of a point:

    at a knot of a bent function:      sign * (z - knot)        for each knot, sign = -1 above it
    at a candidate that is not taken:  sign * (z[candidate] - z[taken])        sign = -1 for a minimum
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from conv2affine.network.graph import Step
from conv2affine.network.matrices.expressions import Product
from conv2affine.network.matrices.matrix import Array, Matrix, Selection
from conv2affine.network.rules.bends import FUNCTIONS
from conv2affine.network.rules.piecewise import EPS, Piecewise


class Bent:
    """A step that bends each element by itself: output = slope * z + offset.

    Attributes:
        pattern: (points, elements), the number of bends that are below z.
        is_wall: (points, walls), one for each element and knot; False where the element does not bend there.
    """

    def __init__(self, function: Piecewise, z: Array) -> None:
        self.knots = function.knots  # (knots, elements)
        above = z[:, None] > self.knots
        number = above.sum(1)
        self.sign = np.where(above, -1.0, 1.0)
        self.slope, self.offset = (
            np.take_along_axis(lines, number, 0)[:, None] for lines in (function.slopes, function.offsets)
        )
        bends = function.slopes[1:] != function.slopes[:-1]
        self.pattern = (above & bends).sum(1)
        self.is_wall = np.broadcast_to(bends.ravel(), (len(z), bends.size))

    def forward(self, z: Array, constants: bool) -> tuple[Array, Array]:
        """The outputs and the walls."""
        walls = self.sign[:, None] * (z[:, :, None] - (self.knots if constants else 0))
        return self.slope * z + (self.offset if constants else 0), walls.reshape(*walls.shape[:2], -1)

    def backward(self, y: Array, size: int) -> Array:
        """The product of y with the derivative."""
        return self.slope * y

    def wall_backward(self, y: Array, size: int) -> Array:
        """The product of y with the derivative of the walls."""
        total: Array = (self.sign[:, None] * y.reshape(*y.shape[:2], *self.knots.shape)).sum(2)
        return total

    def by_element(self, walls: Any) -> Any:
        """(points, walls) -> (points, elements): whether one of an element's walls is marked."""
        return walls.reshape(len(walls), *self.knots.shape).any(1)

    def entries(self, rows: Matrix) -> tuple[Matrix, int]:
        """Rows that have the outputs' entries, and the most entries of the walls, for the rows of the inputs."""
        return rows, int(self.is_wall[0].reshape(self.knots.shape).sum(0) @ rows.counts(1))


class Choice:
    """A step that takes the largest of some inputs, or the smallest: output = z[index].

    Attributes:
        pattern: (points, outputs), the number of the candidate that is taken, the first of equal ones.
        is_wall: (points, walls), one for each output and candidate; False for the one that is taken.
    """

    def __init__(self, candidates: NDArray[np.int64], sign: int, z: Array) -> None:
        self.candidates, self.sign = candidates, sign  # (outputs, most candidates), where -1 is none
        self.pattern = np.where(candidates >= 0, sign * z[:, candidates], -np.inf).argmax(2)
        self.index = candidates[np.arange(len(candidates)), self.pattern]
        taken = np.arange(candidates.shape[1]) == self.pattern[..., None]
        self.is_wall = ((candidates >= 0) & ~taken).reshape(len(z), -1)

    def forward(self, z: Array, constants: bool) -> tuple[Array, Array]:
        """The outputs and the walls."""
        output = np.take_along_axis(z, self.index[:, None], 2)
        candidates, taken = z[:, :, self.candidates], output[..., None]
        walls = self.sign * (candidates - taken)
        # A difference that is only rounding is none: there is no wall between equal functions.
        walls[abs(walls) <= EPS * np.maximum(abs(candidates), abs(taken))] = 0
        return output, walls.reshape(*walls.shape[:2], -1)

    def backward(self, y: Array, size: int) -> Array:
        """The product of y with the derivative."""
        index = np.broadcast_to(self.index[:, None], (len(self.index), *y.shape[1:]))
        y = np.broadcast_to(y, index.shape)
        z = torch.zeros(*y.shape[:2], size, dtype=torch.float64)
        return z.scatter_add_(2, torch.tensor(index), torch.tensor(y)).numpy()

    def wall_backward(self, y: Array, size: int) -> Array:
        """The product of y with the derivative of the walls."""
        y = self.sign * y.reshape(*y.shape[:2], *self.candidates.shape)
        z = torch.zeros(*y.shape[:2], size + 1, dtype=torch.float64)  # -1 is the last, which is left out
        index = torch.from_numpy(self.candidates.ravel() % (size + 1)).expand(*y.shape[:2], -1)
        z.scatter_add_(2, index, torch.from_numpy(np.ascontiguousarray(y)).flatten(2))
        difference: Array = z.numpy()[:, :, :size] - self.backward(y.sum(3), size)
        return difference

    def by_element(self, walls: Any) -> Any:
        """(points, walls) -> (points, outputs): whether one of an output's walls is marked."""
        return walls.reshape(len(walls), *self.candidates.shape).any(2)

    def entries(self, rows: Matrix) -> tuple[Matrix, int]:
        """Rows that have the outputs' entries, and the most entries of the walls, for the rows of the inputs."""
        counts, cols = rows.counts(1), rows.shape[1]
        both = np.minimum(counts[self.candidates] + counts[self.index[0]][:, None], cols).ravel()
        return Product(Selection(self.index[0], len(counts)), rows), int(both[self.is_wall[0]].sum())


Side = Bent | Choice


def side_of(step: Step, z: Array) -> Side:
    """The side of a step where its inputs, one after the other, are z: (points, elements)."""
    if step.kind in ("maximum", "minimum"):
        candidates = np.arange(z.shape[1]).reshape(2, -1).T
    elif step.kind in ("window_max", "window_min"):
        candidates = step.parameters["windows"]
    else:
        line = Piecewise.line(np.ones(z.shape[1]), 0)
        return Bent(FUNCTIONS[step.kind](line, **step.parameters), z)
    return Choice(candidates, -1 if "min" in step.kind else 1, z)
