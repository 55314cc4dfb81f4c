"""Whether a model treats each sample of a batch by itself, which a run of single samples does not show."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from conv2affine.network.comparison import difference, is_close, smallest, tolerance_of
from conv2affine.network.torch.models.advice import mixes
from conv2affine.network.torch.verifying.runs import exact_outputs, first_mixing, model_scales, run, samples


def check_samples(model: nn.Module, inputs: Sequence[Tensor], dtypes: Iterable[torch.dtype]) -> None:
    """Raise ValueError if an output of a model for one sample depends on the others, or on their number.

    The batch may be any axis of an output, or none, as that of a constant. A model that takes no batch mixes none.
    """
    inputs, dtypes = samples([x[:1] for x in inputs]), [*dtypes]
    try:
        together = run(model, inputs, False)
    except Exception:  # of any kind: the model decides what it takes
        return
    alone = [run(model, [x[n : n + 1] for x in inputs], False) for n in range(len(inputs[0]))]
    eps = max(torch.finfo(dtype).eps for dtype in dtypes)
    tolerance = tolerance_of(eps)

    def has_mixed(scales: Sequence[Any] | None) -> bool:
        for number, whole in enumerate(together):
            if not isinstance(whole, Tensor):
                continue
            limit = None if scales is None else tolerance * scales[number] + smallest(*dtypes)
            candidates = _candidates(whole, number, len(together), alone)
            if not any(_is_equal(whole, each, tolerance, limit) for each in candidates):
                return True
        return False

    if not has_mixed(None):
        return
    exact, is_double = exact_outputs(model, inputs, together, False)
    # What is left where sums cancel is small beside what noise makes of it.
    if all(map(has_mixed, model_scales(model, inputs, exact, is_double, eps, False))):
        raise mixes(first_mixing(model, inputs, tolerance))


def _candidates(whole: Tensor, number: int, count: int, alone: Sequence[Sequence[Any]]) -> list[Tensor]:
    """What an output for a batch may be, of those for the single samples: along each axis, or the same for all.

    A model that returns lists with an element for each sample has more outputs for a batch.
    """
    samples, outputs = len(alone), len(alone[0])
    if count == outputs:
        parts = [each[number] for each in alone]
        stacked = [torch.stack(parts, axis) for axis in range(parts[0].dim() + 1)]
        found = [parts[0], *stacked]
        found += [each.flatten(axis, axis + 1) for each in stacked for axis in range(each.dim() - 1)]
    elif count == samples * outputs:  # of one sample after the other, or of one output after the other
        found = [alone[number // outputs][number % outputs], alone[number % samples][number // samples]]
    else:
        return []
    return [each for each in found if isinstance(each, Tensor) and each.shape == whole.shape]


def _is_equal(whole: Tensor, other: Tensor, tolerance: float, limit: Any) -> bool:
    return is_close(whole, other, tolerance) if limit is None else not difference(whole, other, limit)
