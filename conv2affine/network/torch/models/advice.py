"""Checks that a model runs on its example inputs; if not, says what would help."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from conv2affine.network.torch.models.held import Named, Script, joined_names
from conv2affine.network.torch.models.surroundings import try_run


def check_runs(model: nn.Module, inputs: Sequence[Tensor], result: Any) -> None:
    """Raise ValueError if the result of a model for the first sample of its inputs is an exception."""
    if isinstance(result, Exception):
        shapes = ", ".join(f"{tuple(x.shape)} of {x.dtype}" for x in inputs)
        raise ValueError(
            f"the model must take its example inputs, of shape {shapes}, and fails on their first sample: "
            f"{type(result).__name__}: {reason(result)}; {_advice(model, inputs, result)}"
        ) from result


def no_batch(count: int, error: Exception) -> ValueError:
    """The error of a model that takes one sample, and fails on a batch of `count`."""
    return ValueError(
        f"the model must take a batch of any size, and fails on one of {count} samples: {reason(error)}; write "
        "x.flatten(1), not x.view(1, -1)"
    )


def mixes(name: str) -> ValueError:
    """The error of a model that mixes the samples of a batch, in this operator if that is known."""
    return ValueError(
        f"{name or 'the model'} mixes the samples of a batch: its result for one depends on the others, or on their "
        "number; only models that treat each sample by itself can be converted (batch norm needs eval() and running "
        "statistics)"
    )


def reason(error: Exception) -> str:
    """The message of an exception, in one line; TorchScript puts it last."""
    lines = str(error).strip().splitlines() or [""]
    return lines[-1 if "TorchScript" in lines[0] else 0].removeprefix("RuntimeError: ").rstrip(".")


def _advice(model: nn.Module, inputs: Sequence[Tensor], error: Exception) -> str:
    """The first change that makes the model run."""
    if "when training" in str(error):  # a batch norm, of a batch of one
        return "call model.eval(), and give batch norm its running statistics"
    if isinstance(model, Named) and model.in_one_dict:
        own = model.model
        taken = own.names if isinstance(own, Script) else inspect.signature(own.forward).parameters
        return f"name the tensors as forward does: {', '.join(taken)}"
    names = joined_names(model)
    if names and len(inputs) == len(names):
        joined = ", ".join(f"{name}.flatten(1)" for name in names)
        return f"pass their vector, torch.cat([{joined}], 1)"
    parameters = _required(model)
    if len(parameters) > len(inputs):
        return f"pass a tuple of {len(parameters)} tensors: ({', '.join(parameters)})"
    tensors = [x for x in (*model.parameters(), *model.buffers()) if x.is_floating_point()]
    for tensor in tensors[:1]:
        for there in (tensor.dtype, tensor.device):
            if not isinstance(try_run(model, [x[:1].to(there) for x in inputs]), Exception):
                return f"pass x.to({str(there) if isinstance(there, torch.dtype) else repr(str(there))})"
    two = try_run(model, [torch.stack([x, x]) for x in inputs])
    arrays = [x for x in pytree.tree_leaves(two) if isinstance(x, Tensor) and x.dim()]
    if not isinstance(two, Exception) and all(len(x) == 2 for x in arrays):
        return "pass x.unsqueeze(0): the first axis is the batch"
    if not isinstance(try_run(model, inputs), Exception):
        return (
            "if it takes one sample, without a batch axis: pass a module whose forward returns "
            "torch.stack([model(sample) for sample in x]), and x.unsqueeze(0)"
        )
    return "pass what it takes, batch first"


def _required(model: nn.Module) -> list[str]:
    """The names of the inputs that a model requires."""
    try:
        parameters = inspect.signature(model.forward).parameters.values()
    except (TypeError, ValueError):
        return []
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    return [each.name for each in parameters if each.kind in kinds and each.default is each.empty]
