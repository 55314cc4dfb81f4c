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
        for number, (whole, *parts) in enumerate(zip(together, *alone, strict=True)):
            if not isinstance(whole, Tensor):
                continue
            limit = None if scales is None else tolerance * scales[number] + smallest(*dtypes)
            if not any(_is_equal(whole, joined, tolerance, limit) for joined in _joined(whole, parts)):
                return True
        return False

    if not has_mixed(None):
        return
    exact, is_double = exact_outputs(model, inputs, together, False)
    # What is left where sums cancel is small beside what noise makes of it.
    if all(map(has_mixed, model_scales(model, inputs, exact, is_double, eps, False))):
        raise mixes(first_mixing(model, inputs, tolerance))


def _joined(whole: Tensor, parts: Sequence[Tensor]) -> list[Tensor]:
    """What an output for a batch may be, of those for the single samples: along each axis, or the same for all."""
    stacked = [torch.cat([*parts], axis) for axis in range(parts[0].dim())]
    candidates = [*stacked, torch.stack([*parts]), parts[0]]
    return [each for each in candidates if each.shape == whole.shape]


def _is_equal(whole: Tensor, joined: Tensor, tolerance: float, limit: Any) -> bool:
    return is_close(whole, joined, tolerance) if limit is None else not difference(whole, joined, limit)
