"""The nonlinear steps that have a definition here, whatever file or program they come from; all are piecewise linear.

kind          inputs  parameters                    meaning, for each element
relu          x                                     max(x, 0)
leaky_relu    x       slope                         x if x > 0 else slope * x
clip          x       low, high                     min(max(x, low), high)
abs           x                                     |x|
maximum       a, b                                  max(a, b)
minimum       a, b                                  min(a, b)
window_max    x       windows                       y[r] = max over k of x[windows[r, k]]
window_min    x       windows                       y[r] = min over k of x[windows[r, k]]

All parameters are arrays: slope, low and high of shape (size of x,) or (), where low may be -inf and high inf; windows
of shape (size of y, most elements in a window), where -1 stands for no element.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from conv2affine.network.graph import Piece, Step, Value
from conv2affine.network.matrices.matrix import Array


def _window_max(x: Array, windows: Any) -> Array:
    """The largest element of each window, for each sample."""
    padded = np.pad(x, ((0, 0), (0, 1)), constant_values=-np.inf)  # -1 reads the last element
    largest: Array = padded[:, windows].max(axis=2)
    return largest


# What each kind does to a batch of flat vectors.
KINDS: dict[str, Callable[..., Array]] = {
    "relu": lambda x: np.maximum(x, 0),
    "leaky_relu": lambda x, slope: np.where(x > 0, x, slope * x),
    "clip": lambda x, low, high: np.minimum(np.maximum(x, low), high),
    "abs": np.abs,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "window_max": _window_max,
    "window_min": lambda x, windows: -_window_max(-x, windows),
}


def evaluate(node: Piece | Step, values: Mapping[Value, Array]) -> Array:
    """What a piece, or a step as its kind defines it, makes of a batch of flat vectors."""
    if isinstance(node, Piece):
        return node.map.evaluate(values)
    return KINDS[node.kind](*(values[source] for source in node.inputs), **node.parameters)


# For each kind of step, the number of its inputs, and its parameters.
FORMS: dict[str, tuple[int, tuple[str, ...]]] = {
    "relu": (1, ()),
    "leaky_relu": (1, ("slope",)),
    "clip": (1, ("low", "high")),
    "abs": (1, ()),
    "maximum": (2, ()),
    "minimum": (2, ()),
    "window_max": (1, ("windows",)),
    "window_min": (1, ("windows",)),
}
