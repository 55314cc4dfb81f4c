"""What a run of a model, or of one node, shows: whether samples are independent, and whether a rule is right.

onnxruntime, onnx.reference and shape inference disagree on some attributes of a few operators. The runtime of the model
decides: onnxruntime where it takes the node, else onnx.reference. Where a rule disagrees, the node is kept; where the
inferred shape does, it is refused, as no result could be declared.
"""

from __future__ import annotations

import copy
import functools
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from onnx import ModelProto, NodeProto, TypeProto, ValueInfoProto, external_data_helper, helper, numpy_helper

from conv2affine.network.comparison import COARSE, EPS, difference, is_close, scale, tolerance_of
from conv2affine.network.graph import Kept, Piece, Slot, Step, Value, runs_on_vectors
from conv2affine.network.kinds import evaluate
from conv2affine.onnx.call import OnnxCall, make_info, one_node
from conv2affine.onnx.model import OnnxNetwork
from conv2affine.onnx.running.runner import HALF_DTYPES, Run, RunError, as_tensor, disturbed, runner, sample

SAMPLES = 3
# Pooling with ceil_mode, auto_pad or dilations; resizing by fractions, and sampling; slices that start before an
# axis; what of a Fourier transform is left.
DISPUTED = ("AveragePool", "DFT", "GridSample", "LpPool", "MaxPool", "Resize", "STFT", "Slice", "Upsample")
TOLERANCE = 1e-4  # of the largest element: scales and coordinates are float32

Trial = tuple[Any, list[Any]]


def layer_runner(proto: ModelProto, path: Path) -> Run:
    """Runs a model with its data in a file next to `path`, with at most one of its large layers in memory at a time."""
    tensors = {tensor.name: tensor for tensor in proto.graph.initializer}
    outside = {name for name, tensor in tensors.items() if external_data_helper.uses_external_data(tensor)}
    groups: list[list[NodeProto]] = [[]]
    for node in proto.graph.node:
        if not outside.isdisjoint(node.input) and groups[-1]:
            groups.append([])
        groups[-1].append(node)
    outputs = [info.name for info in proto.graph.output]
    # The last group that reads each value.
    last = {name: number for number, group in enumerate(groups) for node in group for name in node.input}
    last.update(dict.fromkeys(outputs, len(groups)))
    file = path.with_name(f"{path.name}.group")
    refusals: list[str] = []

    def run(inputs: Mapping[str, Any]) -> list[Any]:
        values = dict(inputs)
        for number, group in enumerate(groups):
            read = {name for node in group for name in node.input}
            made = [name for node in group for name in node.output if last.get(name, 0) > number]
            feeds = {name: values[name] for name in values if name in read}
            infos = [make_info(name, array) for name, array in feeds.items()]
            wanted = [ValueInfoProto(name=name) for name in made]
            initializers = [tensors[name] for name in tensors if name in read]
            graph = helper.make_graph(group, "group", infos, wanted, initializers)
            part = helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
            file.write_bytes(part.SerializeToString())
            each = runner(file)
            values.update(zip(made, each(feeds), strict=True))
            refusals.extend(each.refusals)
            del each  # and the memory that it maps
            values = {name: array for name, array in values.items() if last.get(name, 0) > number}
        return [values[name] for name in outputs]

    return Run(run, refusals)


def with_outputs(proto: ModelProto, names: Sequence[str]) -> ModelProto:
    """A model with more outputs."""
    if not names:
        return proto
    model = copy.deepcopy(proto)
    model.graph.output.extend(ValueInfoProto(name=name) for name in names)
    return model


def batch_refusal(network: OnnxNetwork, steps: Sequence[Step | Kept], run_with: Callable[[Sequence[str]], Run]) -> str:
    """Why the result cannot take any number of samples; "" if it can.

    Every output, and what a kept step takes and returns as tensors, must be the same for a batch as for each sample,
    along its first axis; so must what is written at places, along any axis, as constants may name those of one sample.
    And what is selected or reduced must have more elements for a batch: else it is of one sample, or of all together.
    `run_with` makes a run of the model with these values of the file as further outputs.
    """
    if not network.is_batched:
        first = max(tensor.shape[0] if tensor.shape else 1 for tensor in network.inputs)
        note = f" (at {first}: if that is a batch, export for 1, which makes smaller layers)" if first > 1 else ""
        return f"the first sizes of its inputs are fixed{note}"
    on_tensors = [step for step in steps if not runs_on_vectors(step)]
    for step in on_tensors:
        # Where the values of a step cannot be looked at, their shapes have to do.
        shapes = (*step.shapes, *(value.shape for value in step.outputs))
        if not step.call.inputs and any(shape[:1] != (1,) for shape in shapes):
            return f"{', '.join(step.origin)} ({step.kind}) does not have the batch along its first axis"
    outputs = [tensor.name for tensor in network.outputs]
    known = {tensor.name for tensor in (*network.inputs, *network.outputs)}
    kept = [name for step in on_tensors for name in step.call.tensors]
    names = [name for name in dict.fromkeys((*kept, *network.written, *network.selected)) if name not in known]
    run = run_with(names)
    batch = sample(network.inputs, SAMPLES, True)
    try:
        together = run(batch)
        alone = [run({name: x[n : n + 1] for name, x in batch.items()}) for n in range(SAMPLES)]
    except RunError as error:
        return f"it does not run on {SAMPLES} samples: {error}"
    eps = max(EPS, network.eps)
    noisy = functools.cache(lambda: list(zip(*disturbed(run, batch, COARSE * eps), strict=True)))
    results = list(enumerate(zip((*outputs, *names), together, *alone, strict=True)))
    for number, (name, whole, *parts) in (*results[len(outputs) :], *results[: len(outputs)]):  # as they are computed
        shape = parts[0].shape
        has_batch_first = name in outputs or name in kept
        if not has_batch_first and name not in network.written and whole.shape != shape:
            continue  # it is selected or reduced, and not along the batch
        axes = range(len(shape))[: 1 if has_batch_first else None]
        longer = [axis for axis in axes if whole.shape == (*shape[:axis], SAMPLES * shape[axis], *shape[axis + 1 :])]
        if not longer:
            return f"{name} has shape {whole.shape} for {SAMPLES} samples, and {shape} for one"
        if name in outputs and shape[0] != 1:
            return f"output {name} has {shape[0]} rows for each sample"
        if not _is_same(number, whole, np.concatenate(parts, longer[0]), eps, noisy):
            return f"{name} depends for each sample on the others"
    values = batch | {name: whole for _, (name, whole, *_) in results}
    for step in on_tensors:
        if step.call.inputs and not _runs(step.call, values):
            return f"{', '.join(step.origin)} ({step.kind}) has constants of the shape of one sample"
    return ""


def _is_same(number: int, whole: Any, joined: Any, eps: float, noisy: Callable[[], Sequence[Any]]) -> bool:
    """Whether the value of this number is for a batch what it is for its samples, up to rounding."""
    a, b = as_tensor(whole), as_tensor(joined)
    if torch.equal(a, b) or (a.is_floating_point() and is_close(a, b, tolerance_of(eps))):
        return True
    # What is left where sums cancel is small beside what noise makes of it.
    size = scale(a, map(as_tensor, noisy()[number]), COARSE * eps)
    return not difference(a, b, tolerance_of(eps) * size)


def _runs(call: OnnxCall, values: Mapping[str, Any]) -> bool:
    """Whether a node gives results of the same shape for these values with its constants as they are for one sample."""
    if not any(isinstance(arg, np.ndarray) and arg.size > 1 for arg in call.args):
        return True
    feeds = {}
    for number, (name, arg) in enumerate(zip(call.inputs, call.args, strict=True)):
        array = values[name] if isinstance(arg, Slot) else arg
        if array is not None:
            feeds[f"x{number}"] = array.astype(np.float32) if array.dtype in HALF_DTYPES else array
    try:
        results = runner(call.model(feeds))(feeds)
    except RunError:
        return False
    wanted = [values[call.outputs[number]].shape for number in call.results]
    return [result.shape for result in results] == wanted


def run_alone(node: NodeProto, opset: int, results: Mapping[str, Any], types: Mapping[str, TypeProto]) -> Trial | None:
    """A random input of a node that has one value among its inputs, and its results; None if it does not run alone."""
    names = list(dict.fromkeys(filter(None, node.input)))
    values = [name for name in names if isinstance(results[name], Value)]
    constants = [numpy_helper.from_array(results[name], name) for name in names if name not in values]
    if len(values) != 1:
        return None
    [name] = values
    infos = [ValueInfoProto(name=name, type=types[name])]
    outputs = [ValueInfoProto(name=output) for output in node.output if output]
    dtype = helper.tensor_dtype_to_np_dtype(types[name].tensor_type.elem_type)
    x = np.array(np.random.default_rng(0).standard_normal(results[name].shape), dtype)
    try:
        return x, runner(one_node(node, opset, infos, outputs, constants))({name: x})
    except RunError:
        return None


def agrees(nodes: Sequence[Piece | Step], trial: Trial) -> bool:
    """Whether pieces and steps compute the same as the operator that they stand for."""
    x, (expected, *_) = trial
    if nodes[-1].outputs[0].shape != expected.shape:
        return False
    vector = x.reshape(1, -1).astype(np.float64)
    values: dict[Value, Any] = defaultdict(lambda: vector)  # what none of them computes is the operator's one input
    for node in nodes:
        got = values[node.outputs[0]] = evaluate(node, values)
    largest = np.abs(expected).max(initial=0)
    return np.allclose(got.ravel(), expected.ravel(), rtol=0, atol=TOLERANCE * float(largest), equal_nan=True)
