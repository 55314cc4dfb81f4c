"""Which of the two sides of the package a call is for: a convolution layer, or a whole module."""

from __future__ import annotations

from typing import TypeGuard

from torch import Tensor, nn

from conv2affine.convolution.arguments import check_layer

__all__ = ["is_network"]


def is_network(module: object, example_inputs: object) -> TypeGuard[nn.Module]:
    """Whether this is a module, but no convolution layer, and example inputs for it."""
    examples = example_inputs if isinstance(example_inputs, tuple | list) else [example_inputs]
    if not isinstance(module, nn.Module) or not examples or not all(isinstance(x, Tensor) for x in examples):
        return False
    try:
        check_layer(module)
    except TypeError:
        return True
    return False
