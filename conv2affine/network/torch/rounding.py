"""What rounding changes in the results of a model: run in float64, and with noise after each operator."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["WIDE", "WIDER", "InDouble", "Noise", "wider"]

WIDE = (torch.float64, torch.complex128)
WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}
WIDER |= dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64)


def wider(item: Any) -> Any:
    """A tensor in float64, or that dtype, in the place of a narrower one; anything else as it is."""
    if isinstance(item, Tensor):
        return item.to(WIDER[item.dtype]) if item.dtype in WIDER else item
    return WIDER.get(item, item) if isinstance(item, torch.dtype) else item


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, all that inputs reach is computed once more in float64, whatever dtypes operators are told to give.

    What they do not reach is computed only as it is without.

    Args:
        inputs: The inputs, which the model may write to.
    """

    def __init__(self, inputs: Iterable[Tensor]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.values = WeakTensorKeyDictionary({x: wider(x.clone()) for x in inputs})

    def exact(self, item: Any) -> Any:
        """A tensor in float64, as computed from the inputs in float64; anything else as it is, but for dtypes."""
        return self.values[item] if isinstance(item, Tensor) and item in self.values else wider(item)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = (args, kwargs or {})
        if not any(isinstance(x, Tensor) and x in self.values for x in pytree.tree_leaves(given)):
            return func(*given[0], **given[1])
        for argument, x in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(x, Tensor) and x not in self.values and x.dtype in WIDER:
                raise TypeError(f"{func} would write to {x.dtype} what is computed in float64")
        exact_args, exact_kwargs = pytree.tree_map(self.exact, given)
        exact = func(*exact_args, **exact_kwargs)
        results = func(*given[0], **given[1])
        for result, value in zip(pytree.tree_leaves(results), pytree.tree_leaves(exact), strict=True):
            if isinstance(result, Tensor):
                self.values[result] = value
        return results


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, what each operator gives is multiplied by random numbers from 1 - size to 1 + size.

    An output then moves by about size * sqrt(sum of t^2) over the terms t of the sums of which it is made, as roundings
    of this size move it: each element by its own scale.

    Args:
        size: As `torch.finfo(dtype).eps`.
    """

    def __init__(self, size: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.size = size
        self.generator = torch.Generator().manual_seed(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        returns = func._schema.returns
        if len(returns) == 1:
            return pytree.tree_map(lambda x: self.move(x, returns[0].alias_info), results)
        several = zip(results or (), returns, strict=True)
        return tuple(self.move(x, result.alias_info) for x, result in several) or None

    def move(self, x: Any, alias: Any) -> Any:
        """One result; a view stays as it is, and what was written to is moved in place."""
        if not isinstance(x, Tensor) or x.dtype not in (*WIDER, *WIDE) or (alias is not None and not alias.is_write):
            return x
        factor = torch.empty(x.shape, dtype=x.dtype.to_real(), device="cpu")
        factor = factor.uniform_(1 - self.size, 1 + self.size, generator=self.generator).to(x.device)
        return x * factor if alias is None else x.mul_(factor)
