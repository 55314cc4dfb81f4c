"""How two outputs are compared: each element by its own scale, which is measured with noise in the computation."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from conv2affine.network.torch.noise import WIDE, WIDER

# Number of runs with noise. An element's scale is its largest movement in them: a single one may be small by chance.
RUNS = 4
# Roundings add up, over the layers and over the elements of a sum; what goes wrong is off by far more.
ROUNDINGS = 1000
# One rounding in float64, with a margin: noise of 2e-16 would itself be rounded. The affine pieces are compared so.
EPS = 1e-12
EXACT = ROUNDINGS * EPS
# Units of noise where the dtype itself rounds: a single one would often be lost to rounding.
COARSE = 8
# A result may compute larger numbers inside than the model does, as a clip at 8 that starts from its bound. This many
# roundings of them are allowed, for numbers up to 8, or up to 8 times the scale of the whole output.
OWN_ROUNDINGS = 8
OWN_SCALE = 8.0
# Upper limit of the tolerance, relative to an element's scale: in half precision, 1000 roundings allow anything.
ROUGHEST = 0.1
INFINITIES = "infinities or NaN"


def tolerance_of(eps: float) -> float:
    """How far an element may differ, relative to its own scale, where one rounding is `eps`."""
    return min(ROUNDINGS * eps, ROUGHEST)


def smallest(*dtypes: torch.dtype) -> float:
    """What rounding in these may do to any number, however small it is."""
    finfos = [torch.finfo(dtype) for dtype in dtypes if dtype.is_floating_point]
    return OWN_ROUNDINGS * max((each.tiny * each.eps for each in finfos), default=0.0)


def own_part(own: Any, size: Tensor) -> Any:
    """A result's own scale, capped relative to the scale of the model."""
    finite = size[size.isfinite()]
    largest = max(1.0, float(finite.max())) if finite.numel() else 1.0
    return torch.as_tensor(own, dtype=torch.float64).clamp(max=OWN_SCALE * largest)


def scale(exact: Tensor, moved: Iterable[Tensor], eps: float) -> Tensor:
    """|exact| plus the largest movement of each element per unit of noise; infinite where an integer moves."""
    size = exact.abs().double() if exact.dtype in (*WIDER, *WIDE) else torch.zeros_like(exact, dtype=torch.float64)
    movement = torch.zeros_like(size)
    for run in moved:
        movement = torch.maximum(movement, distance(exact, run))
    return (size + movement / eps).nan_to_num(torch.inf)


def difference(expected: Any, got: Any, allowed: Any) -> str:
    """How two outputs differ by more than is allowed for each element; "" if they do not."""
    if not isinstance(expected, Tensor):
        return "" if expected == got else f"{got} for {expected}"
    if expected.shape != got.shape:
        return f"shape {tuple(got.shape)} for {tuple(expected.shape)}"
    off = distance(expected, got)
    if not off.isfinite().all():
        return INFINITIES
    excess = (off - allowed).nan_to_num(-1)
    if not (excess > 0).any():
        return ""
    worst = int(excess.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
    return f"off by {off.flatten()[worst]:.1e} at {index}, where rounding explains {allowed.flatten()[worst]:.1e},"


@torch.no_grad()
def check_repeats(first: Any, second: Any, tolerance: float) -> None:
    """Refuse a model whose outputs of two runs on the same inputs differ; sums in another order may round so."""
    for a, b in zip_longest(pytree.tree_leaves(first), pytree.tree_leaves(second)):
        if not (isinstance(a, Tensor) and isinstance(b, Tensor)):
            is_same = bool(a == b)
        elif a.shape != b.shape or not a.is_floating_point():
            is_same = torch.equal(a, b)
        else:
            is_same = is_close(a, b, tolerance)
        if not is_same:
            raise ValueError(
                "the model must give the same result for the same input, and two runs differ; call model.eval(), and "
                "remove what depends on chance, or what is changed by a run and used in the next"
            )


def distance(first: Tensor, second: Tensor) -> Tensor:
    """|first - second| in float64; 0 where both are the same infinity, or NaN; 0 or 1 for integers."""
    wide = WIDER.get(first.dtype, first.dtype)
    if wide not in WIDE:
        return (first != second).double()
    same = (first == second) | (first.isnan() & second.isnan())
    return torch.where(same, 0, (first.to(wide) - second.to(wide)).abs())


def is_close(first: Tensor, second: Tensor, tolerance: float) -> bool:
    """Whether two tensors differ by at most `tolerance` times the largest finite element."""
    if first.shape != second.shape:
        return False
    if first.is_complex():
        first, second = torch.view_as_real(first), torch.view_as_real(second)
    first, second = first.double(), second.double()  # masks have no absolute values
    finite = first[first.isfinite()].abs()
    largest = float(finite.max()) if len(finite) else 0.0
    return torch.allclose(first, second, rtol=0, atol=tolerance * largest, equal_nan=True)
