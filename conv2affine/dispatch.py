"""Which of the two sides of the package a call is for: a convolution layer, or a whole module."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from conv2affine.convolution.arguments import check_layer

__all__ = ["is_network"]


def is_network(model: object, example_inputs: object) -> bool:
    """Whether there are example inputs, and what they are for is no convolution layer, or the weight of one."""
    examples = example_inputs if isinstance(example_inputs, tuple | list) else [example_inputs]
    if isinstance(model, Tensor) or not examples or not all(map(_is_example, examples)):
        return False
    try:
        check_layer(model)
    except TypeError:
        return True
    return False


def _is_example(x: object) -> bool:
    """A tensor, several by name, or an array, of which the network side says that it is none."""
    return isinstance(x, Tensor | Mapping) or len(getattr(x, "shape", ())) > 0
