"""Whether a model treats each sample of a batch by itself: found by running it on a batch and on each sample."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from onnx import ModelProto, ValueInfoProto

from conv2affine.network.graph import Kept, Step
from conv2affine.onnx.importer import OnnxNetwork
from conv2affine.onnx.kept_writer import runs_on_vectors
from conv2affine.onnx.runner import Run, RunError, sample

__all__ = ["first_mixing", "with_outputs"]

SAMPLES = 3
# Of the largest element. Sums may be rounded in another order; what mixes samples is off by far more.
ROUNDINGS = 1000
MAX_TOLERANCE = 0.1


def with_outputs(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """A model with more outputs."""
    if not names:
        return proto
    model = ModelProto()
    model.CopyFrom(proto)
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return model


def first_mixing(network: OnnxNetwork, steps: Sequence[Step | Kept], original: Callable[[Sequence[str]], Run]) -> str:
    """Why the result cannot take any number of samples; "" if it can.

    Every output, and what a kept step takes and gives on tensors of its own, has to be for a batch what it is for each
    sample, along its first axis.

    Args:
        network: What was imported.
        steps: Those that are kept, after all passes.
        original: Gives what runs the model, with these values of the file as further outputs.
    """
    if not network.is_batched:
        return "the first sizes of its inputs are fixed"
    on_tensors = [step for step in steps if not runs_on_vectors(step)]
    for step in on_tensors:
        # Where the values of a step cannot be looked at, their shapes have to do.
        shapes = (*step.shapes, *(value.shape for value in step.outputs))
        if not step.call.inputs and any(shape[:1] != (1,) for shape in shapes):
            return f"{', '.join(step.origin)} ({step.kind}) does not have the batch along its first axis"
    outputs = [tensor.name for tensor in network.outputs]
    known = {tensor.name for tensor in (*network.inputs, *network.outputs)}
    names = [name for step in on_tensors for name in step.call.tensors if name not in known]
    names = list(dict.fromkeys(names))
    run = original(names)
    batch = sample(network.inputs, SAMPLES, True)
    try:
        together = run(batch)
        alone = [run({name: x[n : n + 1] for name, x in batch.items()}) for n in range(SAMPLES)]
    except RunError as error:
        return f"it does not run on {SAMPLES} samples: {error}"
    results = list(zip((*outputs, *names), together, *alone, strict=True))
    for name, whole, *parts in (*results[len(outputs) :], *results[: len(outputs)]):  # in the order of computation
        shape = parts[0].shape
        if whole.shape != (SAMPLES * (shape or (1,))[0], *shape[1:]):
            return f"{name} has shape {whole.shape} for {SAMPLES} samples, and {shape} for one"
        if name in outputs and shape[0] != 1:
            return f"output {name} has {shape[0]} rows for each sample"
        if not _is_close(whole, np.concatenate(parts), network.eps):
            return f"{name} depends for each sample on the others"
    return ""


def _is_close(a: Any, b: Any, eps: float) -> bool:
    if a.dtype.kind != "f":
        return np.array_equal(a, b)
    largest = np.abs(a[np.isfinite(a)]).max(initial=0)
    return np.allclose(a, b, rtol=0, atol=min(ROUNDINGS * eps, MAX_TOLERANCE) * largest, equal_nan=True)
