"""What rounding changes in the results of a model: run in float64, and with noise after each operator."""

from __future__ import annotations

import random
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

__all__ = ["WIDE", "WIDER", "InDouble", "Noise", "wider"]

WIDE = (torch.float64, torch.complex128)
WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}
WIDER |= dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64)
# Number of random factors that are used in turn.
FACTORS = 2**16
# Operators that move or choose elements, and round none.
MOVES = frozenset(
    (
        *("cat", "stack", "clone", "copy", "constant_pad_nd", "index", "index_select", "gather", "select_scatter"),
        *("slice_scatter", "repeat", "roll", "flip", "relu", "clamp", "hardtanh", "max_pool2d_with_indices", "where"),
    )
)


def wider(item: Any) -> Any:
    """A tensor in float64, or that dtype, in the place of a narrower one; anything else as it is."""
    if isinstance(item, Tensor):
        return item.to(WIDER[item.dtype]) if item.dtype in WIDER else item
    return WIDER.get(item, item) if isinstance(item, torch.dtype) else item


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, what each operator computes is multiplied by random numbers from 1 - size to 1 + size.

    An output then moves by about size * sqrt(sum of t^2) over the terms t of the sums of which it is made, as roundings
    of this size move it: each element by its own scale.

    Args:
        size: As `torch.finfo(dtype).eps`.
    """

    def __init__(self, size: float) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        generator = torch.Generator().manual_seed(0)
        factors = torch.empty(2 * FACTORS, dtype=torch.float64, device="cpu")
        self.factors = factors.uniform_(1 - size, 1 + size, generator=generator)
        self.random = random.Random(0)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.disturbed(func, func(*args, **(kwargs or {})))

    def disturbed(self, func: Any, results: Any) -> Any:
        """The results of an operator with noise; as they are where it rounds nothing."""
        returns = func._schema.returns
        if func.overloadpacket.__name__.rstrip("_") in MOVES:
            return results
        if len(returns) == 1:
            return pytree.tree_map(lambda x: self.moved(x, returns[0].alias_info), results)
        several = zip(results or (), returns, strict=True)
        return tuple(self.moved(x, result.alias_info) for x, result in several) or None

    def moved(self, x: Any, alias: Any) -> Any:
        """One result; a view stays as it is, and what was written to is moved in place."""
        if not isinstance(x, Tensor) or x.dtype not in (*WIDER, *WIDE) or (alias is not None and not alias.is_write):
            return x
        # The same random numbers over and over, from another one on each time: new ones would take most of the time.
        start = self.random.randrange(FACTORS)
        factors = self.factors[start : start + FACTORS].to(x.device, x.dtype.to_real())
        copy = x.clone()  # its elements fill its memory
        elements = copy.as_strided((copy.numel(),), (1,))
        turns = copy.numel() // FACTORS * FACTORS
        elements[:turns].view(-1, FACTORS).mul_(factors)
        elements[turns:].mul_(factors[: copy.numel() - turns])
        return copy if alias is None else x.copy_(copy)


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, all that inputs reach is computed in float64 besides, whatever dtypes operators are told to give.

    What they do not reach is computed only as it is without; but for what a function that they reach computes of
    constants alone inside, as complex convolutions do.

    Args:
        inputs: The inputs, which the model may write to.
        noise: Of further computations in float64.
        runs: Number of these.
    """

    def __init__(self, inputs: Iterable[Tensor], noise: Noise, runs: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noise, self.runs = noise, range(runs + 1)
        self.values = WeakTensorKeyDictionary(
            {x: [wider(x.clone()), *(noise.moved(wider(x), None) for _ in range(runs))] for x in inputs}
        )
        self.functions = _Functions(self)

    def __enter__(self) -> InDouble:
        self.functions.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.functions.__exit__(*error)  # type: ignore[no-untyped-call]

    def reaches(self, *leaves: Any) -> bool:
        """Whether inputs reach any of these."""
        return any(isinstance(x, Tensor) and x in self.values for x in leaves)

    def exact(self, item: Any, run: int = 0) -> Any:
        """A tensor in float64, without noise or as in one of the runs with it; anything else as it is, but dtypes."""
        return self.values[item][run] if isinstance(item, Tensor) and item in self.values else wider(item)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        leaves, structure = pytree.tree_flatten((args, kwargs or {}))
        if not self.reaches(*leaves) and not (self.functions.is_reached and _rounds(func)):
            return func(*args, **(kwargs or {}))
        for argument, x in zip(func._schema.arguments, args, strict=False):
            if argument.is_write and isinstance(x, Tensor) and x not in self.values and x.dtype in WIDER:
                raise TypeError(f"{func} would write to {x.dtype} what is computed in float64")
        values = []
        constants = [x if isinstance(x, Tensor) and x in self.values else wider(x) for x in leaves]
        for run in self.runs:
            given, options = pytree.tree_unflatten([self.exact(x, run) for x in constants], structure)
            results = func(*given, **options)
            values.append(pytree.tree_leaves(self.noise.disturbed(func, results) if run else results))
        results = func(*args, **(kwargs or {}))
        for result, *exact in zip(pytree.tree_leaves(results), *values, strict=True):
            if isinstance(result, Tensor):
                self.values[result] = exact
        return results


def _rounds(func: Any) -> bool:
    """Whether an operator is neither a cast nor a view, and does not write to its arguments."""
    return func.overloadpacket.__name__ != "_to_copy" and not any(each.alias_info for each in func._schema.returns)


class _Functions(TorchFunctionMode):
    """Knows whether a function of PyTorch that inputs reach runs at present."""

    def __init__(self, double: InDouble) -> None:
        super().__init__()
        self.double, self.is_reached = double, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = self.is_reached
        self.is_reached = before or self.double.reaches(*pytree.tree_leaves((args, kwargs)))
        try:
            if not self.is_reached:  # within a mode, linalg.eigvalsh computes otherwise
                with _disable_current_modes():
                    return func(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))
        finally:
            self.is_reached = before
