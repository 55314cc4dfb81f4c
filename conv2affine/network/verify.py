"""The check at the end of every conversion: the result is run against the model."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.comparison import (
    COARSE,
    EPS,
    EXACT,
    INFINITIES,
    OWN_ROUNDINGS,
    RUNS,
    difference,
    distance,
    own_part,
    scale,
    tolerance_of,
)
from conv2affine.network.mixing import first_mixing, is_close
from conv2affine.network.torch.exporter import export_torch
from conv2affine.network.torch.importing.importer import TorchNetwork
from conv2affine.network.torch.models.surroundings import users_device
from conv2affine.network.torch.models.unchanged import unchanged
from conv2affine.network.torch.modules import Affine
from conv2affine.network.torch.rounding import InDouble, Noise, wider

__all__ = ["verify"]

# The random samples, in units of the largest element of the example; and as many samples of that are run at most.
SCALES = (1 / 64, 1 / 2, 4)
SAMPLES = 8


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
        flat: Whether the result takes and gives one vector per sample, of all inputs and outputs of the model.

    Raises:
        ValueError: If the model does not take any batch, mixes its samples, gives something else than one row per
            sample, has infinities that linear layers spread, or does not repeat its results.
        RuntimeError: If the results differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    inputs = [torch.cat([x[:SAMPLES].detach(), _random(x, generator)]) for x in inputs]
    eps = max(EPS, *(torch.finfo(each).eps for each in (dtype, *network.dtypes)))
    tolerance = tolerance_of(eps)
    dtypes = {network.dtype: dtype}
    floor = OWN_ROUNDINGS * max(torch.finfo(each).tiny * torch.finfo(each).eps for each in (dtype, *network.dtypes))
    with unchanged(model), torch.no_grad():
        expected = _expected(model, inputs, tolerance, flat)
        taken = [x.to(each) for x, each in zip(inputs, network.input_dtypes, strict=True)]
        own = [x.to(dtypes.get(x.dtype, x.dtype)) for x in taken]
        got, own_scales = _result(_Apart(result, expected) if flat else result, own, eps, flat)
        exact, scales, is_double = _exact(model, inputs, expected, eps, flat)
        pieces = _pieces(network, taken, expected, flat)
        outputs = zip(expected, got, exact, pieces, scales, own_scales, strict=True)
        for number, (a, b, c, d, size, own_size) in enumerate(outputs):
            is_compared = isinstance(a, Tensor) and a.shape == b.shape
            drift = distance(a, c) if is_compared else 0
            if is_compared:
                own_size = own_part(own_size, size)
            allowed = tolerance * size + OWN_ROUNDINGS * eps * own_size + drift + floor if is_compared else 0
            problem = difference(a, b, allowed)
            wanted = dtypes.get(a.dtype, a.dtype) if isinstance(a, Tensor) else None
            if not problem and wanted is not getattr(b, "dtype", None):
                problem = f"{b.dtype} for {wanted}"
            if not problem and is_compared and d is not None:
                # Some models give something else in float64: those that ask for the limits of a dtype, say.
                allowed = (EXACT if is_double else tolerance) * (size + own_size)
                problem = difference(torch.where(drift <= tolerance * size, c, d), d, allowed)
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


class _Apart(nn.Module):
    """A module of one vector of all inputs and one of all outputs, called with each, and giving each by itself."""

    def __init__(self, module: nn.Module, outputs: Sequence[Tensor]) -> None:
        super().__init__()
        self.module, self.sizes = module, [math.prod(x.shape[1:]) for x in outputs]

    def forward(self, *inputs: Tensor) -> list[Tensor]:
        """Join, run and split."""
        joined = inputs if len(inputs) == 1 else [torch.cat([x.reshape(len(x), -1) for x in inputs], 1)]
        vector: Tensor = self.module(*joined).flatten(1)
        if vector.shape[1] != sum(self.sizes):  # the model mixes samples: this is the wrong shape for each output
            return [vector] * len(self.sizes)
        return list(torch.split(vector, self.sizes, 1))


def _result(
    result: nn.Module, inputs: Sequence[Tensor], eps: float, flat: bool
) -> tuple[list[Any], list[Tensor | float]]:
    """The outputs of the result, and the scale of each of their elements: what it computes may be larger inside."""
    got = _leaves(result(*inputs), flat)
    with Noise(COARSE * eps):
        moved = _leaves(result(*(x.repeat(RUNS, *[1] * (x.dim() - 1)) for x in inputs)), flat)
    scales: list[Tensor | float] = []
    for a, b in zip(got, moved, strict=True):
        has_rows = isinstance(a, Tensor) and b.shape == (RUNS * len(inputs[0]), *a.shape[1:])
        scales.append(scale(a, list(b.unflatten(0, (RUNS, -1))), COARSE * eps) if has_rows else 0)
    return got, scales


def _pieces(network: TorchNetwork, inputs: Sequence[Tensor], expected: list[Any], flat: bool) -> list[Any]:
    """The outputs of the affine pieces and steps in float64; None where a step cannot run so: it reads bytes, say."""
    module: nn.Module = export_torch(network, wider, lambda _, matrix, bias: Affine(matrix, bias))
    module = _Apart(module, expected) if flat else module
    try:
        outputs = _leaves(module(*map(wider, inputs)), flat)
    except RuntimeError:
        return [None] * len(expected)
    return [
        d if isinstance(d, Tensor) and isinstance(a, Tensor) and d.shape == a.shape else None
        for a, d in zip(expected, outputs, strict=True)
    ]


def _exact(
    model: nn.Module, inputs: Sequence[Tensor], expected: list[Any], eps: float, flat: bool
) -> tuple[list[Any], list[Any], bool]:
    """The outputs in float64, the scale of each of their elements, and whether the model can run in float64 at all.

    The scale is how far an element moves, for one unit of noise.
    """
    is_double = True
    copies = [x.clone() for x in inputs]
    try:
        with InDouble(copies, Noise(eps), RUNS) as double, users_device(inputs):
            outputs = model(*copies)
        exact, *moved = (
            _leaves(pytree.tree_map(partial(double.exact, run=run), outputs), flat) for run in range(RUNS + 1)
        )
        if any(isinstance(a, Tensor) and a.shape != b.shape for a, b in zip(expected, exact, strict=True)):
            raise TypeError("the bytes of float64 are not those of the model's dtype")
    except Exception:  # an operator has no float64, or writes to constants of another dtype
        exact, is_double, eps = expected, False, COARSE * eps
        with Noise(eps):
            moved = [_run(model, inputs, flat) for _ in range(RUNS)]
    scales = [scale(a, runs, eps) if isinstance(a, Tensor) else 0 for a, *runs in zip(exact, *moved, strict=True)]
    return exact, scales, is_double


def _refuse(
    model: nn.Module, inputs: Sequence[Tensor], number: int, problem: str, tolerance: float, flat: bool
) -> NoReturn:
    """Raise what fits a difference in an output."""
    _explain(model, inputs, number, tolerance, flat)
    if problem == INFINITIES:
        raise ValueError(
            f"output {number} does not have the {INFINITIES} of the model's: linear layers spread them, as 0 * inf is "
            "NaN; make all constants finite, and no larger than the dtype can hold; or if what the result computes is "
            "larger than that, as 65504 in float16, pass dtype=torch.float32"
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


def _run(model: nn.Module, inputs: Sequence[Tensor], flat: bool) -> list[Any]:
    """The outputs of a model for copies: it may write to its inputs."""
    with users_device(inputs):
        return _leaves(model(*(x.clone() for x in inputs)), flat)


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
