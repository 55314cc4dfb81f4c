"""Models whose forward branches on what it holds, as `if self.scale > 0`, which torch.export cannot trace.

A run records each number that Python takes from a tensor which no input reaches; the trace takes the same numbers.
Whether all numbers are finite is such a choice too, unless an operator such as log comes before, whose results may be
infinite: a conversion is for finite inputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from conv2affine.network.torch.importing.call import written_arguments
from conv2affine.network.torch.models.surroundings import users_device

# Functions that give Python numbers for the elements of tensors, or compare all of them.
TAKING = (
    *(Tensor.item, Tensor.tolist, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(torch.is_nonzero, Tensor.is_nonzero, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
)
FINITE = (torch.isnan, Tensor.isnan, torch.isinf, Tensor.isinf, torch.isfinite, Tensor.isfinite)
# Operators whose results are not finite for some inputs of ordinary size; div where the divisor depends on the inputs.
SINGULAR = frozenset(
    (
        *("acos", "acosh", "asin", "atanh", "digamma", "div", "fmod", "lgamma", "linalg_inv_ex", "log", "log10"),
        *("log1p", "log2", "logit", "pow", "reciprocal", "remainder", "rsqrt", "sqrt", "tan"),
    )
)


class Choices(TorchFunctionMode):
    """Within it, a model takes the numbers that it took in a run.

    Args:
        model: Is run once, on copies of the inputs.
        inputs: Batch first.
    """

    def __init__(self, model: nn.Module, inputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.reached: _Reached | None = _Reached(inputs)
        self.taken: list[Any] = []
        self.is_complete = False  # once a number is taken of what inputs reach, others may depend on it
        try:
            with torch.no_grad(), users_device(inputs), self, self.reached:
                model(*(x.clone() for x in inputs))
        except Exception:  # the trace says why
            self.taken = []
        self.reached = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.reached is None and func in TAKING and self.taken:
            if func is not Tensor.tolist:
                return self.taken.pop(0)
            shape = tuple(args[0].shape)
            return np.array([self.taken.pop(0) for _ in range(prod(shape))], object).reshape(shape).tolist()
        result = func(*args, **kwargs)
        if self.reached is not None and func in FINITE:
            if _memory(result) not in self.reached.singular:
                self.reached.kept.pop(_memory(result), None)
        elif self.reached is not None and func in TAKING:
            self.is_complete |= self.reached.has((args, kwargs))
            # A list is taken number by number in a trace.
            taken = args[0].flatten().tolist() if func is Tensor.tolist else [result]
            self.taken += [] if self.is_complete else taken
        return result


class _Reached(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Keeps the tensors that inputs reach, by their memory."""

    def __init__(self, inputs: Sequence[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept = {_memory(x): x for x in inputs}
        self.singular: set[int] = set()  # those that may be infinite, or NaN

    def has(self, arguments: Any) -> bool:
        """Whether one of these tensors is reached."""
        return any(isinstance(x, Tensor) and _memory(x) in self.kept for x in pytree.tree_leaves(arguments))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if self.has((args, kwargs)):
            leaves = pytree.tree_leaves((result, written_arguments(func, args, kwargs)))
            changed = [x for x in leaves if isinstance(x, Tensor)]
            self.kept.update((_memory(x), x) for x in changed)
            if self.is_singular(func, args, kwargs):
                self.singular.update(map(_memory, changed))
        return result

    def is_singular(self, func: Any, args: Any, kwargs: Any) -> bool:
        """Whether results may be infinite or NaN, for inputs of ordinary size."""
        name = func.overloadpacket.__name__.removesuffix("_")
        if name in SINGULAR and (name != "div" or self.has(args[1:])):
            return True
        return any(isinstance(x, Tensor) and _memory(x) in self.singular for x in pytree.tree_leaves((args, kwargs)))


def _memory(x: Tensor) -> int:
    """The address of its elements; that of the object where they have none."""
    address = x.untyped_storage().data_ptr() if x.layout is torch.strided else 0
    return address or -id(x)
