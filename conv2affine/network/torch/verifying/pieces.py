"""Runs of the affine pieces and steps that a model was converted to."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from conv2affine.network.torch.exporter import Exporter
from conv2affine.network.torch.importing.importer import TorchNetwork
from conv2affine.network.torch.modules import Affine
from conv2affine.network.torch.noise import wider
from conv2affine.network.torch.verifying.runs import Apart, listed


def piece_outputs(
    network: TorchNetwork, inputs: Sequence[Tensor], expected: list[Any], is_double: bool, flat: bool
) -> list[Any]:
    """The outputs of the affine pieces and steps in float64.

    Where the model cannot run in float64, as one that reads bytes, a step need not either: they are None then.
    """

    def run(*inputs: Tensor) -> Any:
        at_once = _AtOnce(inputs)
        Exporter(network, wider, lambda _, matrix, bias: Affine(matrix, bias), at_once.root, at_once).run()
        return at_once.result

    try:
        return listed((Apart(run, expected) if flat else run)(*map(wider, inputs)), flat)
    except RuntimeError as error:
        if is_double:
            raise RuntimeError(
                f"the result must run in float64, as the model does, and fails: {error}; please report this"
            ) from error
        return [None] * len(expected)


class _AtOnce:
    """Takes the calls of an `fx.Graph`, and computes what it would record: generating code takes longer than a run."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        self.root, self.inputs = nn.Module(), iter(inputs)
        self.result: Any = None

    def placeholder(self, name: str) -> Tensor:
        return next(self.inputs)

    def get_attr(self, name: str) -> Any:
        return getattr(self.root, name)

    def call_function(self, function: Any, args: Any, kwargs: Any = None) -> Any:
        return function(*args, **(kwargs or {}))

    def call_method(self, name: str, args: Any) -> Any:
        return getattr(args[0], name)(*args[1:])

    def call_module(self, name: str, args: Any) -> Any:
        return getattr(self.root, name)(*args)

    def output(self, result: Any) -> None:
        self.result = result
