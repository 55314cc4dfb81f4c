"""The check at the end of every conversion: the result is compared with the model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
from torch import Tensor, nn

from conv2affine.network.comparison import (
    EPS,
    EXACT,
    INFINITIES,
    OWN_ROUNDINGS,
    check_repeats,
    difference,
    distance,
    is_close,
    own_part,
    smallest,
    tolerance_of,
)
from conv2affine.network.graph import Kept
from conv2affine.network.torch.importing.importer import TorchNetwork
from conv2affine.network.torch.models.advice import mixes, no_batch
from conv2affine.network.torch.models.unchanged import unchanged
from conv2affine.network.torch.verifying.pieces import piece_outputs
from conv2affine.network.torch.verifying.runs import (
    Apart,
    computes_nan,
    exact_outputs,
    first_infinite,
    first_mixing,
    listed,
    model_scales,
    result_scales,
    run,
    samples,
)


def verify(
    model: nn.Module,
    result: nn.Module,
    inputs: Sequence[Tensor],
    network: TorchNetwork,
    dtype: torch.dtype,
    *,
    flat: bool = False,
    only: bool = False,
) -> None:
    """Compare a result with the model, on example inputs and on random ones of several scales.

    The result is compared in its own dtype, and its affine pieces in float64. Each output element may differ by
    what rounding can change in it, which is measured with noise after each operator of the model.

    Args:
        model: What was converted.
        result: What it was converted to.
        inputs: Example inputs.
        network: That of `model`, with the graph that the result computes.
        dtype: The dtype in which the result computes what the model computes in the first of its dtypes.
        flat: Whether the result takes and returns one vector per sample, of all inputs and outputs of the model.
        only: Whether they are compared on `inputs` only.

    Raises:
        ValueError: If the model does not take any batch, mixes its samples, returns anything but one row per
            sample, has infinities that linear layers spread, or does not repeat its results.
        RuntimeError: If the results differ by more than rounding.
    """
    dtypes = {network.dtype: dtype}
    eps = max(EPS, *(torch.finfo(each).eps for each in (dtype, *network.dtypes)))
    with unchanged(model), torch.no_grad():
        batches = [inputs] if only else [samples(inputs), samples(inputs, "elements"), samples(inputs, "samples")]
        inputs, expected = _first_run(model, batches, flat)
        taken = [x.to(each) for x, each in zip(inputs, network.input_dtypes, strict=True)]
        own = [x.to(dtypes.get(x.dtype, x.dtype)) for x in taken]
        result = Apart(result, expected) if flat else result
        got = listed(result(*own), flat)
        exact, is_double = exact_outputs(model, inputs, expected, flat)
        limits = _Limits(eps, smallest(dtype, *network.dtypes), is_double, dtypes)
        pieces = piece_outputs(network, taken, expected, is_double, flat)
        outputs = list(zip(expected, got, exact, pieces, strict=True))
        # What passes by a small scale passes by a larger one too: noise costs most of the time, and is rarely needed.
        each_scales, none = model_scales(model, inputs, exact, is_double, eps, flat), [0] * len(outputs)
        least = next(each_scales)
        if not _first_problem(limits, outputs, least, none):
            return
        # Layers spread NaN, which only what is kept gives, or drop it. If a comparison hides that, noise must not.
        has_nan = any(isinstance(node, Kept) for node in network.graph.nodes) and computes_nan(result, own)
        for measured in each_scales:
            scales = _capped(measured, least) if has_nan else measured
            if not _first_problem(limits, outputs, scales, none):
                return
        inside = result_scales(result, own, got, eps, flat)
        capped = _capped(inside, scales)
        found = _first_problem(limits, outputs, scales, capped)
        if found:
            is_rough = dtype is not torch.float64 and not _first_problem(limits, outputs, scales, inside)
            if is_rough:  # and right in float64, if the result is taken for right here
                in_double = [(a, a.to(b.dtype) if isinstance(a, Tensor) else b, *wide) for a, b, *wide in outputs]
                is_rough = not _first_problem(limits, in_double, scales, capped)
            _refuse(model, inputs, expected, *found, tolerance_of(eps), flat, dtype if is_rough else None)


def _first_run(model: nn.Module, batches: Sequence[Sequence[Tensor]], flat: bool) -> tuple[Sequence[Tensor], list[Any]]:
    """The first batch that the model takes, and its outputs."""
    errors = []
    for batch in batches:
        try:
            return batch, run(model, batch, flat)
        except Exception as error:  # a model may raise anything
            errors.append(error)
    raise no_batch(len(batches[0][0]), errors[0]) from errors[0]


def _capped(own: Sequence[Any], scales: Sequence[Any]) -> list[Any]:
    """Scales of outputs, each capped relative to the scale of that output."""
    return [own_part(x, size) if isinstance(size, Tensor) else 0 for x, size in zip(own, scales, strict=True)]


@dataclass(frozen=True)
class _Limits:
    """What two outputs may differ by.

    Args:
        eps: One rounding of the roughest dtype.
        floor: What rounding may do to any number, however small.
        is_double: Whether the model can run in float64.
        dtypes: What the result computes in another dtype than the model.
    """

    eps: float
    floor: float
    is_double: bool
    dtypes: Mapping[torch.dtype, torch.dtype]


def _first_problem(
    limits: _Limits, outputs: Sequence[tuple[Any, Any, Any, Any]], scales: Sequence[Any], own_scales: Sequence[Any]
) -> tuple[int, str] | None:
    """The first output that differs by more than rounding, and how."""
    for number, (four, size, own_size) in enumerate(zip(outputs, scales, own_scales, strict=True)):
        problem = _problem(limits, *four, size, own_size)
        if problem:
            return number, problem
    return None


def _problem(limits: _Limits, a: Any, b: Any, c: Any, d: Any, size: Any, own_size: Any) -> str:
    """How an output of the model, a, and that of the result, b, differ; or c and d, the same two in float64."""
    if not isinstance(a, Tensor) or a.shape != b.shape:
        return difference(a, b, 0)
    tolerance = tolerance_of(limits.eps)
    drift = distance(a, c)
    problem = difference(a, b, tolerance * size + OWN_ROUNDINGS * limits.eps * own_size + drift + limits.floor)
    wanted = limits.dtypes.get(a.dtype, a.dtype)
    if not problem and wanted is not b.dtype:
        problem = f"{b.dtype} for {wanted}"
    if not problem and d is not None and d.shape != c.shape:
        problem = f"{difference(c, d, 0)} in float64"
    elif not problem and d is not None:
        # Some models compute something else in float64, such as those that read the limits of their dtype.
        allowed = (EXACT if limits.is_double else tolerance) * (size + own_size) + limits.floor
        problem = difference(torch.where(drift <= tolerance * size, c, d), d, allowed)
        problem = problem and f"{problem} in float64"
    return problem


def _refuse(
    model: nn.Module,
    inputs: Sequence[Tensor],
    expected: list[Any],
    number: int,
    problem: str,
    tolerance: float,
    flat: bool,
    rough: torch.dtype | None,
) -> NoReturn:
    """Raise the error that explains a difference in an output; `rough` is the dtype whose roundings do."""
    again = run(model, inputs, flat)
    check_repeats(expected, again, tolerance)
    _explain(model, inputs, again, number, tolerance, flat)
    name = first_infinite(model, inputs)
    if problem == INFINITIES or name:
        what, advice = f"does not have the {INFINITIES} of the model's", "make all constants finite, and"
        if name:
            what = f"must not depend on {INFINITIES}, which {name} gives for inputs like the example"
            advice = "give it only what it is finite for, as torch.log(x.clamp(min=1e-6)) does, with constants"
        raise ValueError(
            f"output {number} {what}: linear layers spread them, as 0 * inf is NaN; {advice} no larger than the dtype "
            "can hold; or if what the result computes is larger than that, as 65504 in float16, pass "
            "dtype=torch.float32"
        )
    advice = "please report this"
    if rough:
        advice = f"larger numbers cancel in it, and {rough} has too few digits: pass dtype=torch.float64"
    raise RuntimeError(f"the result does not equal the model, {problem} in output {number}; {advice}")


def _explain(
    model: nn.Module, inputs: Sequence[Tensor], together: list[Any], number: int, tolerance: float, flat: bool
) -> None:
    """Raise ValueError if the model does not treat each sample by itself, in this output or in another."""
    runs = [run(model, [x[n : n + 1] for x in inputs], flat) for n in range(len(inputs[0]))]
    for each in (number, *range(number), *range(number + 1, len(together))):
        _explain_output(model, inputs, each, together[each], [alone[each] for alone in runs], tolerance, flat)


def _explain_output(
    model: nn.Module,
    inputs: Sequence[Tensor],
    number: int,
    together: Any,
    alone: list[Any],
    tolerance: float,
    flat: bool,
) -> None:
    """Raise ValueError if an output for a batch is not that for each sample."""
    count = len(alone)
    if not isinstance(together, Tensor):
        if together != alone[0]:
            raise ValueError(
                f"output {number} must be a tensor, or the same for every batch, and is {together!r} for {count} "
                f"samples, {alone[0]!r} for one"
            )
        return
    joined = torch.cat(alone) if alone[0].dim() else torch.stack(alone)
    has_rows = len(joined) == count or not flat
    if has_rows and together.shape == joined.shape and is_close(together, joined, tolerance):
        return
    name = has_rows and first_mixing(model, inputs, tolerance)
    if not has_rows or (not name and together.shape != joined.shape):
        raise ValueError(
            f"output {number} must have one row per sample, batch first, and has shape {tuple(together.shape)} for "
            f"{count} samples, {tuple(alone[0].shape)} for one; keep the batch axis, as y.flatten(1) does, permute it, "
            "or expand a constant to the batch"
        )
    raise mixes(name or "")
