"""The check at the end of every conversion: the result is run against the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.mixing import first_mixing, is_close
from conv2affine.network.torch.unchanged import unchanged, users_device

__all__ = ["difference", "verify"]

BATCH = 3
# Roundings add up, over the layers and over the elements of a sum; what goes wrong is off by far more.
ROUNDINGS = 1000
# And of what part of the largest output, however rough the dtype is: else anything would pass in half precision.
ROUGHEST = 0.1
INFINITIES = "infinities or NaN"


def verify(
    model: nn.Module,
    result: nn.Module,
    inputs: Sequence[Tensor],
    dtype: torch.dtype,
    dtypes: Sequence[torch.dtype],
    *,
    flat: bool = False,
) -> None:
    """Compare a result with the model, on example inputs and on random ones.

    What rounding may change is measured: it is what the model itself makes of inputs that are off by one rounding.

    Args:
        model: What was converted.
        result: What it was converted to.
        inputs: Example inputs.
        dtype: In which the result computes what the model computes in the first of its dtypes.
        dtypes: In which the model computes.
        flat: Whether the result gives one vector per sample, whatever the shape of the model's only output.

    Raises:
        ValueError: If the model does not take any batch, mixes its samples, gives something else than one row per
            sample, has infinities that linear layers spread, or does not repeat its results.
        RuntimeError: If the results differ by more than rounding.
    """
    generator = torch.Generator().manual_seed(0)
    eps = max(torch.finfo(each).eps for each in (dtype, *dtypes))
    with unchanged(model):
        for batch in (inputs, [_random(x, generator) for x in inputs]):
            _compare(model, result, batch, {dtypes[0]: dtype}, eps, generator, flat)


def _random(x: Tensor, generator: torch.Generator) -> Tensor:
    """A batch of random samples like those of x; integers are those of x, or 0, which is an index too."""
    if x.is_floating_point():
        scale = torch.cat([x.detach().double().abs().flatten().cpu(), torch.ones(1)]).max()
        sample = torch.randn(BATCH, *x.shape[1:], generator=generator, dtype=torch.float64) * scale / 2
        return sample.to(x)
    chosen = x[torch.randint(len(x), (BATCH,), generator=generator)]
    return chosen * (torch.rand(chosen.shape, generator=generator) < 0.75).to(x)


def _compare(
    model: nn.Module,
    result: nn.Module,
    inputs: Sequence[Tensor],
    dtypes: Mapping[torch.dtype, torch.dtype],
    eps: float,
    generator: Any,
    flat: bool,
) -> None:
    nearby = [
        x * (1 + eps * torch.randn(x.shape, generator=generator).to(x)) if x.is_floating_point() else x for x in inputs
    ]
    with torch.no_grad():
        try:
            expected, again, moved = (_run(model, batch, flat) for batch in (inputs, inputs, nearby))
        except Exception as error:
            raise ValueError(
                f"the model must take a batch of any size, and failed on one of {len(inputs[0])}: {error}"
            ) from error
        if not all(_repeats(a, b, eps) for a, b in zip(expected, again, strict=True)):
            raise ValueError(
                "the model must give the same result for the same input, and two runs differ; call model.eval(), and "
                "remove what depends on chance, or what is changed by a run and used in the next"
            )
        got = _leaves(result(*(x.to(dtypes.get(x.dtype, x.dtype)) for x in inputs)))
        for number, (a, b, c) in enumerate(zip(expected, got, moved, strict=True)):
            problem = difference(a, b, c, eps)
            wanted = dtypes.get(a.dtype, a.dtype) if isinstance(a, Tensor) else None
            if not problem and wanted is not getattr(b, "dtype", None):
                problem = f"{b.dtype} for {wanted}"
            if problem:
                _explain(model, inputs, number, min(ROUNDINGS * eps, ROUGHEST), flat)
                if problem == INFINITIES:
                    raise ValueError(
                        f"output {number} does not have the {INFINITIES} of the model's: linear layers spread them, as "
                        f"0 * inf is NaN; make all constants finite, and no larger than the dtype can hold"
                    )
                raise RuntimeError(
                    f"the result does not equal the model, {problem} in output {number}; please report this"
                )


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


def difference(expected: Any, got: Any, moved: Any, eps: float) -> str:
    """How two outputs differ beyond rounding; "" if they do not."""
    if not isinstance(expected, Tensor):
        return "" if expected == got else f"{got} for {expected}"
    if expected.shape != got.shape:
        return f"shape {tuple(got.shape)} for {tuple(expected.shape)}"
    if expected.is_complex():
        expected, got, moved = (torch.view_as_real(x) for x in (expected, got, moved))
    if not expected.is_floating_point():
        wrong = (expected != got) & (expected == moved)
        return f"{int(wrong.sum())} elements" if wrong.any() else ""
    expected, got, moved = expected.double(), got.double(), moved.double()
    finite = expected.isfinite()
    if not got[finite].isfinite().all() or not torch.allclose(expected[~finite], got[~finite], equal_nan=True):
        return INFINITIES
    if not finite.any():
        return ""
    expected, got, moved = expected[finite], got[finite], moved[finite]
    largest, movement = expected.abs().max().item(), (moved - expected).abs().nan_to_num().max().item()
    allowed = min(ROUNDINGS * max(eps * largest, movement), ROUGHEST * largest)
    difference = (got - expected).abs().max().item()
    return "" if difference <= allowed else f"off by {difference:.1e}, where rounding explains {allowed:.1e}"


def _run(model: nn.Module, inputs: Sequence[Tensor], flat: bool) -> list[Any]:
    """The outputs of a model for copies: it may write to its inputs."""
    with users_device(inputs):
        leaves = _leaves(model(*(x.clone() for x in inputs)))
    if not flat:
        return leaves
    return [x.flatten(1) if x.dim() > 1 else x.unsqueeze(-1) for x in leaves if isinstance(x, Tensor)]


def _repeats(first: Any, second: Any, eps: float) -> bool:
    """Whether two runs on the same inputs agree; sums in another order may round otherwise."""
    if not isinstance(first, Tensor):
        return bool(first == second)
    if first.shape != second.shape or not first.is_floating_point():
        return torch.equal(first, second)
    return is_close(first, second, 16 * eps)


def _leaves(outputs: Any) -> list[Any]:
    return list(pytree.tree_leaves(outputs))
