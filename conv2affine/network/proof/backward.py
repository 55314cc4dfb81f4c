"""A linear function of one value as a linear function of the values before it, at most as large.

Rows are columns here: `weights` (elements, functions) of a value x are the functions weights.T @ x, which are pushed
together. Each `error` includes the rounding of the push itself, in float64 and in any order of summation.

           /           relu(y) >= lower * y
    h     /.           relu(y) <= upper * y + offset      for l <= y <= h
        ./
     . /               lower is 1 where h > -l, else 0: of these two, the nearer one
    ._/_____
    l  0   h
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conv2affine.network.matrices.matrix import Array

Rows = NDArray[np.int64] | slice


@dataclass(frozen=True)
class Source:
    """An input, center -+ radius."""

    center: Array
    radius: Array
    error: Array

    def push(self, weights: Array) -> tuple[Array, dict[Any, Array]]:
        """The smallest value."""
        return self.center @ weights - (self.radius + self.error) @ np.abs(weights), {}


@dataclass(frozen=True)
class Affine:
    """y = sum over sources s of A_s x_s + bias.

    Args:
        matrices: A_s.T for each source.
        bias: One number for each y.
        error: How far y may be from that, and the rounding of the push.
    """

    matrices: Mapping[Any, Any]
    bias: Array
    error: Array

    def push(self, weights: Array) -> tuple[Array, dict[Any, Array]]:
        """The constant, and the weights of each source."""
        constant = self.bias @ weights - self.error @ np.abs(weights)
        return constant, {source: matrix @ weights for source, matrix in self.matrices.items()}


@dataclass(frozen=True)
class Bend:
    """relu(x), by lines.

    Args:
        source: x.
        size: How many elements x has, if it has more than relu(x).
        rows: Where those of relu(x) are among them.
        bent: Which elements have lines; the others are x itself.
        lower: Slopes of the lines below, through 0.
        upper: Slopes of the lines above.
        offset: Of the lines above, >= 0.
        error: The rounding of the push, for all elements.
    """

    source: Any
    size: int
    rows: Rows
    bent: NDArray[np.int64]
    lower: Array
    upper: Array
    offset: Array
    error: Array

    def push(self, weights: Array) -> tuple[Array, dict[Any, Array]]:
        """The constant, and the weights of x."""
        constant = -(self.error @ np.abs(weights))
        bent = weights[self.bent]
        negative = np.minimum(bent, 0)
        weights[self.bent] = np.where(bent > 0, self.lower[:, None], self.upper[:, None]) * bent
        if not isinstance(self.rows, slice):
            weights, part = np.zeros((self.size, weights.shape[1])), weights
            weights[self.rows] = part
        return constant + self.offset @ negative, {self.source: weights}


def lowest(weights: Mapping[Any, Array], steps: Iterable[tuple[Any, Source | Affine | Bend]]) -> Any:
    """Lower bounds of the sum over values x of weights[x].T @ x; `steps` go from the last value to the inputs."""
    waiting = dict(weights)
    total: Any = 0.0
    for value, step in steps:
        if value in waiting:
            constant, found = step.push(waiting.pop(value))
            total = total + constant
            for source, part in found.items():
                waiting[source] = waiting[source] + part if source in waiting else part
    return total
