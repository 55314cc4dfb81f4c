"""A PyTorch operator with its constant arguments, to run a step as it was."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.fx.node import map_aggregate

from conv2affine.network.graph import Slot, Value

__all__ = ["AtenCall", "operator_name", "origin"]


@dataclass(frozen=True, eq=False)
class AtenCall:
    """A PyTorch operator with its constant arguments.

    Args:
        target: The operator.
        args: Its arguments, with a `Slot` for each input.
        kwargs: Likewise.
        results: Which of its results are used; None if it has only one.
        reason: Why it is kept, where a rule covers it with other arguments.
    """

    target: Any
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[int, ...] | None = None
    reason: str = ""

    @property
    def reads_memory(self) -> bool:
        """Whether it takes elements as they lie in memory: `as_strided`, and views as another dtype."""
        return bool(self.target.overloadpacket.__name__.startswith(("as_strided", "view")))

    @property
    def meaning(self) -> tuple[Any, ...]:
        """What determines its results."""
        return self.target, self.args, self.kwargs, self.results

    @classmethod
    def of(cls, target: Any, args: Any, kwargs: Any) -> tuple[AtenCall, list[Value]]:
        """The operator and its inputs: the values among its arguments, each once."""
        inputs: list[Value] = []

        def slot(argument: Any) -> Any:
            if not isinstance(argument, Value):
                return argument
            if argument not in inputs:
                inputs.append(argument)
            return Slot(inputs.index(argument))

        args, kwargs = map_aggregate((args, kwargs), slot)
        return cls(target, args, kwargs), inputs

    def filled(self, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Its arguments, with inputs in their places."""
        args, kwargs = map_aggregate(
            (self.args, self.kwargs), lambda part: inputs[part.number] if isinstance(part, Slot) else part
        )
        return args, kwargs

    def run(self, inputs: Sequence[Any], *, double: bool = False) -> list[Any]:
        """Its results that are used, for arrays as inputs; if `double`, with float64 constants too."""

        def widened(argument: Any) -> Any:
            is_floating = isinstance(argument, Tensor) and argument.is_floating_point()
            return argument.detach().double() if double and is_floating else argument

        args, kwargs = self.filled([torch.from_numpy(np.ascontiguousarray(array)) for array in inputs])
        args, kwargs = map_aggregate((args, kwargs), widened)
        result = self.target(*args, **kwargs)
        return [(result if self.results is None else result[number]).numpy() for number in self.results or (0,)]


def origin(node: fx.Node) -> str:
    """The module that a node comes from; the name of the node where that is the whole model."""
    modules = node.meta.get("nn_module_stack") or {"": ("", None)}
    return list(modules.values())[-1][0] or node.name


def operator_name(target: Any) -> str:
    """PyTorch's name of an operator, without its overload."""
    return str(target._schema.name).removeprefix("aten::")
