"""The check at the end of every conversion: the result is run against the model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.mixing import first_mixing, is_close
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.importer import TorchNetwork
from conv2affine.network.torch.modules import Affine
from conv2affine.network.torch.rounding import WIDE, WIDER, InDouble, Noise, wider
from conv2affine.network.torch.surroundings import users_device
from conv2affine.network.torch.unchanged import unchanged

__all__ = ["ROUGHEST", "ROUNDINGS", "difference", "verify"]

# The random samples, in units of the largest element of the example; and as many samples of that are run at most.
SCALES = (1 / 64, 1 / 2, 4)
SAMPLES = 8
# Runs with noise. An element's own scale is the most by which it moves: it must not be small by chance.
RUNS = 4
# Roundings add up, over the layers and over the elements of a sum; what goes wrong is off by far more.
ROUNDINGS = 1000
# One rounding in float64, and some more: noise of 2e-16 would be rounded itself. The affine pieces are computed so.
EPS = 1e-12
EXACT = ROUNDINGS * EPS
# And by this part at most, however rough the dtype is: else anything would pass in half precision.
ROUGHEST = 0.1
INFINITIES = "infinities or NaN"


def verify(
    model: nn.Module,
    result: nn.Module,
    inputs: Sequence[Tensor],
    network: TorchNetwork,
    dtype: torch.dtype,
    *,
    flat: bool = False,
) -> None:
    """Compare a result with the model, on example inputs and on random ones of several scales.

    The result is compared in its own dtype, and its affine pieces in float64. Each output element may differ by what
    rounding changes in it, which is measured: it is what noise after each operator of the model changes.

    Args:
        model: What was converted.
        result: What it was converted to.
        inputs: Example inputs.
        network: Of `model`, its graph as it is in the result.
        dtype: In which the result computes what the model computes in the first of its dtypes.
        flat: Whether the result gives one vector per sample, whatever the shape of the model's only output.

    Raises:
        ValueError: If the model does not take any batch, mixes its samples, gives something else than one row per
            sample, has infinities that linear layers spread, or does not repeat its results.
        RuntimeError: If the results differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.cat([x[:SAMPLES].detach(), _random(x, generator)]) for x in inputs]
    eps = max(EPS, *(torch.finfo(each).eps for each in (dtype, *network.dtypes)))
    tolerance = min(ROUNDINGS * eps, ROUGHEST)
    dtypes = {network.dtype: dtype}
    with unchanged(model), torch.no_grad():
        expected = _expected(model, inputs, tolerance, flat)
        got = _leaves(result(*(x.to(dtypes.get(x.dtype, x.dtype)) for x in inputs)), flat)
        pieces = export_torch(network, wider, lambda _, matrix, bias: Affine(matrix, bias))
        got_exact = _leaves(pieces(*map(wider, inputs)), flat)
        exact, scales, is_double = _exact(model, inputs, expected, eps, flat)
        outputs = zip(expected, got, exact, got_exact, scales, strict=True)
        for number, (a, b, c, d, scale) in enumerate(outputs):
            drift = _distance(a, c) if isinstance(a, Tensor) and a.shape == c.shape else 0
            problem = difference(a, b, tolerance * scale + drift)
            wanted = dtypes.get(a.dtype, a.dtype) if isinstance(a, Tensor) else None
            if not problem and wanted is not getattr(b, "dtype", None):
                problem = f"{b.dtype} for {wanted}"
            if not problem and isinstance(a, Tensor):
                # Some models give something else in float64: those that ask for the limits of a dtype, say.
                allowed = (EXACT if is_double else tolerance) * scale
                problem = difference(torch.where(drift <= tolerance * scale, c, d), d, allowed)
                problem = problem and f"{problem} in float64"
            if problem:
                _refuse(model, inputs, number, problem, tolerance, flat)


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    """Random samples like those of x; integers are those of x, or 0, which is an index too."""
    if x.is_floating_point():
        largest = torch.cat([x.detach().double().abs().flatten().cpu(), torch.ones(1)]).max()
        sample = torch.randn(len(SCALES), *x.shape[1:], generator=generator, dtype=torch.float64)
        scales = torch.tensor(SCALES, dtype=torch.float64).view(-1, *[1] * (x.dim() - 1))
        return (sample * scales * largest).to(x)
    chosen = x[torch.randint(len(x), (len(SCALES),), generator=generator)]
    return chosen * (torch.rand(chosen.shape, generator=generator) < 0.75).to(x)


def _expected(model: nn.Module, inputs: Sequence[Tensor], noise: float, flat: bool) -> list[Any]:
    """The outputs of the model, which it repeats."""
    try:
        expected, again = (_run(model, inputs, flat) for _ in range(2))
    except Exception as error:
        raise ValueError(
            f"the model must take a batch of any size, and failed on one of {len(inputs[0])}: {error}"
        ) from error
    if not all(_repeats(a, b, noise) for a, b in zip(expected, again, strict=True)):
        raise ValueError(
            "the model must give the same result for the same input, and two runs differ; call model.eval(), and "
            "remove what depends on chance, or what is changed by a run and used in the next"
        )
    return expected


def _exact(
    model: nn.Module, inputs: Sequence[Tensor], expected: list[Any], eps: float, flat: bool
) -> tuple[list[Any], list[Any], bool]:
    """The outputs in float64, the scale of each of their elements, and whether the model can run in float64 at all.

    The scale is how far an element moves, for one unit of noise.
    """
    is_double = True
    try:
        exact = _run_in_double(model, inputs, flat)
        with Noise(eps):
            moved = [_run_in_double(model, inputs, flat) for _ in range(RUNS)]
    except Exception:  # an operator has no float64, or writes to constants of another dtype
        exact, is_double = expected, False
        with Noise(eps):
            moved = [_run(model, inputs, flat) for _ in range(RUNS)]
    scales = [_scale(a, runs, eps) if isinstance(a, Tensor) else 0 for a, *runs in zip(exact, *moved, strict=True)]
    return exact, scales, is_double


def _scale(exact: Tensor, moved: Sequence[Tensor], eps: float) -> Tensor:
    """|exact| and the most by which an element moves, per unit of noise; infinite where an integer moves."""
    size = exact.abs().double() if exact.dtype in (*WIDER, *WIDE) else torch.zeros_like(exact, dtype=torch.float64)
    distances = torch.stack([_distance(exact, run) for run in moved])
    return (size + distances.amax(0) / eps).nan_to_num(torch.inf)


def _refuse(
    model: nn.Module, inputs: Sequence[Tensor], number: int, problem: str, tolerance: float, flat: bool
) -> NoReturn:
    """Raise what fits a difference in an output."""
    _explain(model, inputs, number, tolerance, flat)
    if problem == INFINITIES:
        raise ValueError(
            f"output {number} does not have the {INFINITIES} of the model's: linear layers spread them, as 0 * inf is "
            "NaN; make all constants finite, and no larger than the dtype can hold"
        )
    raise RuntimeError(f"the result does not equal the model, {problem} in output {number}; please report this")


def _explain(model: nn.Module, inputs: Sequence[Tensor], number: int, tolerance: float, flat: bool) -> None:
    """Raise ValueError if the model does not treat each sample by itself."""
    count = len(inputs[0])
    alone = [_run(model, [x[n : n + 1] for x in inputs], flat)[number] for n in range(count)]
    together = _run(model, inputs, flat)[number]
    if not isinstance(together, Tensor):
        if together != alone[0]:
            raise ValueError(
                f"output {number} must be a tensor, or the same for every batch, and is {together!r} for {count} "
                f"samples, {alone[0]!r} for one"
            )
        return
    joined = torch.cat(alone) if alone[0].dim() else torch.stack(alone)
    if together.shape == joined.shape and is_close(together, joined, tolerance):
        return
    name = first_mixing(model, inputs, tolerance)
    if not name and together.shape != joined.shape:
        raise ValueError(
            f"output {number} must have one row per sample, batch first, and has shape {tuple(together.shape)} for "
            f"{count} samples, {tuple(alone[0].shape)} for one; permute it, or expand a constant to the batch"
        )
    raise ValueError(
        f"{name or 'the model'} mixes the samples of a batch: what it makes of one depends on the others, or on their "
        "number; only models that treat each sample by itself can be converted (batch norm needs eval() and running "
        "statistics)"
    )


def difference(expected: Any, got: Any, allowed: Any) -> str:
    """How two outputs differ beyond rounding; "" if they do not.

    Args:
        expected: A tensor, or anything else.
        got: Likewise.
        allowed: By how much each element may differ.
    """
    if not isinstance(expected, Tensor):
        return "" if expected == got else f"{got} for {expected}"
    if expected.shape != got.shape:
        return f"shape {tuple(got.shape)} for {tuple(expected.shape)}"
    off = _distance(expected, got)
    if not off.isfinite().all():
        return INFINITIES
    excess = (off - allowed).nan_to_num(-1)
    if not (excess > 0).any():
        return ""
    worst = int(excess.argmax())
    index = [int(i) for i in torch.unravel_index(torch.tensor(worst), expected.shape)]
    return f"off by {off.flatten()[worst]:.1e} at {index}, where rounding explains {allowed.flatten()[worst]:.1e},"


def _distance(first: Tensor, second: Tensor) -> Tensor:
    """|first - second| in float64; 0 where both are the same infinity, or NaN; 0 or 1 for integers."""
    wide = WIDER.get(first.dtype, first.dtype)
    if wide not in WIDE:
        return (first != second).double()
    same = (first == second) | (first.isnan() & second.isnan())
    return torch.where(same, 0, (first.to(wide) - second.to(wide)).abs())


def _run(model: nn.Module, inputs: Sequence[Tensor], flat: bool) -> list[Any]:
    """The outputs of a model for copies: it may write to its inputs."""
    with users_device(inputs):
        return _leaves(model(*(x.clone() for x in inputs)), flat)


def _run_in_double(model: nn.Module, inputs: Sequence[Tensor], flat: bool) -> list[Any]:
    """The outputs of a model as computed in float64."""
    copies = [x.clone() for x in inputs]
    with InDouble(copies) as double, users_device(inputs):
        outputs = model(*copies)
    return _leaves(pytree.tree_map(double.exact, outputs), flat)


def _leaves(outputs: Any, flat: bool) -> list[Any]:
    """The outputs one after the other; `flat` leaves out what is no tensor."""
    leaves = list(pytree.tree_leaves(outputs))
    if not flat:
        return leaves
    return [x.flatten(1) if x.dim() > 1 else x.unsqueeze(-1) for x in leaves if isinstance(x, Tensor)]


def _repeats(first: Any, second: Any, tolerance: float) -> bool:
    """Whether two runs on the same inputs agree; sums in another order may round otherwise."""
    if not isinstance(first, Tensor):
        return bool(first == second)
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    return is_close(first, second, tolerance)
