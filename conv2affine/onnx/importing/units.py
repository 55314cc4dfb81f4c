"""Reads operators that are affine in their first input, where all others are constant, by running them.

They take a batch of unit vectors; what each sample has of its own in the other inputs is repeated for each.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from conv2affine.network.matrices.matrix import Array
from conv2affine.network.rules import positions
from conv2affine.network.rules.operands import Context, Map, NoRuleError, constant
from conv2affine.onnx.running.runner import RunError, runner


def _repeat(argument: Array, samples: int) -> Array:
    return np.concatenate([argument] * samples)


def _repeat_table(argument: Array, samples: int) -> Array:
    """A table of angles has a first axis for samples, or is one for all, which positions choose from."""
    return _repeat(argument, samples) if argument.ndim == 3 else argument


def _number(argument: Array, samples: int) -> Array:
    """The sample that each region belongs to."""
    return np.repeat(np.arange(samples), len(argument)) + _repeat(argument, samples)


def _resize(argument: Array, samples: int) -> Array:
    """The size of the result, its samples first."""
    return np.concatenate([[samples], argument[1:]])


# What becomes of the other inputs for a batch of samples, by their places.
OTHERS: Mapping[str, Mapping[int, Callable[[Array, int], Array]]] = {
    "AffineGrid": {1: _resize},
    "DeformConv": {2: _repeat, 4: _repeat},
    "RoiAlign": {1: _repeat, 2: _number},
    "RotaryEmbedding": {1: _repeat_table, 2: _repeat_table, 3: _repeat},
}


def by_units(context: Context, x: Any, *others: Any, **attributes: Any) -> Map:
    """The map of an operator of `OTHERS`."""
    if attributes.get("mode", "avg") != "avg":
        raise NoRuleError(f"mode = {attributes['mode']}")

    def run(batch: Array) -> Array:
        feeds = {"x0": batch}
        for number, other in enumerate(others, 1):
            if other is not None:
                numbers, repeat = constant(other), OTHERS[context.call.op_type].get(number)
                array = numbers if other.dtype.kind == "f" else other
                feeds[f"x{number}"] = array if repeat is None else repeat(array, len(batch))
        try:
            [result] = runner(context.call.model(feeds))(feeds)
        except RunError as error:
            raise NoRuleError(str(error)) from error
        return np.asarray(result)

    return positions.by_units(context, x, run)
