"""Which operator of a module mixes the samples of a batch: found by running it on the batch and on each sample."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx, nn

from conv2affine.network.comparison import is_close
from conv2affine.network.torch.importing.call import operator_name, origin
from conv2affine.network.torch.models.program import export

__all__ = ["first_mixing"]


def first_mixing(model: nn.Module, inputs: Sequence[Tensor], tolerance: float) -> str:
    """The first operator whose result for a batch differs from its results for the single samples.

    "MODULE (OPERATOR)"; "" if there is none, or if it cannot be determined. The tolerance is relative to the largest.
    """
    samples = [tuple(x[n : n + 1] for x in inputs) for n in range(len(inputs[0]))]
    try:
        programs = [export(model, batch).module() for batch in (samples[0], tuple(inputs))]
        alone = [_Recorder(programs[0]).record(sample) for sample in samples]
        together = _Recorder(programs[1]).record(inputs)
    except Exception:  # of any kind: this only explains another error
        return ""
    for name, (node, result) in together.items():
        if name in alone[0] and not _is_union(result, [results[name][1] for results in alone], tolerance):
            return f"{origin(node)} ({operator_name(node.target)})"
    return ""


class _Recorder(fx.Interpreter):
    def record(self, inputs: Sequence[Tensor]) -> dict[str, tuple[fx.Node, Tensor]]:
        """The operators and their results, by name."""
        self.results: dict[str, tuple[fx.Node, Tensor]] = {}
        with torch.no_grad():
            self.run(*(x.clone() for x in inputs))
        return self.results

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if isinstance(n.target, torch._ops.OpOverload) and isinstance(result, Tensor):
            self.results[n.name] = n, torch.view_as_real(result).clone() if result.is_complex() else result.clone()
        return result


def _is_union(together: Tensor, alone: Sequence[Tensor], tolerance: float) -> bool:
    """Whether a result has the elements of the samples' results, in any order, or equals each of them."""
    if together.shape == alone[0].shape:
        return all(is_close(together, one, tolerance) for one in alone)
    elements = torch.cat([one.flatten() for one in alone])
    return is_close(together.flatten().double().sort()[0], elements.double().sort()[0], tolerance)
