"""From a PyTorch module and example inputs to the operators that it runs."""

from __future__ import annotations

import functools
import sys
import warnings
from collections import Counter
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.export import ExportedProgram
from torch.nn.parameter import is_lazy
from torch.utils import _pytree as pytree

from conv2affine.network.torch.constants import fold_constants
from conv2affine.network.torch.unchanged import users_device

__all__ = ["export", "floating_dtypes", "tensors", "unwrap"]

aten = torch.ops.aten
# Kept whole: a rule knows them, or they say more than what they decompose into.
UNDECOMPOSED = (
    *("linear", "matmul", "pad", "prelu", "glu", "scaled_dot_product_attention", "layer_norm", "group_norm"),
    *("hardswish", "hardsigmoid", "silu", "softplus", "mish", "celu", "selu", "threshold"),
    *("instance_norm", "upsample_linear1d", "upsample_bilinear2d", "upsample_trilinear3d", "upsample_bicubic2d"),
    *(
        f"{kind}{axes}d"
        for kind in ("max_pool", "avg_pool", "adaptive_avg_pool", "adaptive_max_pool", "upsample_nearest")
        for axes in (1, 2, 3)
    ),
)


def export(model: nn.Module, inputs: tuple[Tensor, ...], state: frozenset[str] = frozenset()) -> ExportedProgram:
    """The operators of a module, as PyTorch finds them; `state` are names of buffers that each run replaces."""
    with warnings.catch_warnings(), torch.no_grad(), users_device(inputs):
        warnings.simplefilter("ignore")  # of PyTorch about itself; the result is checked
        try:
            program: ExportedProgram = torch.export.export(model, inputs)
            fold_constants(program, state)
            decomposed: ExportedProgram = program.run_decompositions(_decompositions())
        except Exception as error:
            reason = str(error).strip().partition("\n")[0]
            raise NotImplementedError(
                f"{type(model).__name__} must be a module that torch.export takes with these inputs, and it fails: "
                f"{type(error).__name__}: {reason}; check that it takes them, and replace what depends on "
                "the values of tensors"
            ) from error
    return decomposed


@functools.cache
def _decompositions() -> Any:
    """PyTorch's table, without the operators that are kept whole."""
    table = torch.export.default_decompositions()
    for name in UNDECOMPOSED:
        packet = getattr(aten, name)
        for overload in packet.overloads():
            table.pop(getattr(packet, overload), None)  # type: ignore[no-untyped-call]
    table[aten.index_put.default] = _index_put
    return table


def _index_put(x: Tensor, indices: Any, values: Tensor, accumulate: bool = False) -> Any:
    """One number, written where a mask holds: a choice, which does not ask where that is."""
    first = indices[0]
    if accumulate or values.numel() != 1 or len(indices) > 1 or first.dtype is not torch.bool or first.shape != x.shape:
        return NotImplemented
    return torch.where(first, values.to(x.dtype), x)


def floating_dtypes(program: ExportedProgram) -> tuple[torch.dtype, ...]:
    """The floating dtypes of what depends on the inputs, the most frequent first."""
    inputs = program.graph_signature.user_inputs
    reached: set[fx.Node] = set()
    count: Counter[torch.dtype] = Counter()
    for node in program.graph.nodes:
        if node.name in inputs or reached.intersection(node.all_input_nodes):
            reached.add(node)
            results = [result for result in pytree.tree_leaves(node.meta.get("val")) if isinstance(result, Tensor)]
            for result in results:
                if result.is_floating_point():
                    count[result.dtype] += node.op == "call_function"  # an input alone counts 0, and so comes last
    return tuple(dtype for dtype, _ in count.most_common()) or (torch.get_default_dtype(),)


def tensors(example_inputs: Any) -> tuple[Tensor, ...]:
    """Example inputs as a tuple of tensors, batch first, checked."""
    inputs = (example_inputs,) if isinstance(example_inputs, Tensor) else example_inputs
    if not isinstance(inputs, tuple | list) or not inputs:
        raise TypeError(
            "example_inputs must be a tensor, or a tuple of tensors in the order in which the model takes them, got "
            f"{'an empty ' * isinstance(inputs, tuple | list)}{type(inputs).__name__}"
        )
    for number, x in enumerate(inputs):
        name = f"example_inputs[{number}]"
        if not isinstance(x, Tensor):
            raise TypeError(f"{name} must be a tensor, got {type(x).__name__}; bind it in a module")
        if x.is_complex():
            raise TypeError(f"{name} ({x.dtype}) must be real; take torch.view_as_real(x), and make it complex inside")
        if x.is_meta or x.layout is not torch.strided:
            raise TypeError(f"{name} must be a dense tensor with values, got {x.layout} on device {x.device}")
        if x.dim() == 0 or len(x) == 0:
            raise ValueError(f"{name} must have a sample, batch first, got shape {tuple(x.shape)}")
        if len(x) != len(inputs[0]):
            raise ValueError(f"{name} must have as many samples as example_inputs[0], {len(inputs[0])}, got {len(x)}")
        if not x.isfinite().all():
            raise ValueError(f"{name} must be finite, got infinities or NaN; pass another example")
    return tuple(inputs)


def unwrap(model: Any) -> nn.Module:
    """The module inside of what compiles or distributes it, checked."""
    if isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
        return unwrap(model.module)
    dynamo = sys.modules.get("torch._dynamo")  # its import would draw random numbers
    if dynamo is not None and isinstance(model, dynamo.OptimizedModule):
        return unwrap(model._orig_mod)
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be an nn.Module, got {type(model).__name__}; call a function in its forward")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if is_lazy(tensor):
            raise ValueError(f"model is lazy, and its {name} has no values yet; run a batch through it first")
        if tensor.is_meta:
            raise ValueError(f"model must have values, and its {name} is on the meta device; load them first")
        if tensor.is_inference():
            raise ValueError(
                f"model must be made outside of torch.inference_mode, and its {name} was made inside; take "
                "copy.deepcopy(model), made outside"
            )
    return model
