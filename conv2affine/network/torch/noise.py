"""What rounding changes in the results of a model: run in float64, and with noise after each operator."""

from __future__ import annotations

import random
from collections.abc import Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.fx.node import map_aggregate
from torch.overrides import TorchFunctionMode
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils.weak import WeakTensorKeyDictionary

from conv2affine.convolution.product import in_chunks
from conv2affine.network.torch.importing.call import written_arguments
from conv2affine.network.torch.importing.constants import SHAPE_ONLY

WIDE = (torch.float64, torch.complex128)
WIDER = {torch.complex32: torch.complex128, torch.complex64: torch.complex128}
WIDER |= dict.fromkeys((torch.float16, torch.bfloat16, torch.float32), torch.float64)
# Number of random factors, which are reused.
FACTORS = 2**16
# An element is near a wall where it is nearer than this many times its noise, as a few runs show it.
NEAR = 4
SHAPE_ONLY_OPERATORS = {getattr(torch.ops.aten, name) for name in SHAPE_ONLY}
# Elements of a weight that are widened at a time.
PART_ELEMENTS = 2**24
# Operators that move or choose elements, and round none. A clip is none of them: sums of its bounds are rounded.
MOVES = frozenset(
    (
        *("cat", "stack", "clone", "copy", "constant_pad_nd", "index", "index_select", "gather", "select_scatter"),
        *("slice_scatter", "repeat", "roll", "flip", "relu", "max_pool2d_with_indices", "where"),
        # A collective: before the last of these its result is not there yet.
        *("all_gather_into_tensor", "_wrap_tensor_autograd", "wait_tensor"),
    )
)


def wider(item: Any) -> Any:
    """A tensor in float64, or that dtype, in place of a narrower one; anything else as it is."""
    if isinstance(item, Tensor):
        return item.to(WIDER[item.dtype]) if item.dtype in WIDER else item
    return WIDER.get(item, item) if isinstance(item, torch.dtype) else item


class Noise(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, what each operator computes is multiplied by random numbers from 1 - size to 1 + size.

    An output then moves by about size * sqrt(sum of t^2) over the terms t that are added up in it, as roundings of this
    size move it: each element by its own scale.

    Args:
        size: As `torch.finfo(dtype).eps`.
        run: Which of several runs it is for. Run 2 n + 1 has the opposite noise of run 2 n: where one of them lies on
            the flat side of a ReLU, the other does not.
        copies: How often a batch holds its samples. A ReLU then keeps the noise of an element that is as near to 0 as
            its copies are to each other: otherwise all copies may lie on the flat side of one of several ReLUs.
    """

    def __init__(self, size: float, run: int = 0, copies: int = 1) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        generator = torch.Generator().manual_seed(run // 2)
        factors = torch.empty(2 * FACTORS, dtype=torch.float64, device="cpu")
        self.factors = 1 + factors.uniform_(-size, size, generator=generator) * (-1 if run % 2 else 1)
        self.random = random.Random(run // 2)
        self.copies = copies

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        results = func(*args, **(kwargs or {}))
        if func is torch.ops.aten.relu.default and self.copies > 1:
            return self.relu(args[0], results)
        return self.disturbed(func, results)

    def relu(self, x: Tensor, y: Tensor) -> Tensor:
        """The ReLU y of x, with the noise of x where that may lead from one side of 0 to the other."""
        if not x.dim() or len(x) % self.copies or not x.is_floating_point():
            return y
        copies = x.reshape(self.copies, len(x) // self.copies, *x.shape[1:])  # it may have no elements
        low, high = copies.amin(0), copies.amax(0)
        middle = low + (high - low) / 2
        near = torch.maximum(low, -high) < NEAR * (high - low)
        return torch.where(near, middle.relu() + (copies - middle), y.reshape(copies.shape)).reshape(x.shape)

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
        # The same random numbers are reused, each time from another start: new ones would take most of the time.
        start = self.random.randrange(FACTORS)
        factors = self.factors[start : start + FACTORS].to(x.device, x.dtype.to_real())
        copy = x.clone()  # its elements fill its memory
        elements = copy.as_strided((copy.numel(),), (1,))
        turns = copy.numel() // FACTORS * FACTORS
        elements[:turns].view(-1, FACTORS).mul_(factors)
        elements[turns:].mul_(factors[: copy.numel() - turns])
        return copy if alias is None else x.copy_(copy)


class InDouble(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within it, all that depends on inputs is also computed in float64, whatever dtype an operator is asked for.

    All else is computed as usual, except what a function that inputs reach computes of constants alone inside, as
    complex convolutions do. The model may write to the inputs; `noise` is for the computation in float64.
    """

    def __init__(self, inputs: Iterable[Tensor], noise: Noise | None = None) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.noise = noise
        self.values = WeakTensorKeyDictionary(
            {x: noise.moved(wider(x), None) if noise else wider(x.clone()) for x in inputs}
        )
        # Constants that are written to, by their address: all elements, as they are and in float64.
        self.constants: dict[int, tuple[Tensor, Tensor]] = {}
        self.functions = _Functions(self)

    def __enter__(self) -> InDouble:
        self.functions.__enter__()  # type: ignore[no-untyped-call]
        super().__enter__()  # type: ignore[no-untyped-call]
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)  # type: ignore[no-untyped-call]
        self.functions.__exit__(*error)  # type: ignore[no-untyped-call]

    def reaches(self, leaves: Iterable[Any]) -> bool:
        """Whether inputs reach any of these."""
        return any(isinstance(x, Tensor) and self.value(x) is not None for x in leaves)

    def value(self, x: Tensor) -> Tensor | None:
        """What inputs reach, in float64."""
        value: Tensor | None = self.values.get(x)  # type: ignore[no-untyped-call]
        if value is None and self.constants and x.layout is torch.strided:
            found = self.constants.get(x.untyped_storage().data_ptr())
            if found and found[0].dtype in (x.dtype, x.dtype.to_real()):
                elements = found[1].view(WIDER.get(x.dtype, x.dtype))
                value = elements.as_strided(x.shape, x.stride(), x.storage_offset())
                value = value.conj() if x.is_conj() else value
                self.values[x] = value = value._neg_view() if x.is_neg() else value
        return value

    def exact(self, item: Any) -> Any:
        """A tensor in float64; dtypes are widened, all else stays."""
        value = self.value(item) if isinstance(item, Tensor) else None
        return wider(item) if value is None else value

    def widen(self, x: Tensor) -> None:
        """Compute a constant in float64 from now on, with all that shares its memory."""
        own = torch.empty(0, dtype=x.dtype.to_real(), device=x.device).set_(x.untyped_storage())
        self.constants.setdefault(own.data_ptr(), (own, own.to(torch.float64, copy=True)))

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_reached = not _reads_shape_only(func) and self.reaches(_leaves((args, kwargs)))
        if not is_reached and not (self.functions.is_reached and _rounds(func)):
            return func(*args, **kwargs)
        for x in _leaves(written_arguments(func, args, kwargs)):
            if isinstance(x, Tensor) and x.dtype in (*WIDER, *WIDE) and self.value(x) is None:
                self.widen(x)
                if self.value(x) is None:
                    raise TypeError(f"{func} would write to {x.dtype} what is computed in float64")
        exact = self.result(func, args, kwargs)
        if self.noise:
            exact = self.noise.disturbed(func, exact)
        results = func(*args, **kwargs)
        for result, value in zip(pytree.tree_leaves(results), pytree.tree_leaves(exact), strict=True):
            if isinstance(result, Tensor):
                self.values[result] = value
        return results

    def result(self, func: Any, args: Any, kwargs: Any) -> Any:
        """What an operator gives in float64."""
        if func is torch.ops.aten.addmm.default and not kwargs and args[2].numel() > PART_ELEMENTS:
            bias, x, weight = args
            if weight not in self.values and bias.shape[-1:] == weight.shape[1:]:
                columns = max(1, PART_ELEMENTS // len(weight))
                pairs = zip(torch.split(self.exact(bias), columns, -1), torch.split(weight, columns, 1), strict=True)
                return torch.cat([func(b, self.exact(x), wider(w)) for b, w in pairs], 1)
        given: Any = (args, kwargs)
        args, kwargs = map_aggregate(given, self.exact)
        if func is torch.ops.aten.convolution.default and not kwargs:
            return in_chunks(lambda x: func(x, *args[1:]), args[0], args[1])
        return func(*args, **kwargs)


def _leaves(arguments: Any) -> list[Any]:
    """What arguments hold, as `pytree.tree_leaves`, which takes twenty times as long."""
    leaves: list[Any] = []
    map_aggregate(arguments, leaves.append)
    return leaves


@cache
def _rounds(func: Any) -> bool:
    """Whether an operator is neither a cast nor a view, and does not write to its arguments."""
    return func.overloadpacket.__name__ != "_to_copy" and not any(each.alias_info for each in func._schema.returns)


def _reads_shape_only(func: Any) -> bool:
    """Whether a function or an operator of PyTorch reads no element of its first argument."""
    if isinstance(func, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        return getattr(func, "overloadpacket", func) in SHAPE_ONLY_OPERATORS
    return getattr(func, "__name__", "") in SHAPE_ONLY


def _without_vmap(x: Any) -> Any:
    """A tensor that `torch.vmap` passes on for each sample, for all of them."""
    while isinstance(x, Tensor) and torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x


class _Functions(TorchFunctionMode):
    """Knows whether a function of PyTorch that inputs reach runs at present."""

    def __init__(self, double: InDouble) -> None:
        super().__init__()
        self.double, self.is_reached = double, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before, leaves = self.is_reached, _leaves((args, kwargs))
        self.is_reached = before or (not _reads_shape_only(func) and self.double.reaches(map(_without_vmap, leaves)))
        try:
            if not self.is_reached:  # within a mode, linalg.eigvalsh computes otherwise
                with _disable_current_modes():
                    return func(*args, **(kwargs or {}))
            return func(*args, **(kwargs or {}))
        finally:
            self.is_reached = before
