"""From a PyTorch module and example inputs to the operators that it runs."""

from __future__ import annotations

import functools
import warnings
from typing import Any

import torch
from torch import Tensor, nn
from torch.export import ExportedProgram

__all__ = ["export", "tensors", "unwrap"]

aten = torch.ops.aten
# Kept whole: a rule knows them, or they say more than what they decompose into.
UNDECOMPOSED = (
    *("linear", "matmul", "pad", "prelu", "glu", "scaled_dot_product_attention", "layer_norm", "group_norm"),
    *("hardswish", "hardsigmoid", "silu", "softplus", "mish", "celu", "selu", "threshold", "hardshrink", "softshrink"),
    *("instance_norm", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *(
        f"{kind}{axes}d"
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
        for axes in (1, 2, 3)
    ),
)


def export(model: nn.Module, inputs: tuple[Tensor, ...]) -> ExportedProgram:
    """The operators of a module, as PyTorch finds them."""
    with warnings.catch_warnings(), torch.no_grad():
        warnings.simplefilter("ignore")  # of PyTorch about itself; the result is checked
        try:
            exported: ExportedProgram = torch.export.export(model, inputs).run_decompositions(_decompositions())
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise NotImplementedError(
                f"{type(model).__name__} must be a module that torch.export takes with these inputs, and it fails: "
                f"{type(error).__name__}: {reason}; replace what depends on the values of tensors"
            ) from error
    return exported


@functools.cache
def _decompositions() -> Any:
    """PyTorch's table, without the operators that are kept whole."""
    table = torch.export.default_decompositions()
    for name in UNDECOMPOSED:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)  # type: ignore[no-untyped-call]
    return table


def tensors(example_inputs: Any) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of tensors, batch first."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else tuple(example_inputs)
    for number, x in enumerate(inputs):
        if not isinstance(x, Tensor):
            raise TypeError(f"example_inputs[{number}] must be a tensor, got {type(x).__name__}; bind it in a module")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"example_inputs[{number}] must have a sample, batch first, got shape {tuple(x.shape)}")
    return inputs


def unwrap(model: nn.Module) -> nn.Module:
    """The module inside of what compiles or distributes it."""
    while True:
        if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        elif isinstance(model, torch._dynamo.OptimizedModule):
            model = model._orig_mod
        else:
            return model
